package proxy

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

// emitTime bounds the wait for an event of a connection that is gone.
const emitTime = 5 * time.Second

// Emitter writes events durably; [events.Emitter] is one.
type Emitter interface {
	Emit(ctx context.Context, ev events.Event) error
}

// audit writes this package's events.
type audit struct {
	out Emitter
	log *zap.Logger
}

// login records that the certificate of id let a person in.
func (a *audit) login(c *sshserver.Conn, m ssh.ConnMetadata, id *sshca.Identity) error {
	ev := event(events.UserLogin, c, m, map[string]any{
		"method": "certificate", "mfa": cmp.Or(id.Factor, id.MFA), "key_id": id.KeyID, "ca": id.CAFingerprint,
		"roles": id.Roles, "logins": id.Logins,
	})
	ev.User, ev.Success = id.User, true
	if v, ok := parseVisit(m.User()); ok {
		ev.Login = v.login
	}
	identify(ev, id)
	return a.emit(c.Context(), ev)
}

// rejection is one refused attempt to authenticate.
type rejection struct {
	method string
	key    ssh.PublicKey // that was shown, or nil
	why    *sshca.Refusal
	lock   services.LockID // that is why, or ""
}

// rejected records r. What it says of the peer are claims.
func (a *audit) rejected(c *sshserver.Conn, m ssh.ConnMetadata, r rejection) {
	ev := event(events.AuthRejected, c, m, map[string]any{"refusal": r.why.Code, "method": r.method, "reason": r.why.Detail, "lock": r.lock})
	ev.User, ev.Error = names.UserName(m.User()), string(r.why.Code)
	if cert, ok := r.key.(*ssh.Certificate); ok {
		maps.Copy(ev.Fields, map[string]any{
			"fingerprint": ssh.FingerprintSHA256(cert.Key), "ca": ssh.FingerprintSHA256(cert.SignatureKey),
			"cert_serial": strconv.FormatUint(cert.Serial, 10), "key_id": cert.KeyId, "principals": cert.ValidPrincipals,
		})
	} else if r.key != nil {
		ev.Fields["fingerprint"] = ssh.FingerprintSHA256(r.key)
	}
	_ = a.emit(c.Context(), ev) // it is refused all the same
}

// asked is the question of a decision: who wants to go where, as the client
// wrote it, and the node that means, if any.
type asked struct {
	who   *person
	host  string
	port  uint32
	login names.Login // as whom; "" when the proxy does not know
	node  services.Node
	known bool
	// observes is set when it is to follow the sessions of others there.
	observes bool
	bar      error // why it is refused whatever the rules say, or nil
}

// decided records a decision before it has an effect.
func (a *audit) decided(ctx context.Context, c *sshserver.Conn, q asked, d authz.Decision) error {
	ev := event(events.AccessDecision, c, c, map[string]any{
		"action": "connect", "target": fmt.Sprintf("%s:%d", q.host, q.port), "rule": d.Rule, "role": d.Role, "reason": d.Reason, "lock": d.LockID(), "roles": c.Identity.Roles,
	})
	if q.known {
		maps.Copy(ev.Fields, map[string]any{"node_id": q.node.ID, "node_name": q.node.Name, "node_labels": q.node.Labels})
	}
	if ev.Success = d.Allow; !d.Allow {
		ev.Error = d.Reason
	}
	ev.User, ev.Login = c.Identity.User, q.login
	identify(ev, c.Identity)
	return a.emit(ctx, ev)
}

// wanted is what a person asked of a session at the proxy.
type wanted struct{ kind, command string }

// misused records that w was refused to a person or a node.
func (a *audit) misused(ctx context.Context, c *sshserver.Conn, w wanted, why error) error {
	ev := event(events.SessionRejected, c, c, map[string]any{"kind": w.kind, "command": w.command, "reason": fault.Public(why)})
	ev.Error = fault.Public(why)
	if id := c.Identity; id != nil {
		ev.User, ev.Fields["roles"] = id.User, id.Roles
		identify(ev, id)
	}
	return a.emit(ctx, ev)
}

// gone records that a person's connection has ended.
func (a *audit) gone(c *sshserver.Conn, who *person, err error, now time.Time) {
	ev := event(events.ClientDisconnect, c, c, map[string]any{
		"duration_ms": now.Sub(who.since), "bytes_in": who.in.Load(), "bytes_out": who.out.Load(),
	})
	if err != nil {
		ev.Fields["reason"], ev.Fields["lock"] = err.Error(), services.LockOf(err)
	}
	ev.User, ev.Success = c.Identity.User, true
	identify(ev, c.Identity)
	ctx, stop := context.WithTimeout(context.WithoutCancel(c.Context()), emitTime)
	defer stop()
	_ = a.emit(ctx, ev)
}

// emit returns an error that a person may read when ev could not be written.
func (a *audit) emit(ctx context.Context, ev events.Event) error {
	err := a.out.Emit(ctx, ev)
	if err == nil {
		return nil
	}
	a.log.Error("event not written", zap.String("event", string(ev.Name)), zap.Error(err))
	return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written, so nothing is allowed right now")
}

// event returns an event about the connection c.
func event(kind events.Name, c *sshserver.Conn, m ssh.ConnMetadata, fields map[string]any) events.Event {
	fields["connection"] = connectionID(m)
	fields["client"] = string(m.ClientVersion())
	fields["addr.local"] = m.LocalAddr().String()
	if c.Relay != (netip.AddrPort{}) {
		fields["addr.peer"] = c.Relay.String()
	}
	ev := events.Event{Name: kind, Proto: "ssh", Fields: fields}
	if c.Remote != (netip.AddrPort{}) {
		ev.AddrRemote = c.Remote.String()
	}
	return ev
}

// identify adds what tells one certificate from another.
func identify(ev events.Event, id *sshca.Identity) {
	ev.Fields["cert_serial"] = strconv.FormatUint(id.Serial, 10)
	ev.Fields["fingerprint"] = id.Fingerprint
}

// connectionID returns what is the same in all events of one connection and in
// no other: the beginning of its SSH session id (RFC 4253, section 7.2).
func connectionID(m ssh.ConnMetadata) string { return hex.EncodeToString(m.SessionID()[:8]) }
