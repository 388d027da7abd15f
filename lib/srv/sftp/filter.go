package sftp

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/accessd/accessd/lib/fault"
)

// maxReports bounds the reports of a session that are made at the same time. A
// durable write takes milliseconds and many share one, so this is what keeps a
// client that sends hundreds of requests ahead from waiting for each.
const maxReports = 64

// Config configures a [Filter].
type Config struct {
	// Allow returns nil when the person may read, or write, and why not
	// otherwise. It is asked for every request that takes a right, so it must be
	// quick, and may change its mind. Required.
	Allow func(write bool) error
	// Report makes op durable. The answer goes to the client after it; an error
	// ends the session. It is called by several goroutines. Required.
	Report func(ctx context.Context, op Operation) error
}

// Filter stands between one SFTP client and its server.
type Filter struct {
	cfg     Config
	server  io.Writer
	close   func() // the server's input, once
	answers *answers
	reports chan struct{} // holds a token for each that is made
	held    atomic.Int64  // bytes kept by contents

	mu          sync.Mutex
	room        sync.Cond // outstanding has become smaller, or err is set
	outstanding map[uint32]request
	handles     map[string]*file
	opening     int   // opens among outstanding
	pumps       int   // that have not returned
	err         error // why the filter has ended
}

// New returns a filter that writes to client what the server answers, and to
// server what the client asks. Both [Filter.FromClient] and [Filter.FromServer]
// must be run. It may close server while a write to it waits.
func New(cfg Config, client io.Writer, server io.WriteCloser) *Filter {
	f := &Filter{
		cfg: cfg, server: server, close: sync.OnceFunc(func() { _ = server.Close() }), // there is nobody to tell
		answers: newAnswers(client), reports: make(chan struct{}, maxReports),
		outstanding: map[uint32]request{}, handles: map[string]*file{}, pumps: 2,
	}
	f.room.L = &f.mu
	return f
}

// allow decides whether a right is there. For what either right is enough, the
// reason given is that of reading.
func (f *Filter) allow(n need) error {
	switch n {
	case needNothing:
	case needEither:
		err := f.cfg.Allow(false)
		if err == nil || f.cfg.Allow(true) == nil {
			return nil
		}
		return err
	case needRead:
		return f.cfg.Allow(false)
	case needWrite:
		return f.cfg.Allow(true)
	case needBoth:
		if err := f.cfg.Allow(false); err != nil {
			return err
		}
		return f.cfg.Allow(true)
	}
	return nil
}

// outcome is an answer and what is to be reported before it goes.
type outcome struct {
	op     *Operation // nil: nothing
	packet []byte
	own    bool // the filter's, not the server's
}

// answer reports the operation of o and then sends the packet, in its place
// among the answers. wg is of the caller, who waits for it. When nothing can be
// sent any more the operation is reported all the same.
func (f *Filter) answer(ctx context.Context, wg *sync.WaitGroup, o outcome) error {
	op := o.op
	h, err := f.answers.hold(o.packet, o.own)
	if err != nil && op != nil {
		return errors.Join(err, f.cfg.Report(ctx, *op))
	}
	if err != nil {
		return err
	}
	if op == nil {
		f.answers.release(h)
		return nil
	}
	f.reports <- struct{}{}
	wg.Go(func() {
		defer func() { <-f.reports }()
		if err := f.cfg.Report(ctx, *op); err != nil {
			f.fail(err)
			return
		}
		f.answers.release(h)
	})
	return nil
}

// fail ends the filter: nothing goes either way any more.
func (f *Filter) fail(err error) {
	f.answers.fail(err)
	f.mu.Lock()
	first := f.err == nil
	if first {
		f.err = err
	}
	f.room.Broadcast()
	f.mu.Unlock()
	if first {
		f.close() // the server ends, so its pump does
	}
}

// end is the last act of a pump that stops because of err; nil means the
// stream's end. The last pump reports what was left open.
func (f *Filter) end(ctx context.Context, wg *sync.WaitGroup, err error) error {
	wg.Wait()
	if err != nil {
		f.fail(err)
	}
	f.mu.Lock()
	f.pumps--
	last := f.pumps == 0
	if err == nil && !errors.Is(f.err, errGone) {
		err = f.err
	}
	f.mu.Unlock()
	if !last {
		return err
	}
	return errors.Join(err, f.leave(context.WithoutCancel(ctx)))
}

// leave reports what was asked for and not answered, and the files that are
// open.
func (f *Filter) leave(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	report := func(op Operation) {
		op.Status, op.Error = statusConnectionLost, ended
		f.reports <- struct{}{}
		wg.Go(func() {
			defer func() { <-f.reports }()
			if err := f.cfg.Report(ctx, op); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = err
			}
		})
	}
	for _, r := range f.outstanding {
		switch {
		case r.op != nil:
			report(*r.op)
		case r.action == actClose:
			report(r.file.closed())
		}
	}
	for _, open := range f.handles {
		report(open.closed())
	}
	wg.Wait()
	return failed
}

// errGone ends a pump whose other side has ended.
var errGone = fault.New(fault.Unavailable, "sftp: the session has ended")
