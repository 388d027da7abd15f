package srv

import (
	"runtime"
	"sync"
)

// spawner runs functions on one thread of its own, which lives as long as
// somebody holds the spawner. Processes are started there because the kernel
// sends the parent-death signal when the thread that started a process ends,
// not when its process does (PR_SET_PDEATHSIG, prctl(2)).
type spawner struct {
	mu   sync.Mutex
	held int
	jobs chan func() // nil while nobody holds it
}

// hold keeps the thread; each hold needs a release.
func (s *spawner) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held++
	if s.held > 1 {
		return
	}
	jobs := make(chan func())
	s.jobs = jobs
	go func() { // ends with the last release
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for job := range jobs {
			job()
		}
	}()
}

// do runs f on the thread; the caller holds it.
func (s *spawner) do(f func()) {
	s.mu.Lock()
	jobs := s.jobs
	s.mu.Unlock()
	done := make(chan struct{})
	jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

// release lets the thread go when nobody else holds it.
func (s *spawner) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held--
	if s.held == 0 {
		close(s.jobs)
		s.jobs = nil
	}
}
