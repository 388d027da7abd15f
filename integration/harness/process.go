// Package harness builds whole clusters out of the built binary and the stock
// OpenSSH tools, for the scenarios in package integration.
package harness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait of a scenario; a loaded two-core machine with the
// race detector on is slow.
const Patience = 90 * time.Second

var binary struct {
	sync.Once
	path string
	err  error
}

// Binary returns the path of the program under test: $ACCESSD_BINARY, or one
// built from the tree with the race detector.
func Binary(t testing.TB) string {
	t.Helper()
	binary.Do(func() {
		if binary.path = os.Getenv("ACCESSD_BINARY"); binary.path != "" {
			return
		}
		var dir string
		if dir, binary.err = os.MkdirTemp("", "accessd-binary-"); binary.err != nil { //nolint:usetesting // it outlives the first test
			return
		}
		binary.path = filepath.Join(dir, "accessd")
		build := exec.Command("go", "build", "-race", "-o", binary.path, "github.com/accessd/accessd/cmd/accessd")
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := build.CombinedOutput(); err != nil {
			binary.err = errors.New(string(out))
		}
	})
	if binary.err != nil {
		t.Fatalf("build accessd: %v", binary.err)
	}
	return binary.path
}

// Result is how a command ended.
type Result struct {
	Code           int // exit status; -1 when a signal ended it
	Stdout, Stderr string
}

// Run runs a command to its end, at most for [Patience].
func Run(t testing.TB, stdin io.Reader, name string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %q: still running after %v\nstdout: %s\nstderr: %s", name, args, Patience, stdout.String(), stderr.String())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s %q: %v", name, args, err)
	} else if ok {
		return Result{exit.ExitCode(), stdout.String(), stderr.String()}
	}
	return Result{0, stdout.String(), stderr.String()}
}

// Process is a running accessd.
type Process struct {
	Ready string // the line it printed once every role served
	t     testing.TB
	cmd   *exec.Cmd
	done  chan struct{}
	log   *buffer
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Start runs the binary and waits for its ready line. The test's end stops it
// and fails when it had complained of a data race.
func Start(t testing.TB, args ...string) *Process {
	t.Helper()
	return StartAt(t, nil, args...)
}

// StartAt is [Start] at a place.
func StartAt(t testing.TB, at *Place, args ...string) *Process {
	t.Helper()
	p, ready := launch(t, at.Command(Binary(t), args...))
	p.await(ready)
	return p
}

// await waits for the ready line.
func (p *Process) await(ready <-chan string) {
	p.t.Helper()
	select {
	case line, ok := <-ready:
		if !ok {
			<-p.done
			p.t.Fatalf("%q ended before it was ready:\n%s", p.cmd.Args, p.log.String())
		}
		p.Ready = line
	case <-time.After(Patience):
		p.t.Fatalf("%q was not ready within %v:\n%s", p.cmd.Args, Patience, p.log.String())
	}
}

// Launch runs the binary without waiting; the channel yields its ready line, or
// closes when it ends without one.
func Launch(t testing.TB, args ...string) (*Process, <-chan string) {
	t.Helper()
	return launch(t, exec.Command(Binary(t), args...))
}

func launch(t testing.TB, cmd *exec.Cmd) (*Process, <-chan string) {
	t.Helper()
	searched(t, cmd.Args)
	p := &Process{t: t, cmd: cmd, done: make(chan struct{}), log: &buffer{}}
	p.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=0 exitcode=66")
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(p.done)
		first := true
		for sc := bufio.NewScanner(stdout); sc.Scan(); {
			if first && strings.HasPrefix(sc.Text(), "ready") {
				ready <- sc.Text()
				first = false
			}
		}
		close(ready)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		for _, what := range LeaksIn([]byte(p.log.String())) {
			t.Errorf("%q: readable in its diagnostics: %s", cmd.Args, what)
		}
		if log := p.log.String(); strings.Contains(log, "DATA RACE") || t.Failed() {
			t.Logf("%q:\n%s", cmd.Args, tail(log, 8000))
			if strings.Contains(log, "DATA RACE") {
				t.Errorf("%q: data race", cmd.Args)
			}
		}
	})
	return p, ready
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// Log returns what the process wrote to stderr so far.
func (p *Process) Log() string { return p.log.String() }

// Pid returns the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Again runs the command of a process that has ended once more.
func (p *Process) Again() *Process {
	p.t.Helper()
	again, ready := launch(p.t, exec.Command(p.cmd.Args[0], p.cmd.Args[1:]...))
	again.await(ready)
	return again
}

// DataDir returns the process's data directory.
func (p *Process) DataDir() string { return dataDir(p.cmd.Args) }

// Signal sends sig to the process alone.
func (p *Process) Signal(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(sig)
	}
}

// Kill ends the process as kill -9 does and waits for it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end and returns its exit code.
func (p *Process) Stop() int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.Wait()
}

// Wait waits for the process's own end and returns its exit code.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.Signal(syscall.SIGQUIT) // the stacks say where it hangs
		<-p.done
		p.t.Fatalf("accessd did not stop within %v:\n%s", Patience, p.log.String())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Field returns the value of key=value in the ready line.
func (p *Process) Field(key string) string {
	for f := range strings.FieldsSeq(p.Ready) {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	p.t.Fatalf("ready line %q has no %s", p.Ready, key)
	return ""
}
