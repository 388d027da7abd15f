package srv

import (
	"io"
	"net"
	"sync"
)

// half is one direction of a connection in memory. It takes everything at once,
// since both ends of an SSH connection write first.
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
	return n, nil
}

func (h *half) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, io.ErrClosedPipe
	}
	h.data = append(h.data, p...)
	h.wake.Broadcast()
	return len(p), nil
}

func (h *half) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.wake.Broadcast()
	return nil
}

// memoryConn is one end of a connection in memory; what it embeds tells the
// addresses.
type memoryConn struct {
	net.Conn
	in, out *half
}

func (c memoryConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c memoryConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c memoryConn) CloseWrite() error { return c.out.Close() }

func (c memoryConn) Close() error {
	_ = c.in.Close()
	return c.out.Close()
}

func memoryPipe() (client, server net.Conn) {
	a, b := net.Pipe()
	up, down := newHalf(), newHalf()
	return memoryConn{a, down, up}, memoryConn{b, up, down}
}
