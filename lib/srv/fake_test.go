package srv

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/accessd/accessd/lib/sshwire"
)

// executor starts processes that do what the test says.
type executor struct {
	checked error
	failed  error
	stdout  io.Reader         // of processes, instead of their own
	started chan *fakeProcess // has room for all of a test
}

func newExecutor() *executor { return &executor{started: make(chan *fakeProcess, 1000)} }

func (x *executor) Check(context.Context, Account) error { return x.checked }

func (x *executor) Dial(context.Context, Account, Endpoint, Admit) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (x *executor) Listen(context.Context, Account, Endpoint) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

func (x *executor) Start(_ context.Context, c Command) (Process, error) {
	if x.failed != nil {
		return nil, x.failed
	}
	p := &fakeProcess{command: c, exit: make(chan Exit, 1), closed: make(chan struct{})}
	var stdin, stdout, stderr io.Closer
	p.pipes.Stdin, p.stdin, stdin = pipe()
	p.stdout, p.pipes.Stdout, stdout = reversed()
	p.stderr, p.pipes.Stderr, stderr = reversed()
	p.close = sync.OnceFunc(func() {
		for _, c := range []io.Closer{stdin, stdout, stderr, p.stdin.(io.Closer)} {
			_ = c.Close()
		}
		close(p.closed)
	})
	if x.stdout != nil {
		p.pipes.Stdout = x.stdout
	}
	x.started <- p
	return p, nil
}

func pipe() (io.WriteCloser, io.Reader, io.Closer) {
	r, w := io.Pipe()
	return w, r, w
}

func reversed() (io.WriteCloser, io.Reader, io.Closer) {
	r, w := io.Pipe()
	return w, r, w
}

// fakeProcess is a process without a process.
type fakeProcess struct {
	command        Command
	pipes          Pipes
	stdin          io.Reader
	stdout, stderr io.WriteCloser
	exit           chan Exit
	close          func()
	closed         chan struct{}

	mu      sync.Mutex
	signals []string
	windows []sshwire.WindowChange
}

func (p *fakeProcess) Pipes() Pipes        { return p.pipes }
func (p *fakeProcess) Exited() <-chan Exit { return p.exit }
func (p *fakeProcess) Close()              { p.close() }

func (p *fakeProcess) Resize(w sshwire.WindowChange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.windows = append(p.windows, w)
}

func (p *fakeProcess) Signal(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signals = append(p.signals, name)
	return nil
}

// end makes the process end as if it had closed its streams and exited.
func (p *fakeProcess) end(t *testing.T, e Exit) {
	t.Helper()
	_ = p.stdout.Close()
	_ = p.stderr.Close()
	p.exit <- e
}
