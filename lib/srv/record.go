package srv

import (
	"context"
	"errors"
	"os"

	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// recordingMode tells how s is to be recorded. Of a session that carries files
// there are events of each, and nothing to see.
func (s *session) recordingMode() services.Recording {
	if s.request.kind == KindSubsystem || s.request.scp != nil {
		return services.RecordOff
	}
	return s.decision.Options.Recording()
}

// record begins the recording of s. An error says that s may not be without one.
func (s *session) record(ctx context.Context) error {
	s.recorded = s.recordingMode()
	if s.recorded == services.RecordOff {
		return nil
	}
	tape, err := s.client.m.cfg.Recorder.Begin(s.header(ctx))
	if err == nil {
		s.tape = tape
		return nil
	}
	if s.recorded == services.RecordStrict {
		return err
	}
	s.untaped = err
	return nil
}

// header is what the recording of s begins with.
func (s *session) header(ctx context.Context) recording.Header {
	c, r, node := s.client, s.request, s.client.cfg.Node()
	h := recording.Header{
		Session: s.id, Started: s.started, User: c.cfg.Identity.User, Login: c.cfg.Login,
		NodeID: node.ID, NodeName: string(node.Name), Kind: string(r.kind),
		OnFail: func(err error) { _ = s.unrecordable(ctx, err) }, // it has ended the session, or is in the log
	}
	if r.kind == KindExec {
		h.Command = r.line
	}
	if t := r.terminal; t != nil {
		h.Terminal, h.Term, h.Columns, h.Rows = true, t.Term, t.Window.Columns, t.Window.Rows
	}
	return h
}

// print records what flows before it goes on. An error says that it must not.
func (s *session) print(ctx context.Context, stream accessdv1.Stream, p []byte) error {
	if s.tape == nil {
		return nil
	}
	if err := s.tape.Print(stream, p); err != nil {
		return s.unrecordable(ctx, err)
	}
	if s.gap.Load() {
		s.gap.Store(false)
	}
	return nil
}

// input records what the process is to read, where the role wants that.
func (s *session) input(ctx context.Context, p []byte) error {
	if !s.decision.Options.RecordInput {
		return nil
	}
	return s.print(ctx, accessdv1.Stream_STREAM_STDIN, p)
}

// resize records a new size of the terminal.
func (s *session) resize(ctx context.Context, w sshwire.WindowChange) {
	if s.tape == nil {
		return
	}
	if err := s.tape.Resize(w.Columns, w.Rows); err != nil {
		_ = s.unrecordable(ctx, err) // it has ended the session, or is in the log
	}
}

// unrecordable deals with what could not be recorded because of err: it ends the
// session and returns why, or says in the log that something is missing.
func (s *session) unrecordable(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrClosed) {
		return err // so has the session
	}
	// What a disk keeps goes on with nobody, whatever the role says: the bytes that it
	// has are not the client's yet.
	if stalled := errors.Is(err, recording.ErrStalled); stalled || s.recorded == services.RecordStrict {
		err = fault.Wrap(fault.Unavailable, err, "the session can be recorded no longer: "+fault.Public(err))
		s.cancel(err)
		return err
	}
	if !s.gap.Swap(true) {
		s.reportGap(ctx, err)
	}
	return nil
}

// reportGap says in the log that a part of the recording is missing.
func (s *session) reportGap(ctx context.Context, err error) {
	c := s.client
	e := c.event(events.RecordingGap, c.place(), map[string]any{"reason": fault.Public(err)})
	e.SID, e.Success, e.Error = s.id, false, err.Error()
	if err := c.m.cfg.Events.Emit(context.WithoutCancel(ctx), e); err != nil {
		c.m.cfg.Log.Error("a gap in a recording is not in the log", zap.String("sid", string(s.id)), zap.Error(err))
	}
}

// rewind ends the recording of s, and returns what session.end says of it.
func (s *session) rewind() map[string]any {
	if s.tape == nil {
		return nil
	}
	summary, err := s.tape.Close()
	if err != nil {
		s.client.m.cfg.Log.Error("a recording is not closed; the next start will do it", zap.String("sid", string(s.id)), zap.Error(err))
		return map[string]any{"recording_open": true} // recording.complete has its root
	}
	return recordingFields(summary)
}

// recordingFields are what session.end says of a recording.
func recordingFields(s recording.Summary) map[string]any {
	return map[string]any{
		"recording_parts": int64(s.Parts), "recording_root": s.Root, "recording_bytes": s.Bytes, "recording_sealed": s.Sealed,
	}
}
