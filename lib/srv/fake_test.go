package srv

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/netip"
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

	addresses map[string][]netip.Addr // of hosts; the zero Addr for one that is not known here
	dialled   chan net.Conn           // far ends; has room for all of a test
	listening chan *memoryListener    // the same
}

func newExecutor() *executor {
	return &executor{
		started: make(chan *fakeProcess, 1000), dialled: make(chan net.Conn, 100), listening: make(chan *memoryListener, 100),
		addresses: map[string][]netip.Addr{},
	}
}

func (x *executor) Check(context.Context, Account) error { return x.checked }

// Dial asks about each of the addresses and gives the test the far end.
func (x *executor) Dial(_ context.Context, _ Account, e Endpoint, admit Admit) (net.Conn, error) {
	if x.failed != nil {
		return nil, x.failed
	}
	err := error(nil)
	for _, a := range x.addresses[e.Host] {
		if err = admit(a); err == nil {
			here, there := memoryPipe()
			x.dialled <- there
			return here, nil
		}
	}
	return nil, err
}

// Listen listens where the test connects.
func (x *executor) Listen(_ context.Context, _ Account, e Endpoint) (net.Listener, error) {
	if x.failed != nil {
		return nil, x.failed
	}
	l := &memoryListener{at: e, conns: make(chan net.Conn), closed: make(chan struct{})}
	x.listening <- l
	return l, nil
}

// memoryListener yields what a test puts into conns.
type memoryListener struct {
	at     Endpoint
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr {
	if l.at.Path != "" {
		return &net.UnixAddr{Name: l.at.Path, Net: "unix"}
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: cmp.Or(int(l.at.Port), 40000)}
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
