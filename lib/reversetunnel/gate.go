package reversetunnel

import "sync"

// gate counts who is inside, and can be closed to newcomers. The zero gate is
// open.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{} // closed when the gate is and nobody is inside
}

// enter lets one in, unless the gate is closed or limit are inside.
func (g *gate) enter(limit int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.inside >= limit {
		return false
	}
	g.inside++
	return true
}

// leave is owed by who was let in.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.settleLocked()
}

// close lets nobody in any more. What it returns is closed when the last has
// left. It may be called again.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed, g.empty = true, make(chan struct{})
		g.settleLocked()
	}
	return g.empty
}

func (g *gate) settleLocked() {
	if g.closed && g.inside == 0 {
		close(g.empty)
	}
}
