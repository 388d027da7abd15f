package sftp

import (
	"io"
	"sync"
)

// maxAnswers bounds the bytes of answers that wait for a report of their own or
// of one before them. Over it the server is not read.
const maxAnswers = 512 << 10

// answerCost is what an answer takes beside its bytes.
const answerCost = 128

// answer is a whole number of packets, or a part of one that the next goes on
// with.
type answer struct {
	p     []byte
	ready bool // may go to the client
}

// answers puts what goes to the client into its order: the server's, with the
// filter's own answers between. What must wait for a report holds back what
// comes after it. Nothing is copied while nothing waits.
//
// There is no goroutine behind it: whoever makes the first answer ready writes
// it, and all that are ready behind it.
type answers struct {
	w io.Writer

	mu      sync.Mutex
	moved   sync.Cond // the queue has become shorter, or err is set
	queue   []*answer
	later   []*answer // the filter's own, while the server is inside a packet
	size    int       // bytes of both, and their cost
	writing bool      // somebody writes, without holding mu
	inside  bool      // the server has begun a packet and not ended it
	err     error
}

func newAnswers(w io.Writer) *answers {
	a := &answers{w: w}
	a.moved.L = &a.mu
	return a
}

// pass sends p, which the server's stream goes on with; whole tells whether it
// ends where a packet does. Only one goroutine may call it.
func (a *answers) pass(p []byte, whole bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.err == nil && len(a.queue) > 0 && a.size+len(p) > maxAnswers {
		a.moved.Wait()
	}
	switch {
	case a.err != nil:
		return a.err
	case len(a.queue) == 0 && !a.writing:
		a.write(p)
	default:
		a.add(&answer{p: append([]byte(nil), p...), ready: true})
	}
	a.inside = !whole
	if whole && len(a.later) > 0 {
		a.queue = append(a.queue, a.later...)
		a.later = nil
	}
	a.drain()
	return a.err
}

// hold takes a place for the packet p, which goes when it is released. own
// tells that the filter made it: it may come inside a packet of the server's.
func (a *answers) hold(p []byte, own bool) (*answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.err == nil && a.size > 0 && a.size+len(p) > maxAnswers {
		a.moved.Wait()
	}
	if a.err != nil {
		return nil, a.err
	}
	h := &answer{p: append([]byte(nil), p...)}
	if own && a.inside {
		a.later = append(a.later, h)
		a.size += len(h.p) + answerCost
	} else {
		a.add(h)
	}
	return h, nil
}

func (a *answers) add(h *answer) {
	a.queue = append(a.queue, h)
	a.size += len(h.p) + answerCost
}

// release lets h go, and what is ready behind it.
func (a *answers) release(h *answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h.ready = true
	a.drain()
}

// drain writes what is ready, unless somebody does already.
func (a *answers) drain() {
	for !a.writing && a.err == nil && len(a.queue) > 0 && a.queue[0].ready {
		p, n := a.queue[0].p, 1
		for n < len(a.queue) && a.queue[n].ready && len(p)+len(a.queue[n].p) <= bufferSize {
			p = append(p, a.queue[n].p...)
			n++
		}
		a.size -= len(p) + n*answerCost
		clear(a.queue[:n])
		a.queue = a.queue[n:]
		a.moved.Broadcast()
		a.write(p)
	}
}

// write writes p without holding mu; writing keeps others from it.
func (a *answers) write(p []byte) {
	a.writing = true
	a.mu.Unlock()
	_, err := a.w.Write(p)
	a.mu.Lock()
	a.writing = false
	if err != nil {
		a.failLocked(err)
	}
}

// fail lets nothing go any more.
func (a *answers) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failLocked(err)
}

func (a *answers) failLocked(err error) {
	if a.err == nil {
		a.err = err
	}
	a.moved.Broadcast()
}
