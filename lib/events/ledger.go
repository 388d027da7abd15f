//go:build unix

package events

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// openSuffix ends the name of the file that stands for an open session.
const openSuffix = ".open"

// OpenSessions is the ledger of sessions that began and have not ended: a file
// for each, holding its session.start. After a crash [OpenSessions.Recover] ends
// what the crash left open. With it, every session has one session.start and one
// session.end in the log:
//
//	ledger.Begin(start); emitter.Emit(start); the session; emitter.Emit(end); ledger.End(sid)
//
// A crash between any two of these emits an event again, with the same uid, since
// a session's uids follow from its id.
type OpenSessions struct {
	dir    *privateDir
	schema schema

	mu   sync.Mutex
	left map[names.SessionID]bool // of an earlier process, not recovered yet
}

// NewOpenSessions opens the ledger in dir, which is its own and is made when
// absent. A second one on the same dir is a [fault.Conflict].
func NewOpenSessions(dir string) (*OpenSessions, error) {
	d, err := openPrivateDir(dir)
	if err != nil {
		return nil, err
	}
	o := &OpenSessions{dir: d, schema: newSchema(), left: map[names.SessionID]bool{}}
	files, err := fs.ReadDir(d.FS(), ".")
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Unavailable, err, "cannot read the ledger of sessions"), d.close())
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), openSuffix)
		if sid, err := names.ParseSessionID(name); ok && err == nil {
			o.left[sid] = true
		}
	}
	return o, nil
}

// Begin notes durably that the session of start, a session.start, is open. Call
// it before start is emitted; on an error the session must not begin.
func (o *OpenSessions) Begin(start Event) error {
	sid, err := names.ParseSessionID(string(start.SID))
	if err != nil || start.Name != SessionStart {
		return fault.New(fault.Internal, "events: internal error: %s of session %q begins no session", start.Name, clip(string(start.SID)))
	}
	if start.Time.IsZero() {
		start.Time = time.Now()
	}
	line, err := o.schema.encode(start)
	if err != nil {
		return err
	}
	if err := o.write(string(sid)+openSuffix, line); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the ledger of sessions cannot be written")
	}
	return nil
}

func (o *OpenSessions) write(name string, data []byte) error {
	f, err := o.dir.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = o.dir.sync()
	}
	if err != nil {
		return errors.Join(err, o.dir.Remove(name))
	}
	return nil
}

// End forgets sid; call it once its session.end was emitted. When that could not
// be emitted leave the session open: the next start ends it. An unknown sid is no
// error.
func (o *OpenSessions) End(sid names.SessionID) error {
	if _, err := names.ParseSessionID(string(sid)); err != nil {
		return err
	}
	err := o.dir.Remove(string(sid) + openSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err, "the ledger of sessions cannot be written")
	}
	return nil // an entry that comes back after a power cut ends again, with the same uid
}

// Recover ends the sessions that an earlier process left open: for each it calls
// emit with the session.start, which may have been lost, and with a session.end
// marked recovered, and forgets the session when both return nil. Sessions begun
// since the ledger was opened are not touched.
func (o *OpenSessions) Recover(ctx context.Context, emit func(context.Context, Event) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var failed error
	for sid := range o.left {
		if err := o.recover(ctx, sid, emit); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		delete(o.left, sid)
	}
	return failed
}

func (o *OpenSessions) recover(ctx context.Context, sid names.SessionID, emit func(context.Context, Event) error) error {
	start, err := o.read(string(sid) + openSuffix)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the ledger of sessions cannot be read")
	}
	if start.Name == SessionStart { // else a crash cut Begin off, and there was no session
		end := Event{
			Name: SessionEnd, SID: sid, User: start.User, Login: start.Login, AddrRemote: start.AddrRemote, Proto: start.Proto,
			ServerID: start.ServerID, ServerHostname: start.ServerHostname, ClusterName: start.ClusterName,
			Fields: map[string]any{"recovered": true, "reason": "the process that served the session was killed"},
		}
		for _, key := range []string{"kind", "connection"} {
			if v, ok := start.Fields[key]; ok {
				end.Fields[key] = v
			}
		}
		if err := errors.Join(emit(ctx, start), emit(ctx, end)); err != nil {
			return err
		}
	}
	return o.End(sid)
}

// read returns the event in a ledger file; a file that a crash cut off, or that is
// none of ours, gives the zero event.
func (o *OpenSessions) read(name string) (Event, error) {
	f, err := o.dir.open(name)
	if fault.Is(err, fault.BadInput) || errors.Is(err, fs.ErrNotExist) {
		return Event{}, nil
	} else if err != nil {
		return Event{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxEvent+1))
	if err != nil {
		return Event{}, err
	}
	start, err := ParseEvent(data)
	if err != nil {
		return Event{}, nil // a torn file stands for no session
	}
	return start, nil
}

// Close unlocks the ledger.
func (o *OpenSessions) Close() error { return o.dir.close() }
