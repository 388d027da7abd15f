package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"maps"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// connectionID returns what is the same in all events of one connection and in
// no other: the beginning of its SSH session id (RFC 4253, section 7.2).
func connectionID(m ssh.ConnMetadata) string { return hex.EncodeToString(m.SessionID()[:8]) }

// emit makes ev durable, also when its connection has ended.
func (s *Server) emit(ctx context.Context, ev events.Event) error {
	err := s.cfg.Events.Emit(context.WithoutCancel(ctx), ev)
	if err != nil {
		s.cfg.Log.Error("event not written", zap.String("event", string(ev.Name)), zap.Error(err))
	}
	return err
}

// event returns an event about the connection c, whose peer asked for a login.
func event(name events.Name, c *sshserver.Conn, m ssh.ConnMetadata) events.Event {
	ev := events.Event{
		Name: name, Login: names.Login(m.User()), Proto: "ssh", Success: true, // a claim until it is in an identity
		Fields: map[string]any{"connection": connectionID(m), "client": string(m.ClientVersion())},
	}
	if c.Remote.IsValid() {
		ev.AddrRemote = c.Remote.String()
	}
	return ev
}

// personal returns an event about a person whose certificate is good.
func personal(name events.Name, c *sshserver.Conn, m ssh.ConnMetadata, id *sshca.Identity) events.Event {
	ev := event(name, c, m)
	ev.User = id.User
	ev.Fields["cert_serial"], ev.Fields["fingerprint"] = id.Serial, id.Fingerprint
	return ev
}

func (s *Server) loginEvent(c *sshserver.Conn, m ssh.ConnMetadata, id *sshca.Identity) events.Event {
	ev := personal(events.UserLogin, c, m, id)
	if m.User() == srv.ObserverUser {
		ev.Login = ""
	}
	maps.Copy(ev.Fields, map[string]any{
		"method": "certificate", "mfa": cmp.Or(id.Factor, id.MFA), "key_id": id.KeyID, "ca": id.CAFingerprint, "roles": id.Roles, "logins": id.Logins,
	})
	return ev
}

// decisionEvent is about a decision that keeps a person out.
func (s *Server) decisionEvent(c *sshserver.Conn, m ssh.ConnMetadata, id *sshca.Identity, d authz.Decision) events.Event {
	ev := personal(events.AccessDecision, c, m, id)
	ev.Success, ev.Error = d.Allow, d.Reason
	maps.Copy(ev.Fields, place(c, id))
	maps.Copy(ev.Fields, map[string]any{"action": "login", "rule": d.Rule, "role": d.Role, "reason": d.Reason, "lock": d.LockID()})
	return ev
}

// rejectionEvent is about a login that this machine does not have.
func (s *Server) rejectionEvent(c *sshserver.Conn, m ssh.ConnMetadata, id *sshca.Identity, reason string) events.Event {
	ev := personal(events.SessionRejected, c, m, id)
	ev.Error = reason
	maps.Copy(ev.Fields, place(c, id))
	maps.Copy(ev.Fields, map[string]any{"kind": "login", "reason": reason})
	return ev
}

// place is what events of decisions say of the node, and of whom it is asked for.
func place(c *sshserver.Conn, id *sshca.Identity) map[string]any {
	n := hostOf(c).Node()
	return map[string]any{"roles": id.Roles, "node_id": n.ID, "node_name": n.Name, "node_labels": n.Labels}
}

// rejection is one refused attempt to authenticate. What it says of the peer
// are claims.
type rejection struct {
	m      ssh.ConnMetadata
	method string
	cert   *ssh.Certificate // that was shown, or nil
	why    *sshca.Refusal
}

func (s *Server) refusalEvent(c *sshserver.Conn, r rejection) events.Event {
	ev := event(events.AuthRejected, c, r.m)
	ev.Error = string(r.why.Code)
	maps.Copy(ev.Fields, map[string]any{
		"refusal": r.why.Code, "method": r.method, "reason": r.why.Detail, "fingerprint": r.why.Fingerprint,
	})
	if r.cert != nil {
		maps.Copy(ev.Fields, map[string]any{
			"cert_serial": r.cert.Serial, "key_id": r.cert.KeyId, "principals": r.cert.ValidPrincipals,
			"fingerprint": ssh.FingerprintSHA256(r.cert.Key), "ca": ssh.FingerprintSHA256(r.cert.SignatureKey),
		})
	}
	return ev
}

func (s *Server) disconnectEvent(c *sshserver.Conn, since time.Time, err error) events.Event {
	ev := personal(events.ClientDisconnect, c, c, c.Identity)
	maps.Copy(ev.Fields, place(c, c.Identity))
	delete(ev.Fields, "roles")
	ev.Fields["duration_ms"] = time.Since(since)
	if err != nil {
		ev.Fields["reason"], ev.Fields["lock"] = err.Error(), services.LockOf(err)
	}
	return ev
}
