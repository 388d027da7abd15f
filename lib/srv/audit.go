package srv

import (
	"fmt"
	"maps"
	"time"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// event returns an event about c with what every event of a connection has.
func (c *Client) event(name events.Name, fields ...map[string]any) events.Event {
	e := events.Event{
		Name: name, User: c.cfg.Identity.User, Login: c.cfg.Login, Proto: "ssh", Success: true,
		Fields: map[string]any{"connection": c.cfg.ID},
	}
	if c.cfg.Remote.IsValid() {
		e.AddrRemote = c.cfg.Remote.String()
	}
	for _, f := range fields {
		maps.Copy(e.Fields, f)
	}
	return e
}

// place is what events say of where something happened.
func (c *Client) place() map[string]any {
	node := c.cfg.Node()
	return map[string]any{"node_id": node.ID, "node_name": node.Name, "node_labels": node.Labels}
}

// credential is what access.decision, session.start and session.rejected say
// of who asks and where.
func (c *Client) credential() map[string]any {
	id, fields := c.cfg.Identity, c.place()
	maps.Copy(fields, map[string]any{"roles": id.Roles, "cert_serial": id.Serial, "fingerprint": id.Fingerprint})
	return fields
}

func (c *Client) decisionEvent(d authz.Decision, action authz.Action, target string) events.Event {
	e := c.event(events.AccessDecision, c.credential(), map[string]any{
		"action": action, "rule": d.Rule, "role": d.Role, "reason": d.Reason, "lock": d.LockID(), "target": target,
	})
	if !d.Allow {
		e.Success, e.Error = false, d.Reason
	}
	return e
}

func (c *Client) rejectionEvent(r refusal, reason string) events.Event {
	e := c.event(events.SessionRejected, c.credential(), map[string]any{
		"kind": r.kind, "action": r.action, "target": r.target, "reason": reason,
	})
	e.Success, e.Error = false, reason
	return e
}

func (s *session) startEvent() events.Event {
	id, r, o := s.client.cfg.Identity, s.request, s.decision.Options
	fields := map[string]any{
		"kind": r.kind, "pty": r.terminal != nil, "record": s.recorded, "rule": s.decision.Rule, "role": s.decision.Role,
		"key_id": id.KeyID, "ca": id.CAFingerprint, "expires": id.ValidBefore,
	}
	if r.terminal != nil {
		w := r.terminal.Window
		fields["term"] = r.terminal.Term
		fields["terminal_size"] = fmt.Sprintf("%d:%d", w.Columns, w.Rows)
	}
	switch r.kind {
	case KindShell:
	case KindExec:
		fields["command"] = r.line
	case KindSubsystem:
		fields["subsystem"] = r.line
	}
	if r.agent {
		fields["agent"] = true
	}
	if r.x11 != nil {
		fields["x11"] = true
	}
	if len(r.env) > 0 {
		env := make(map[string]string, len(r.env))
		for _, v := range r.env {
			env[v.Name] = v.Value
		}
		fields["env"] = env
	}
	if o.SessionTTL > 0 {
		fields["session_ttl"] = o.SessionTTL
	}
	if o.IdleTimeout > 0 {
		fields["idle_timeout"] = o.IdleTimeout
	}
	e := s.client.event(events.SessionStart, s.client.credential(), fields)
	e.SID, e.Time = s.id, s.started
	return e
}

func (s *session) execEvent() events.Event {
	e := s.client.event(events.Exec, s.client.place(), map[string]any{"command": s.request.line, "pty": s.request.terminal != nil})
	e.SID = s.id
	return e
}

func (s *session) endEvent(o outcome) events.Event {
	fields := map[string]any{
		"kind": s.request.kind, "duration_ms": time.Since(s.begun).Milliseconds(),
		"bytes_in": s.in.Load(), "bytes_out": s.out.Load(),
	}
	if o.reason != "" {
		fields["reason"], fields["lock"] = o.reason, o.lock
	}
	maps.Copy(fields, s.rewind())
	switch {
	case o.exit == nil:
	case o.exit.Signal != "":
		fields["exit_signal"] = o.exit.Signal
	default:
		fields["exit_code"] = o.exit.Code
	}
	e := s.client.event(events.SessionEnd, s.client.place(), fields)
	e.SID = s.id
	return e
}

// targetEvent is about the decision on where a forward leads, or listens.
func (c *Client) targetEvent(f *forward, d authz.Decision, e Endpoint, refused error) events.Event {
	ev := c.decisionEvent(d, f.action, e.String())
	if f.target.Addr.IsValid() {
		ev.Fields["addr"] = f.target.Addr.String()
	}
	if refused != nil && d.Allow {
		ev.Success, ev.Error = false, refused.Error()
		ev.Fields["reason"] = fault.Public(refused)
	}
	return ev
}

// portEvent is about a forward to or from e.
func (c *Client) portEvent(f *forward, e Endpoint, state string, err error) events.Event {
	ev := c.event(events.Port, c.place(), map[string]any{
		"state": state, "action": f.action, "direction": "local", "target": e.String(),
	})
	if f.action == authz.ActionForwardRemote {
		ev.Fields["direction"], ev.Fields["listen"] = "remote", e.String()
		delete(ev.Fields, "target")
	}
	if f.target.Addr.IsValid() {
		ev.Fields["addr"] = f.target.Addr.String()
	}
	if state == "closed" {
		ev.Fields["bytes_in"], ev.Fields["bytes_out"] = f.toNode, f.toClient
		ev.Fields["duration_ms"] = time.Since(f.begun).Milliseconds()
	}
	if err != nil {
		ev.Success, ev.Error = false, err.Error()
		ev.Fields["reason"], ev.Fields["lock"] = reason(err), services.LockOf(err)
	}
	return ev
}
