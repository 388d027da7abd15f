package daemon

import (
	"context"
	"maps"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/names"
)

// Bounds of a label's command: a label is a word, and a command that hangs must
// not hold up the others.
const (
	labelTimeout = 10 * time.Second
	labelMax     = 128 // bytes; more is no label
)

// labeller finds a node's labels: static ones, facts about the machine, and
// what commands print.
type labeller struct {
	static   names.Labels
	commands map[string]config.Command
	log      *zap.Logger
}

// facts are the labels every node has, under a prefix of their own.
func facts() names.Labels {
	l := names.Labels{"accessd/os": runtime.GOOS, "accessd/arch": runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		l["accessd/kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	for k, v := range l {
		if (names.Labels{k: v}).Check() != nil {
			delete(l, k) // an exotic kernel's name is no reason not to start
		}
	}
	return l
}

// current returns the labels as they are now.
func (l *labeller) current(ctx context.Context) names.Labels {
	all := facts()
	maps.Copy(all, l.static)
	for key, cmd := range l.commands {
		if v, ok := l.run(ctx, key, cmd.Command); ok {
			all[key] = v
		}
	}
	return all
}

// run returns what a label's command prints, if that is a label's value.
func (l *labeller) run(ctx context.Context, key string, argv []string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, labelTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the operator's own configuration
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	value := strings.TrimSpace(string(out[:min(len(out), labelMax+1)]))
	if err == nil {
		err = names.Labels{key: value}.Check()
	}
	if err != nil {
		l.log.Warn("a label's command gave no label", zap.String("label", key), zap.Error(err))
		return "", false
	}
	return value, true
}

// interval returns the shortest interval of the commands, or zero without any.
func (l *labeller) interval() time.Duration {
	var shortest time.Duration
	for _, c := range l.commands {
		if shortest == 0 || c.Interval < shortest {
			shortest = c.Interval
		}
	}
	return shortest
}

// Run tells the authority the labels at once and whenever a command prints
// something new.
func (l *labeller) Run(ctx context.Context, s *seat) error {
	var told names.Labels
	for {
		pause := l.interval()
		if now := l.current(ctx); told == nil || !maps.Equal(told, now) {
			_, err := s.members().Describe(ctx, connect.NewRequest(&accessdv1.DescribeRequest{Labels: now, Version: defaults.Version}))
			if err != nil {
				l.log.Warn("labels were not told", zap.Error(err))
				pause = renewPause
			} else {
				told = now
			}
		}
		if pause == 0 {
			<-ctx.Done()
			return nil
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}
