package proxy

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeSize is what one direction of a pipe holds at most, in bytes: two of the
// largest packets of SSH as x/crypto writes them.
const pipeSize = 64 << 10

// pipeBuffers has those of directions that hold nothing.
var pipeBuffers = sync.Pool{New: func() any { return new([pipeSize]byte) }} //nolint:gochecknoglobals // a cache

// newPipe returns the two ends of a connection that stays in this process; each
// is told where the other is. SSH begins with both ends writing, so there is room
// in both directions. A direction that holds nothing takes no memory.
func newPipe(a, b net.Addr) (atA, atB net.Conn) {
	there, back := newLane(), newLane()
	return &pipeEnd{in: back, out: there, local: a, remote: b}, &pipeEnd{in: there, out: back, local: b, remote: a}
}

// lane is one direction of a pipe.
type lane struct {
	mu     sync.Mutex
	moved  sync.Cond       // of mu: start, held or closed have changed
	buf    *[pipeSize]byte // nil while it holds nothing
	start  int
	held   int
	closed bool // no more is written
}

func newLane() *lane {
	l := &lane{}
	l.moved.L = &l.mu
	return l
}

func (l *lane) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.held == 0 {
		if l.closed {
			return 0, io.EOF
		}
		l.moved.Wait()
	}
	n := copy(p, l.buf[l.start:min(l.start+l.held, pipeSize)])
	l.start, l.held = (l.start+n)%pipeSize, l.held-n
	if l.held == 0 {
		pipeBuffers.Put(l.buf)
		l.buf, l.start = nil, 0
	}
	l.moved.Broadcast()
	return n, nil
}

func (l *lane) write(p []byte) (written int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		for l.held == pipeSize && !l.closed {
			l.moved.Wait()
		}
		if l.closed {
			return written, io.ErrClosedPipe
		}
		if l.buf == nil {
			l.buf, _ = pipeBuffers.Get().(*[pipeSize]byte)
		}
		end := (l.start + l.held) % pipeSize
		n := copy(l.buf[end:min(end+pipeSize-l.held, pipeSize)], p)
		p, written, l.held = p[n:], written+n, l.held+n
		l.moved.Broadcast()
	}
	return written, nil
}

func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.moved.Broadcast()
}

// pipeEnd is one end of a pipe. It knows no deadlines: SSH connections have
// timers that close them.
type pipeEnd struct {
	in, out       *lane
	local, remote net.Addr
}

// Read implements [net.Conn].
func (e *pipeEnd) Read(p []byte) (int, error) { return e.in.read(p) }

// Write implements [net.Conn].
func (e *pipeEnd) Write(p []byte) (int, error) { return e.out.write(p) }

// Close implements [net.Conn]. What the other end has not read yet it still can.
func (e *pipeEnd) Close() error {
	e.in.close()
	e.out.close()
	return nil
}

// LocalAddr implements [net.Conn].
func (e *pipeEnd) LocalAddr() net.Addr { return e.local }

// RemoteAddr implements [net.Conn].
func (e *pipeEnd) RemoteAddr() net.Addr { return e.remote }

// SetDeadline implements [net.Conn].
func (e *pipeEnd) SetDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return os.ErrNoDeadline
}

// SetReadDeadline implements [net.Conn].
func (e *pipeEnd) SetReadDeadline(t time.Time) error { return e.SetDeadline(t) }

// SetWriteDeadline implements [net.Conn].
func (e *pipeEnd) SetWriteDeadline(t time.Time) error { return e.SetDeadline(t) }
