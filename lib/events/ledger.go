//go:build unix

package events

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// ledgerName is the file of slots. Slot 0 holds ledgerMagic; each other one is
	// empty or begins with the record, as in a segment, of a session.start.
	ledgerName  = "open"
	ledgerMagic = "acclgr1\n"
	// slotBytes is the size of a slot. It holds the common fields even when every
	// character is escaped; the others are cut to fit. The file is sparse.
	slotBytes = 32 << 10
	// maxOpen bounds the sessions open at once.
	maxOpen = 1 << 16
)

// OpenSessions is the ledger of sessions that began and have not ended: a file of
// slots, one for each, holding its session.start. After a crash
// [OpenSessions.Recover] ends what the crash left open. With it, every session has
// one session.start and one session.end in the log:
//
//	ledger.Begin(start); emitter.Emit(start); the session; emitter.Emit(end); ledger.End(sid)
//
// A crash between any two of these emits an event again, with the same uid, since
// a session's uids follow from its id. Begin costs one fsync, which concurrent
// callers share; End costs none.
type OpenSessions struct {
	dir    *privateDir
	schema schema
	begins *committer[beginning]

	mu    sync.Mutex
	file  ledgerFile
	slots map[names.SessionID]int64 // of the open sessions
	free  []int64                   // slots that were used and are not
	next  int64                     // the first slot that never was
	left  map[names.SessionID]Event // the starts of sessions of an earlier process
}

// ledgerFile is what the ledger needs of its file.
type ledgerFile interface {
	io.WriterAt
	io.Closer
	Sync() error
}

// beginning is the record of a session on its way into its slot.
type beginning struct {
	slot   int64
	record []byte
}

// NewOpenSessions opens the ledger in dir, which is its own and is made when
// absent. A second one on the same dir is a [fault.Conflict].
func NewOpenSessions(dir string) (*OpenSessions, error) {
	d, err := openPrivateDir(dir)
	if err != nil {
		return nil, err
	}
	o := &OpenSessions{
		dir: d, schema: newSchema(), begins: newCommitter[beginning](),
		slots: map[names.SessionID]int64{}, left: map[names.SessionID]Event{}, next: 1,
	}
	if err := o.open(); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Unavailable, err, "the ledger of sessions cannot be opened"), d.Close())
	}
	return o, nil
}

func unwritableLedger(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, err, "the ledger of sessions cannot be written")
}

// open opens or makes the file, and reads what an earlier process left in it.
func (o *OpenSessions) open() error {
	f, err := o.dir.openAny(ledgerName)
	if err != nil {
		return err
	}
	o.file = f
	if err := o.load(f); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

func (o *OpenSessions) load(f *os.File) error {
	magic := make([]byte, len(ledgerMagic))
	_, err := f.ReadAt(magic, 0)
	switch {
	case err == nil && string(magic) == ledgerMagic:
		if err := o.loadSlots(f); err != nil {
			return err
		}
	case err == nil:
		return fault.New(fault.Internal, "%q in %q is not a ledger of sessions", ledgerName, o.dir.Name())
	case !errors.Is(err, io.EOF):
		return err
	}
	if len(o.left) > 0 {
		return nil
	}
	// Nothing is open: begin anew, so that the file does not keep its largest size.
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(ledgerMagic), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = o.dir.Sync(".")
	}
	o.free, o.next = nil, 1
	return err
}

func (o *OpenSessions) loadSlots(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := (info.Size() + slotBytes - 1) / slotBytes
	data := make([]byte, slotBytes)
	for ; o.next < min(end, maxOpen+1); o.next++ {
		n, err := f.ReadAt(data, o.next*slotBytes)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		start, ok := openStart(data[:n])
		if _, twice := o.left[start.SID]; !ok || twice {
			o.free = append(o.free, o.next)
			continue
		}
		o.left[start.SID], o.slots[start.SID] = start, o.next
	}
	return nil
}

// openStart returns the session.start in a slot. A slot that a crash cut off
// stands for a Begin that did not return, so for no session.
func openStart(slot []byte) (Event, bool) {
	record, _, err := nextFrame(slot)
	if err != nil {
		return Event{}, false
	}
	start, err := ParseEvent(record)
	if err != nil || start.Name != SessionStart {
		return Event{}, false
	}
	_, err = names.ParseSessionID(string(start.SID))
	return start, err == nil
}

// Begin notes durably that the session of start, a session.start, is open. Call
// it before start is emitted; on an error the session must not begin.
func (o *OpenSessions) Begin(start Event) error {
	if _, err := names.ParseSessionID(string(start.SID)); err != nil || start.Name != SessionStart {
		return fault.New(fault.Internal, "events: internal error: %s of session %q begins no session", start.Name, clip(string(start.SID)))
	}
	if start.Time.IsZero() {
		start.Time = time.Now()
	}
	line, err := o.schema.encode(start, slotBytes-frameHeader)
	if err != nil {
		return err
	}
	slot, err := o.claim(start.SID)
	if err != nil {
		return err
	}
	quit, stop := patience()
	defer stop()
	err = o.begins.do(quit, beginning{slot, appendFrame(nil, line)}, o.write)
	if err != nil && !errors.Is(err, errAbandoned) { // else it is still to be written, and the slot taken
		err = errors.Join(err, o.End(start.SID))
	}
	return unwritableLedger(err)
}

// claim takes a slot for sid.
func (o *OpenSessions) claim(sid names.SessionID) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, twice := o.slots[sid]; twice {
		return 0, fault.New(fault.Internal, "events: internal error: session %s began twice", sid)
	}
	slot := o.next
	if n := len(o.free); n > 0 {
		slot, o.free = o.free[n-1], o.free[:n-1]
	} else if slot > maxOpen {
		return 0, fault.New(fault.Unavailable, "%d sessions are open: there is no room for another", maxOpen)
	} else {
		o.next++
	}
	o.slots[sid] = slot
	return slot, nil
}

// write brings records into their slots.
func (o *OpenSessions) write(all []beginning) error {
	for _, b := range all {
		if _, err := o.file.WriteAt(b.record, b.slot*slotBytes); err != nil {
			return err
		}
	}
	return o.file.Sync()
}

// End forgets sid; call it once its session.end was emitted. When that could not
// be emitted leave the session open: the next start ends it. An unknown sid is no
// error.
func (o *OpenSessions) End(sid names.SessionID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	slot, ok := o.slots[sid]
	if !ok {
		return nil
	}
	// Not synced: a session that a power cut brings back ends again, with the same
	// uid.
	if _, err := o.file.WriteAt(make([]byte, frameHeader), slot*slotBytes); err != nil {
		return unwritableLedger(err) // the slot stays taken
	}
	delete(o.slots, sid)
	o.free = append(o.free, slot)
	return nil
}

// Recover ends the sessions that an earlier process left open: for each it calls
// emit with the session.start, which may have been lost, and with a session.end
// marked recovered, and forgets the session when both return nil. Sessions begun
// since the ledger was opened are not touched.
func (o *OpenSessions) Recover(ctx context.Context, emit func(context.Context, Event) error) error {
	o.mu.Lock()
	left := slices.SortedFunc(maps.Values(o.left), func(a, b Event) int { return a.Time.Compare(b.Time) })
	o.mu.Unlock()
	var failed error
	for _, start := range left {
		err := errors.Join(emit(ctx, start), emit(ctx, recoveredEnd(start)))
		if err == nil {
			err = o.End(start.SID)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		o.mu.Lock()
		delete(o.left, start.SID)
		o.mu.Unlock()
	}
	return failed
}

func recoveredEnd(start Event) Event {
	end := Event{
		Name: SessionEnd, SID: start.SID, User: start.User, Login: start.Login, AddrRemote: start.AddrRemote, Proto: start.Proto,
		ServerID: start.ServerID, ServerHostname: start.ServerHostname, ClusterName: start.ClusterName,
		Fields: map[string]any{"recovered": true, "reason": "the process that served the session was killed"},
	}
	for _, key := range []string{"kind", "connection"} {
		if v, ok := start.Fields[key]; ok {
			end.Fields[key] = v
		}
	}
	return end
}

// Close unlocks the ledger.
func (o *OpenSessions) Close() error {
	o.begins.acquire()
	defer o.begins.release()
	return errors.Join(o.file.Close(), o.dir.Close())
}
