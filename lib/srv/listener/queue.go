package listener

import (
	"net"
	"sync"
	"time"
)

// queue gives the connections of one protocol to whoever serves it.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  func() net.Addr
}

var _ net.Listener = (*queue)(nil)

func newQueue(addr func() net.Addr) *queue {
	return &queue{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case <-q.done: // a closed listener gives out nothing, even if one waits
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr() }

// put reports whether c was accepted within the time.
func (q *queue) put(c net.Conn, within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case q.conns <- c:
		return true
	case <-q.done:
	case <-t.C:
	}
	return false
}
