package remote

import (
	"io"
	"net"
	"sync"
)

// room is what one direction of a pipe holds, in bytes: both ends of an SSH
// connection write first.
const room = 256 << 10

// half is one direction of a connection in memory.
type half struct {
	mu     sync.Mutex
	wake   *sync.Cond
	data   []byte
	closed bool
}

func newHalf() *half {
	h := &half{}
	h.wake = sync.NewCond(&h.mu)
	return h
}

func (h *half) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.data) == 0 && !h.closed {
		h.wake.Wait()
	}
	if len(h.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.data)
	h.data = h.data[n:]
	h.wake.Broadcast()
	return n, nil
}

func (h *half) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.data) > room && !h.closed {
		h.wake.Wait()
	}
	if h.closed {
		return 0, io.ErrClosedPipe
	}
	h.data = append(h.data, p...)
	h.wake.Broadcast()
	return len(p), nil
}

func (h *half) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.wake.Broadcast()
}

// memoryConn is one end of a connection in memory; what it embeds tells the
// addresses.
type memoryConn struct {
	net.Conn

	in, out *half
}

func (c memoryConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c memoryConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c memoryConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

func memoryPipe() (near, far net.Conn) {
	a, b := net.Pipe()
	up, down := newHalf(), newHalf()
	return memoryConn{a, down, up}, memoryConn{b, up, down}
}
