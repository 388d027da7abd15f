//go:build unix

package recording

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Recorder writes recordings to its spool and hands their parts to the store.
type Recorder struct {
	cfg     Config
	dir     *spoolDir
	sealer  *sealer
	metrics *metrics
	buffers sync.Pool    // of *[]byte, for open parts
	large   sync.Pool    // the same with room for a whole part
	used    atomic.Int64 // bytes in the spool
	waiting atomic.Int64 // parts that are full and not yet closed
	stalled atomic.Int64 // calls that the disk keeps beyond patience
	running sync.WaitGroup

	reserving sync.Mutex
	reserved  bool // the reserve is on disk

	recovering sync.Mutex // held during Recover
	recovered  map[names.SessionID]Summary

	mu       sync.Mutex
	closed   bool
	sessions map[names.SessionID]*session
	left     []names.SessionID // by an earlier process, to be recovered
	ready    []*session        // with something to upload
	wake     chan struct{}     // has a token when ready grew
}

// metrics are the counters of a [Recorder].
type metrics struct {
	parts, failures, lost, uploadFailures, setAside, recovered prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Recorder) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "accessd", Subsystem: "recording", Name: name, Help: help})
	}
	x := &metrics{
		parts:          counter("parts_total", "Parts of recordings closed."),
		failures:       counter("failures_total", "Writes of recordings that failed."),
		lost:           counter("lost_bytes_total", "Bytes that could not be recorded."),
		uploadFailures: counter("upload_failures_total", "Uploads that failed; they are tried again."),
		setAside:       counter("set_aside_total", "Damaged files of the spool that were set aside."),
		recovered:      counter("recovered_total", "Recordings closed after a crash."),
	}
	spool := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "accessd", Subsystem: "recording", Name: "spool_bytes", Help: "Bytes that wait for the store.",
	}, func() float64 { return float64(r.used.Load()) })
	if reg == nil {
		return x, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{x.parts, x.failures, x.lost, x.uploadFailures, x.setAside, x.recovered, spool} {
		errs = append(errs, reg.Register(c))
	}
	return x, errors.Join(errs...)
}

// New opens the spool. A second Recorder on it, in this process or another, is a
// [fault.Conflict]. What an earlier process left is closed by [Recorder.Recover].
func New(cfg Config) (*Recorder, error) {
	if cfg.Dir == "" {
		return nil, fault.New(fault.BadInput, "a recorder needs a directory")
	}
	if cfg.Quota == 0 {
		cfg.Quota = DefaultQuota
	}
	if cfg.Patience == 0 {
		cfg.Patience = DefaultPatience
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxSession == nil {
		cfg.MaxSession = func() int64 { return 0 }
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	r := &Recorder{
		cfg: cfg, sessions: map[names.SessionID]*session{}, recovered: map[names.SessionID]Summary{},
		wake: make(chan struct{}, uploads),
	}
	var err error
	if r.sealer, err = newSealer(cfg.Recipients); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot make a recorder")
	}
	if r.dir, err = openSpoolDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err = r.scan(); err == nil {
		r.metrics, err = newMetrics(cfg.Registerer, r)
	}
	if err != nil {
		_ = r.dir.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "cannot open the spool of recordings")
	}
	return r, nil
}

// scan lists what an earlier process left, and measures it.
func (r *Recorder) scan() error {
	return fs.WalkDir(r.dir.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type().IsRegular() {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			if name == reserveName {
				r.reserved = info.Size() == reserveBytes
				return nil
			}
			r.used.Add(info.Size())
			return nil
		}
		id, err := names.ParseSessionID(name)
		switch {
		case name == "." || path.Dir(name) != ".":
		case err == nil && entry.IsDir():
			r.left = append(r.left, id)
		default:
			r.cfg.Log.Warn("something that is not ours is in the spool of recordings", zap.String("name", name))
		}
		return nil
	})
}

// Close closes the spool. Recordings are closed before, and Run has returned.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	sessions := slices.Collect(maps.Values(r.sessions))
	r.mu.Unlock()
	for _, s := range sessions {
		s.stopRetry()
	}
	r.running.Wait()
	return errors.Join(r.dir.Close(), r.sealer.encoder.Close())
}

// start runs f beside its caller, unless the recorder was closed.
func (r *Recorder) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.running.Go(f)
	}
	return !r.closed
}

// largeBuffer is from where on a buffer has room for a whole part as far as the
// pools are concerned, in bytes: a quiet session never holds one.
const largeBuffer = partBytes / 8

// buffer returns a buffer for an open part.
func (r *Recorder) buffer(busy bool) *[]byte {
	pool := &r.buffers
	if busy {
		pool = &r.large
	}
	if b, ok := pool.Get().(*[]byte); ok {
		return b
	}
	if !busy {
		return new([]byte)
	}
	b := make([]byte, 0, partBytes)
	return &b
}

// keep gives a buffer to later parts.
func (r *Recorder) keep(b *[]byte) {
	if cap(*b) > largeBuffer {
		r.large.Put(b)
	} else {
		r.buffers.Put(b)
	}
}

// Begin begins a recording. When it returns nil what it is of is on disk.
func (r *Recorder) Begin(h Header) (*Recording, error) {
	id, err := names.ParseSessionID(string(h.Session))
	if err != nil {
		return nil, err
	}
	if h.Started.IsZero() {
		h.Started = r.cfg.Now()
	}
	if h.Cluster == "" && r.cfg.Cluster != nil {
		h.Cluster = r.cfg.Cluster()
	}
	if r.stalled.Load() > 0 { // another waits for the disk; there need not be more
		return nil, ErrStalled
	}
	s := &session{r: r, id: id, start: h.start()}
	late := func(err error) { // nobody waits for it any more
		if err == nil {
			r.abandon(s)
		}
	}
	if err := r.within(func() error { return r.begin(s) }, late); err != nil {
		r.metrics.failures.Inc()
		return nil, unwritable(err)
	}
	return newRecording(s, h), nil
}

func (r *Recorder) begin(s *session) error {
	if err := errors.Join(r.room(maxData), r.reserve()); err != nil {
		return err
	}
	switch err := r.dir.Mkdir(string(s.id), 0o700); {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Conflict, "session %s has a recording", s.id)
	case err != nil:
		return err
	}
	if err := s.createState(); err != nil {
		_ = r.dir.RemoveAll(string(s.id)) // what stays is removed by Recover
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s.id] = s
	return nil
}

// abandon removes what Begin made for nobody.
func (r *Recorder) abandon(s *session) {
	r.mu.Lock()
	delete(r.sessions, s.id)
	r.mu.Unlock()
	r.used.Add(-s.stateSize)
	if err := r.dir.RemoveAll(string(s.id)); err != nil {
		r.cfg.Log.Warn("a recording that did not begin stays in the spool", zap.String("session", string(s.id)), zap.Error(err))
	}
}

func (s *session) createState() error {
	f, err := s.r.dir.New(s.path(stateName))
	if err != nil {
		return err
	}
	defer f.Close()
	state := appendStart(nil, s.start)
	if _, err := f.Write(state); err != nil {
		return err
	}
	s.stateSize = int64(len(state))
	s.r.used.Add(s.stateSize)
	return nil
}

// room returns an error unless n more bytes fit into the quota.
func (r *Recorder) room(n int) error {
	if r.used.Load()+int64(n) > r.cfg.Quota {
		return fault.New(fault.Unavailable, "the recording cannot be written: the spool of recordings is full").
			WithHint("the store of recordings has been away for long; once it is back the spool drains by itself")
	}
	return nil
}

const (
	// reserveName is a file that keeps room on the disk, so that recordings which end
	// because the disk is full can be closed.
	reserveName = "reserve"
	// reserveBytes is its size: a part that does not compress, and some that do.
	reserveBytes = MaxPart + 384<<10
)

// reserve makes the reserve unless it is there.
func (r *Recorder) reserve() error {
	r.reserving.Lock()
	defer r.reserving.Unlock()
	if r.reserved {
		return nil
	}
	err := r.writeFile(reserveName, make([]byte, reserveBytes))
	r.reserved = err == nil
	return err
}

// giveReserve removes the reserve where that may mend err, and reports whether it is
// worth another try.
func (r *Recorder) giveReserve(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return false
	}
	r.reserving.Lock()
	defer r.reserving.Unlock()
	r.reserved = false
	return r.dir.remove(reserveName) == nil // or somebody else did just now
}

// unwritable says to a person why a recording cannot be written.
func unwritable(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	reason := "the spool of recordings is broken"
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		reason = errno.Error()
	}
	return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the recording cannot be written: %s", reason))
}

// setAside moves a session's file out of the way, for whoever looks into it.
func (r *Recorder) setAside(id names.SessionID, name string, cause error) error {
	kept := fmt.Sprintf("%s.%s%s", id, name, keptSuffix)
	for n := 2; ; n++ {
		if _, err := r.dir.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			break
		}
		kept = fmt.Sprintf("%s.%s.%d%s", id, name, n, keptSuffix)
	}
	r.metrics.setAside.Inc()
	r.cfg.Log.Error("a damaged file of a recording was set aside",
		zap.String("session", string(id)), zap.String("kept", kept), zap.Error(cause))
	return r.dir.Rename(path.Join(string(id), name), kept)
}

// Release says that the session.end of a recording is in the log: nothing of it
// stays in the spool once the store has it all.
func (r *Recorder) Release(id names.SessionID) {
	r.mu.Lock()
	s := r.sessions[id]
	r.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released {
		return
	}
	s.released = true
	if err := s.appendStateLocked(appendMark(nil, stateReleased)); err != nil {
		r.cfg.Log.Warn("a recording is asked about again after a restart", zap.Error(err))
	}
	s.forgetLocked()
}

// forgetLocked removes s from the spool once nobody needs it.
func (s *session) forgetLocked() {
	if !s.released || !s.completed {
		return
	}
	if err := s.r.dir.RemoveAll(string(s.id)); err != nil {
		s.r.cfg.Log.Warn("a recording that the store has stays in the spool", zap.String("session", string(s.id)), zap.Error(err))
	}
	s.r.used.Add(-s.stateSize)
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	delete(s.r.sessions, s.id)
}
