package srv

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/srv/sftp"
)

// transfer carries a session of files and reads what passes.
type transfer interface {
	FromClient(ctx context.Context, r io.Reader) error
	FromServer(ctx context.Context, r io.Reader) error
}

// files returns what copies standard input and output of a session that carries
// files; nil when s is none.
func (h *channel) files(s *session, streams Pipes) (in, out func()) {
	t := h.transfer(s, streams)
	if t == nil {
		return nil, nil
	}
	var over atomic.Bool // the process has ended its output, so the client's side may fail
	in = func() {
		if err := t.FromClient(h.ctx, counted{Reader: h.ch, session: s, total: &s.in}); err != nil && !over.Load() {
			h.cancel(err)
		}
	}
	out = func() {
		if err := t.FromServer(h.ctx, streams.Stdout); err != nil {
			h.cancel(err)
		}
		over.Store(true)
	}
	return in, out
}

// transfer returns what stands between the client and the process of s, if it
// carries files.
func (h *channel) transfer(s *session, streams Pipes) transfer {
	client := counted{Writer: h.ch, session: s, total: &s.out}
	switch {
	case s.request.kind == KindSubsystem:
		return sftp.New(sftp.Config{
			Allow:  s.mayCopy,
			Report: func(ctx context.Context, op sftp.Operation) error { return s.report(ctx, events.SFTP, op) },
		}, client, streams.Stdin)
	case s.request.scp != nil:
		return sftp.NewSCP(sftp.Config{
			Allow:  s.mayCopy,
			Report: func(ctx context.Context, op sftp.Operation) error { return s.report(ctx, events.SCP, op) },
		}, *s.request.scp, client, streams.Stdin)
	}
	return nil
}

// mayCopy asks the rules about a file to be read or written.
func (s *session) mayCopy(write bool) error {
	action := authz.ActionSFTPRead
	if write {
		action = authz.ActionSFTPWrite
	}
	return s.client.decide(action).Err("")
}

// report makes it durable what became of a file.
func (s *session) report(ctx context.Context, name events.Name, op sftp.Operation) error {
	c := s.client
	e := c.event(name, c.place(), map[string]any{"action": op.Action, "path": op.Path, "write": op.Write, "status": int64(op.Status)})
	e.SID = s.id
	for field, text := range map[string]string{"target_path": op.Target, "flags": op.Flags, "attributes": op.Attrs, "sha256": op.SHA256} {
		if text != "" {
			e.Fields[field] = text
		}
	}
	if op.Action == "close" {
		e.Fields["bytes_read"], e.Fields["bytes_written"], e.Fields["sequential"] = op.BytesRead, op.BytesWritten, op.Sequential
	}
	if op.Error != "" {
		e.Success, e.Error, e.Fields["reason"] = false, op.Error, op.Error
	}
	if err := c.m.cfg.Events.Emit(context.WithoutCancel(ctx), e); err != nil {
		return c.unrecorded(err)
	}
	return nil
}

// counted is a stream whose bytes are a session's.
type counted struct {
	io.Reader
	io.Writer

	session *session
	total   *atomic.Int64
}

// Read implements [io.Reader].
func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.session.count(c.total, n)
	return n, err
}

// Write implements [io.Writer].
func (c counted) Write(p []byte) (int, error) {
	c.session.count(c.total, len(p))
	return c.Writer.Write(p)
}
