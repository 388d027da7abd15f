//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a server that runs for the length of a measurement.
type process struct {
	what  string
	cmd   *exec.Cmd
	log   string        // file of its stderr
	ready chan string   // its first line of stdout
	done  chan struct{} // closed when it ended
}

// spec says what to start.
type spec struct {
	what string // for errors; arguments may hold a token
	args []string
	env  []string // besides this process's own
}

// launch starts a server. It ends with the bench, however that ends.
func (l *lab) launch(s spec) (*process, error) {
	log, err := os.CreateTemp(l.dir, "log-*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{what: s.what, log: log.Name(), ready: make(chan string, 1), done: make(chan struct{})}
	p.cmd = exec.Command(s.args[0], s.args[1:]...)
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.what, err)
	}
	l.processes = append(l.processes, p)
	go func() {
		defer close(p.done)
		r := bufio.NewReader(stdout)
		if line, err := r.ReadString('\n'); err == nil {
			p.ready <- strings.TrimSpace(line)
		}
		close(p.ready)
		_, _ = io.Copy(io.Discard, r)
		_ = p.cmd.Wait()
	}()
	return p, nil
}

// awaitReady waits for the process's ready line and returns its fields.
func (p *process) awaitReady(ctx context.Context) (map[string]string, error) {
	select {
	case line := <-p.ready:
		if !strings.HasPrefix(line, "ready") {
			return nil, fmt.Errorf("%s: want a ready line, got %q: %s", p.what, line, p.tail())
		}
		fields := map[string]string{}
		for f := range strings.FieldsSeq(line) {
			k, v, _ := strings.Cut(f, "=")
			fields[k] = v
		}
		return fields, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("%s: not ready within %v: %s", p.what, patience, p.tail())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tail returns the end of what the process wrote to stderr, on one line.
func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	text = text[max(0, len(text)-600):]
	return strings.Join(strings.Fields(string(text)), " ")
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, kills it when it does not within grace, and with
// it those of its descendants that would stay behind.
func (p *process) stop(grace time.Duration) {
	family := tree(p.pid())
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	for _, child := range family {
		if child.pid != p.pid() && child.alive() {
			_ = syscall.Kill(child.pid, syscall.SIGKILL)
		}
	}
}

// clockTick is the unit of times in /proc (USER_HZ, 100 on every Linux).
const clockTick = 10 * time.Millisecond

// procStat is a process as /proc shows it.
type procStat struct {
	pid, parent int
	name        string
	start       string        // tells it from another one with the same pid
	reaped      time.Duration // CPU time of children it has waited for
}

func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return procStat{}, errors.New("stat: no name")
	}
	f := strings.Fields(string(text[end+1:])) // from field 3 of proc(5), the state
	if len(f) < 20 {
		return procStat{}, errors.New("stat: too short")
	}
	s := procStat{pid: pid, name: string(text[open+1 : end]), start: f[19]}
	s.parent, _ = strconv.Atoi(f[1])
	for _, ticks := range f[13:15] { // cutime, cstime
		n, _ := strconv.ParseInt(ticks, 10, 64)
		s.reaped += time.Duration(n) * clockTick
	}
	return s, nil
}

func (s procStat) alive() bool {
	now, err := readStat(s.pid)
	return err == nil && now.start == s.start
}

// tree returns a process and all its descendants.
func tree(root int) []procStat {
	children := map[int][]procStat{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if s, err := readStat(pid); err == nil {
				children[s.parent] = append(children[s.parent], s)
			}
		}
	}
	s, err := readStat(root)
	if err != nil {
		return nil
	}
	list := []procStat{s}
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i].pid]...)
	}
	return list
}

// cpuTime returns the CPU time a process alone has used (clock_getcpuclockid(3)
// says how its clock is numbered).
func cpuTime(pid int) time.Duration {
	const schedClock = 2
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|schedClock), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// treeTime returns the CPU time of a process, its living descendants, and all of
// those that were waited for.
func treeTime(pid int) time.Duration {
	var sum time.Duration
	for _, s := range tree(pid) {
		sum += cpuTime(s.pid) + s.reaped
	}
	return sum
}

// pss returns the proportional set size of a process, in bytes: its own memory
// and its share of what it has in common with others.
func pss(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("smaps_rollup of %d has no Pss", pid)
}

// treePSS sums pss over those of a process and its descendants that run the same
// program as it does; a shell it started is not its memory.
func treePSS(pid int) (float64, error) {
	var sum float64
	family := tree(pid)
	for _, s := range family {
		if !strings.HasPrefix(s.name, family[0].name) { // sshd may run sshd-session
			continue
		}
		n, err := pss(s.pid)
		if err != nil && s.alive() {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
