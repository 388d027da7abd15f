package srv

import (
	"io"
	"sync"
)

const (
	// recent is how much of the latest output somebody who begins to watch sees,
	// in bytes: a screen and more.
	recent = 16 << 10
	// maxBehind is how far a watcher may be behind before it is let go, in bytes.
	maxBehind = 1 << 20
	// maxWatchers bounds who watches one session.
	maxWatchers = 16
)

// stage is where others see a session's output. The session never waits for
// them: who cannot keep up is let go. The zero stage is empty.
type stage struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
	last     []byte // the latest output; kept for shells only
	over     bool
}

// watcher is somebody who sees a session's output.
type watcher struct {
	mu     sync.Mutex
	ready  sync.Cond
	behind []byte
	end    error // why there is no more; io.EOF when the session has ended
}

func newWatcher() *watcher {
	w := &watcher{}
	w.ready.L = &w.mu
	return w
}

// enter lets w watch; it begins with the latest output.
func (s *stage) enter(w *watcher) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return errOver
	case len(s.watchers) >= maxWatchers:
		return &limitError{limit: maxWatchers, what: "people watch one session"}
	}
	if s.watchers == nil {
		s.watchers = map[*watcher]struct{}{}
	}
	s.watchers[w] = struct{}{}
	w.push(s.last)
	return nil
}

// leave ends w's watching.
func (s *stage) leave(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, w)
	w.stop(io.EOF)
}

// show lets the watchers see p. With keep it is remembered for those to come.
func (s *stage) show(p []byte, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if keep {
		s.remember(p)
	}
	for w := range s.watchers {
		if !w.push(p) {
			delete(s.watchers, w)
		}
	}
}

// remember keeps the latest output.
func (s *stage) remember(p []byte) {
	p = p[max(0, len(p)-recent):]
	if over := len(s.last) + len(p) - recent; over > 0 {
		s.last = append(s.last[:0], s.last[over:]...)
	}
	s.last = append(s.last, p...)
}

// close ends the watching of all.
func (s *stage) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for w := range s.watchers {
		w.stop(io.EOF)
	}
	s.watchers, s.last = nil, nil
}

// push hands p to w and reports whether w may stay.
func (w *watcher) push(p []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.behind)+len(p) > maxBehind {
		w.end, w.behind = errBehind, nil
	} else if w.end == nil {
		w.behind = append(w.behind, p...)
	}
	w.ready.Signal()
	return w.end == nil
}

// stop says that there is no more.
func (w *watcher) stop(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.end == nil {
		w.end = why
	}
	w.ready.Signal()
}

// next returns the output since the last call, or why there is no more.
func (w *watcher) next() ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.behind) == 0 && w.end == nil {
		w.ready.Wait()
	}
	p := w.behind
	w.behind = nil
	if len(p) > 0 {
		return p, nil
	}
	return nil, w.end
}
