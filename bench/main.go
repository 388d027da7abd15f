//go:build linux

// Command bench measures accessd beside OpenSSH, on one machine and in one run,
// and prints what it measured beside the goals of the project.
//
// The yardstick is a chain of stock parts on loopback: an sshd as proxy that
// trusts a user CA, "ssh -N -R" as the tunnel a node opens, and a second sshd as
// the node behind it. The other chain is accessd's: "start --roles auth,proxy",
// "start --roles node --join", a certificate of "users sign" and the file that
// "ssh-config" prints. The same load client and the same stock ssh go through
// both in turn, so that other work on the machine meets both alike; what is
// printed are medians, and the ratio is the median of each round's own ratio.
//
// There is one scenario per file; -run selects some by name. A scenario that
// cannot run here says why in the table. Nothing but what was measured in this
// run is ever printed.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// scenario is one thing to measure.
type scenario struct {
	name    string // what -run matches
	budget  string // the row of the goals it answers
	measure func(ctx context.Context, l *lab) ([]figure, error)
}

// scenarios are in the order in which they run: what wants a quiet and empty
// proxy comes before what fills it.
func scenarios() []scenario {
	return []scenario{
		{"connect", "1", measureConnect},
		{"chain", "2", measureChain},
		{"bulk", "3, 4, 5", measureBulk},
		{"echo", "6", measureEcho},
		{"files", "–", measureFiles},
		{"link", "7", measureLink},
		{"session", "8, 9", measureSessions},
		{"channel", "8", measureChannels},
		{"tunnel", "8", measureTunnels},
		{"reattach", "10", measureReattach},
		{"locks", "–", measureLocks},
		{"decide", "13", measureDecisions},
		{"events", "14", measureEvents},
		{"certs", "15", measureCertificates},
		{"audit", "14", measureAudit},
		{"index", "14", measureIndex},
		{"recording", "16", measureRecording},
		{"footprint", "17", measureFootprint},
	}
}

type options struct {
	accessd, out, run string
	quick, link       bool
	index             int
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if code, ok := runNodes(ctx, args, stdout, stderr); ok {
		return code
	}
	// As the product does (lib/daemon), keep garbage rather than collect a small heap
	// all the time; its packages that run in this process are used to that.
	debug.SetGCPercent(1000)
	var o options
	fl := flag.NewFlagSet("bench", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&o.accessd, "accessd", "bin/accessd", "the binary to measure")
	fl.StringVar(&o.out, "out", "", "file to write the table to, besides stdout")
	fl.StringVar(&o.run, "run", "", "run only the scenarios whose name matches this regular expression")
	fl.BoolVar(&o.quick, "quick", false, "small counts: a minute in all, and rough figures")
	fl.BoolVar(&o.link, "link", true, "also measure over an emulated slow link, where this user may make one")
	fl.IntVar(&o.index, "index", 200_000, "events of the log whose index is asked; 10000000 takes minutes and 5 GB to make")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	if err := bench(ctx, o, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "bench: error:", err)
		return 1
	}
	return 0
}

// bench runs the scenarios and writes the table.
func bench(ctx context.Context, o options, stdout, stderr io.Writer) error {
	wanted, err := regexp.Compile(o.run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	l, err := newLab(o, stderr)
	if err != nil {
		return err
	}
	defer l.close()
	r := report{machine: describeMachine(ctx, o.accessd), quick: o.quick, only: o.run, start: time.Now(), load: startLoad()}
	for _, s := range scenarios() {
		if !wanted.MatchString(s.name) {
			continue
		}
		began := time.Now()
		figures, err := s.measure(ctx, l)
		if ctx.Err() != nil {
			return errors.New("interrupted; nothing was written")
		}
		r.add(s, figures, err)
		fmt.Fprintf(stderr, "bench: %s: %.0f s\n", s.name, time.Since(began).Seconds())
		if err != nil {
			fmt.Fprintf(stderr, "bench: %s: not measured: %v\n", s.name, err)
		}
	}
	l.close() // what ran for the measurements counts as our own load once it ended
	var page bytes.Buffer
	r.write(&page)
	if _, err := stdout.Write(page.Bytes()); err != nil {
		return err
	}
	if o.out == "" {
		return nil
	}
	return os.WriteFile(o.out, page.Bytes(), 0o644)
}
