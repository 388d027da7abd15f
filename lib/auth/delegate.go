package auth

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sftp"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// sessionCertTTL is the lifetime of a certificate for one session on a plain
// sshd. It is used at once; the rest is for a slow link and for clocks that
// differ.
const sessionCertTTL = 5 * time.Minute

// methodKey is signing in with an enrolled key, in events.
const methodKey = "key"

// delegationService issues what a proxy goes on with that ends a person's SSH
// connection itself. It takes the proxy's word that the credential was proven;
// whose it is, whether it is good and what it is worth are checked here.
type delegationService struct{ *Authority }

// Delegate issues a certificate for a key of the proxy's own.
func (s delegationService) Delegate(ctx context.Context, req *connect.Request[accessdv1.DelegateRequest]) (*connect.Response[accessdv1.DelegateResponse], error) {
	d, err := s.delegation(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	if login := names.Login(req.Msg.GetLogin()); login != "" {
		if !slices.Contains(d.ask.Logins, login) {
			return nil, s.rejectCredential(ctx, d, "the credential is not for login "+clip(string(login)))
		}
		d.ask.Logins = []names.Login{login}
	}
	if d.method == methodKey {
		ev := d.event(events.UserLogin)
		ev.Success = true
		ev.Fields["roles"], ev.Fields["logins"] = d.ask.Roles, d.ask.Logins
		if err := s.record(ctx, ev); err != nil {
			return nil, err
		}
	}
	cert, err := s.issueUser(ctx, userCert{UserRequest: d.ask, method: "delegate", by: callerOf(ctx).by, client: d.client})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.DelegateResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// A delegation is a credential that was checked, and what may be issued for it.
type delegation struct {
	ask         sshca.UserRequest // at most what the credential is worth
	method      string            // how the person proved it, for events
	fingerprint string
	client      string
}

func (d delegation) event(name events.Name) events.Event {
	return events.Event{Name: name, User: d.ask.User, AddrRemote: d.client, Proto: "ssh", Fields: map[string]any{
		"method": d.method, "fingerprint": d.fingerprint,
	}}
}

// rejectCredential records why a credential is refused. The peer reads nothing
// of it.
func (s delegationService) rejectCredential(ctx context.Context, d delegation, reason string) error {
	ev := d.event(events.AuthRejected)
	ev.Error, ev.Fields["reason"] = reason, reason
	s.note(ctx, ev)
	return fault.Wrap(fault.Denied, errors.New(reason), "permission denied")
}

func (s delegationService) delegation(ctx context.Context, m *accessdv1.DelegateRequest) (delegation, error) {
	key, err := parseKeyLine(m.GetPublicKey())
	if err != nil {
		return delegation{}, err
	}
	client, err := parseClient(m.GetClient())
	if err != nil {
		return delegation{}, err
	}
	var d delegation
	switch {
	case m.GetCertificate() != "":
		d, err = s.ofCertificate(ctx, m.GetCertificate(), client)
	case m.GetEnrolledKey() != "":
		d, err = s.ofKey(ctx, m.GetEnrolledKey(), client)
	default:
		err = fault.New(fault.BadInput, "delegate: want a certificate or an enrolled key")
	}
	if err != nil {
		return d, err
	}
	d.ask.Key = key
	factor, err := s.factorOf(ctx, d.ask.User, d.fingerprint, m.GetProof())
	if err != nil {
		return d, s.rejectCredential(ctx, d, "the proof of a second factor is not for this connection")
	}
	d.ask.Factor = cmp.Or(factor, d.ask.Factor)
	return d, nil
}

// ofCertificate returns what may be issued for a person's certificate: what it
// says, less the roles that the person has lost since. It stands for that
// certificate, which is said here and nowhere else: nobody can ask for it.
func (s delegationService) ofCertificate(ctx context.Context, line string, client netip.AddrPort) (delegation, error) {
	id, err := s.verify(ctx, line, client)
	if err != nil {
		return delegation{}, err
	}
	d := delegation{method: "publickey", fingerprint: id.Fingerprint, client: client.String(), ask: sshca.UserRequest{
		User: id.User, Logins: id.Logins, Traits: id.Traits, MFA: id.MFA, Factor: id.Factor, SecurityKey: id.SecurityKey,
		ValidAfter: id.ValidAfter, ValidBefore: id.ValidBefore, SourceAddresses: id.SourceAddresses,
	}}
	u, err := s.cfg.Store.User(ctx, id.User)
	if fault.Is(err, fault.NotFound) {
		return d, s.rejectCredential(ctx, d, "the user was removed")
	}
	if err != nil {
		return d, err
	}
	requests, given, err := s.standingRequests(ctx, id.User, id.Requests)
	if err != nil {
		return d, err
	}
	d.ask.Requests = requests
	for _, r := range id.Roles {
		if slices.Contains(u.Roles, r) || slices.Contains(given, r) {
			d.ask.Roles = append(d.ask.Roles, r)
		}
	}
	d.ask.For = id.Origin(d.ask.Roles, d.ask.Requests)
	if start := s.cfg.Now().Add(-defaults.ClockSkew); start.After(d.ask.ValidAfter) {
		d.ask.ValidAfter = start
	}
	return d, nil
}

// maxCertLine bounds the text of a certificate, in bytes: twice what accessd's
// own extensions may have, in base64, and its keys.
const maxCertLine = 128 << 10

// parseCertLine reads one certificate in authorized_keys format.
func parseCertLine(line string) (*ssh.Certificate, error) {
	if len(line) > maxCertLine {
		return nil, fault.New(fault.BadInput, "certificate: %d bytes, want at most %d", len(line), maxCertLine)
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok || len(options) > 0 || len(rest) > 0 {
		return nil, fault.New(fault.BadInput, "certificate: want one in authorized_keys format")
	}
	return cert, nil
}

// verify returns whom line, a certificate of the user CA that was shown at
// client, identifies.
func (s delegationService) verify(ctx context.Context, line string, client netip.AddrPort) (*sshca.Identity, error) {
	cert, err := parseCertLine(line)
	if err != nil {
		return nil, err
	}
	id, err := s.cfg.Keys.Trust().CheckUser(cert, sshca.Peer{SSHUser: cert.KeyId, Addr: client.Addr(), Now: s.cfg.Now()})
	s.noteRefusal(ctx, client, err)
	if err != nil {
		return nil, err
	}
	return id, s.checkShown(ctx, id)
}

// noteRefusal records the refusal that err may be.
func (a *Authority) noteRefusal(ctx context.Context, client netip.AddrPort, err error) {
	refusal, ok := errors.AsType[*sshca.Refusal](err)
	if !ok {
		return
	}
	ev := events.Event{Name: events.AuthRejected, AddrRemote: client.String(), Proto: "ssh", Error: refusal.Detail, Fields: map[string]any{
		"method": "publickey", "refusal": string(refusal.Code), "cert_serial": strconv.FormatUint(refusal.Serial, 10),
	}}
	set(ev, "key_id", refusal.KeyID)
	set(ev, "fingerprint", refusal.Fingerprint)
	set(ev, "ca", refusal.CAFingerprint)
	a.note(ctx, ev)
}

// ofKey returns what may be issued for an enrolled key: the roles of its person
// that say so, and no second factor.
func (s delegationService) ofKey(ctx context.Context, line string, client netip.AddrPort) (delegation, error) {
	key, err := parseKeyLine(line)
	if err != nil {
		return delegation{}, err
	}
	d := delegation{method: methodKey, fingerprint: ssh.FingerprintSHA256(key), client: client.String()}
	sub, err := s.enrolled(ctx, d.fingerprint)
	if fault.Is(err, fault.NotFound) {
		return d, s.rejectCredential(ctx, d, "the key is nobody's")
	}
	if err != nil {
		return d, err
	}
	sources := sub.sources(client) // of all roles: one that takes no keys pins, too
	sub.roles = authz.PlainKeyRoles(sub.User, sub.roles)
	sub.Roles = nil
	for _, r := range sub.roles {
		sub.Roles = append(sub.Roles, r.Name)
	}
	d.ask = sub.request()
	d.ask.SourceAddresses, d.ask.ValidBefore = sources, s.cfg.Now().Add(s.cfg.UserTTL)
	if d.ask.SecurityKey, err = s.securityKey(ctx, sub.Name, key); err != nil {
		return d, err
	}
	if len(d.ask.Roles) == 0 {
		return d, s.rejectCredential(ctx, d, "no role of the user takes enrolled keys")
	}
	return d, nil
}

// enrolled returns the person whose key has this fingerprint. The cache knows
// whose it is, the store whether it still is.
func (a *Authority) enrolled(ctx context.Context, fingerprint string) (subject, error) {
	nobody := fault.New(fault.NotFound, "no user has the key")
	u, ok := a.cfg.Cache.UserByKey(fingerprint)
	if !ok {
		return subject{}, nobody
	}
	sub, err := a.subject(ctx, u.Name)
	if err == nil && !slices.ContainsFunc(sub.Keys, func(k services.UserKey) bool { return k.Fingerprint == fingerprint }) {
		err = nobody
	}
	return sub, err
}

// SignSession issues a certificate for one session on one plain sshd. The rules
// are asked here, too: a proxy gets none for a login that the person could do
// nothing with.
func (s delegationService) SignSession(ctx context.Context, req *connect.Request[accessdv1.SignSessionRequest]) (*connect.Response[accessdv1.SignSessionResponse], error) {
	m := req.Msg
	key, err := parseKeyLine(m.GetPublicKey())
	if err != nil {
		return nil, err
	}
	r := sshca.SessionRequest{Key: key, Role: names.RoleName(m.GetRole())}
	if r.Login, err = names.ParseLogin(m.GetLogin()); err != nil {
		return nil, err
	}
	if r.Session, err = names.ParseSessionID(m.GetSession()); err != nil {
		return nil, err
	}
	client, err := parseClient(m.GetClient())
	if err != nil {
		return nil, err
	}
	id, err := s.verify(ctx, m.GetCertificate(), client)
	if err != nil {
		return nil, err
	}
	ev := events.Event{User: id.User, Login: r.Login, SID: r.Session, AddrRemote: client.String(), Fields: map[string]any{"cert_type": string(sshca.TypeSSHD)}}
	node, err := s.sshdNode(ctx, m.GetNode(), ev)
	if err != nil {
		return nil, err
	}
	factor, err := s.factorOf(ctx, id.User, id.Fingerprint, m.GetProof())
	if err != nil {
		return nil, s.refuseCert(ctx, aboutNode(ev, node), "the proof of a second factor is not for this connection")
	}
	if factor != "" {
		id = id.WithFactor(factor)
	}
	if why := s.mayOpen(id, node, r); why != "" {
		return nil, s.refuseCert(ctx, aboutNode(ev, node), why)
	}
	if r.Force, err = s.force(id, node, r.Login, m.GetStart()); err != nil {
		return nil, s.refuseCert(ctx, aboutNode(ev, node), err.Error())
	}
	set(ev, "force_command", r.Force)
	r.User, r.Node = id.User, node.Name
	r.ValidAfter, r.ValidBefore = s.cfg.Now().Add(-defaults.ClockSkew), s.cfg.Now().Add(sessionCertTTL)
	if id.ValidBefore.Before(r.ValidBefore) {
		r.ValidBefore = id.ValidBefore
	}
	cert, err := s.signSession(ctx, r, aboutNode(ev, node))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignSessionResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// mayOpen returns why id gets no certificate for r on node, or "".
func (s delegationService) mayOpen(id *sshca.Identity, node services.Node, r sshca.SessionRequest) string {
	if !slices.Contains(id.Logins, r.Login) {
		return "the certificate is not for this login"
	}
	if r.Role != "" && !slices.Contains(id.Roles, r.Role) {
		return "the certificate has no role " + clip(string(r.Role))
	}
	var d authz.Decision
	for _, action := range services.Actions() {
		d = s.cfg.Engine.Decide(authz.Request{
			Identity: id, Login: r.Login, Action: authz.Action(action),
			Node: authz.ViewOf(node),
		})
		if d.Allow {
			return ""
		}
	}
	return d.Reason
}

// What a certificate forces where a person may run nothing of a shell's.
const (
	forceSFTP    = "internal-sftp" // sshd's own server (sshd_config(5), Subsystem)
	forceNothing = "exit 1"
)

// force returns all that the sshd may run for a session as login that begins with
// start, so that it is held to that even by a proxy that has been broken into; ""
// where the person may run anything. A nil start is that of no session.
func (s delegationService) force(id *sshca.Identity, node services.Node, login names.Login, start *accessdv1.SessionStart) (string, error) {
	decide := func(action authz.Action, line string) authz.Decision {
		return s.cfg.Engine.Decide(authz.Request{
			Identity: id, Login: login, Action: action, Command: line,
			Node: authz.ViewOf(node),
		})
	}
	shell := decide(authz.ActionShell, "")
	if shell.Allow {
		return "", nil
	}
	files := decide(authz.ActionSFTPRead, "").Allow || decide(authz.ActionSFTPWrite, "").Allow
	switch line := string(start.GetLine()); start.GetKind() {
	case sshwire.RequestExec:
		d := decide(authz.ActionExec, cmp.Or(line, " ")) // none would ask whether there is any
		if _, scp := sftp.ParseSCP(line); !d.Allow && (!scp || !files) {
			return "", errors.New(d.Reason)
		}
		if d.Allow && !d.Confined {
			return "", nil
		}
		return line, nil
	case sshwire.RequestSubsystem:
		if line != srv.SubsystemSFTP || !files {
			return "", errors.New("no role allows the subsystem")
		}
		return forceSFTP, nil
	case sshwire.RequestShell:
		return "", errors.New(shell.Reason)
	}
	return forceNothing, nil
}

func (s delegationService) signSession(ctx context.Context, r sshca.SessionRequest, about events.Event) (*ssh.Certificate, error) {
	var err error
	if r.Serial, err = s.cfg.Store.Serial(ctx); err != nil {
		return nil, err
	}
	cert, err := sshca.MintSession(s.cfg.Keys.signer(sshca.TypeSSHD), r)
	if err != nil {
		return nil, err
	}
	return cert, s.recordCert(ctx, cert, about, "session")
}

// recordCert records a certificate that is about to be handed out; about says
// what certEvent does not.
func (a *Authority) recordCert(ctx context.Context, cert *ssh.Certificate, about events.Event, method string) error {
	ev := certEvent("", cert)
	maps.Copy(ev.Fields, about.Fields)
	ev.User, ev.Login, ev.SID, ev.AddrRemote = about.User, about.Login, about.SID, about.AddrRemote
	ev.Fields["method"], ev.Fields["by"] = method, callerOf(ctx).by
	return a.record(ctx, ev)
}

// refuseCert records why a certificate is refused to a proxy, which reads
// nothing of it.
func (s delegationService) refuseCert(ctx context.Context, about events.Event, reason string) error {
	about.Name, about.Error = events.CertCreate, reason
	about.Fields["reason"], about.Fields["by"] = reason, callerOf(ctx).by
	s.note(ctx, about)
	return fault.Wrap(fault.Denied, errors.New(reason), "permission denied")
}

// aboutNode returns ev with the fields that name a node.
func aboutNode(ev events.Event, n services.Node) events.Event {
	ev.Fields["node_id"], ev.Fields["node_name"] = string(n.ID), string(n.Name)
	if len(n.Labels) > 0 {
		ev.Fields["node_labels"] = map[string]string(n.Labels)
	}
	return ev
}

// sshdNode returns the plain sshd node with this id. Proxies answer for no other
// kind: an accessd node has keys of its own, and so has a proxy (THREATS 1.2,
// "Forged host certificates").
func (s delegationService) sshdNode(ctx context.Context, text string, about events.Event) (services.Node, error) {
	id, err := names.ParseNodeID(text)
	if err != nil {
		return services.Node{}, err
	}
	n, err := s.cfg.Store.Node(ctx, id)
	if fault.Is(err, fault.NotFound) {
		about.Fields["node_id"] = string(id)
		return n, s.refuseCert(ctx, about, "there is no such node")
	}
	if err == nil && n.Kind != services.NodeSSHD {
		return n, s.refuseCert(ctx, aboutNode(about, n), "the node answers for itself")
	}
	return n, err
}

// SignNodeHost issues the host certificate with which the proxy answers for a
// plain sshd node.
func (s delegationService) SignNodeHost(ctx context.Context, req *connect.Request[accessdv1.SignNodeHostRequest]) (*connect.Response[accessdv1.SignNodeHostResponse], error) {
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	about := events.Event{AddrRemote: callerOf(ctx).addr, Fields: map[string]any{"cert_type": string(sshca.TypeHost)}}
	node, err := s.sshdNode(ctx, req.Msg.GetNode(), about)
	if err != nil {
		return nil, err
	}
	cert, err := s.signHost(ctx, hostCert{node: node, key: key, ttl: s.cfg.MemberTTL, method: "forward"})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignNodeHostResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// A hostCert asks for a host certificate in the name of a plain sshd node.
type hostCert struct {
	node   services.Node
	key    ssh.PublicKey
	ttl    time.Duration
	method string // for the event
}

// signHost signs and records a host certificate.
func (a *Authority) signHost(ctx context.Context, r hostCert) (*ssh.Certificate, error) {
	serial, err := a.cfg.Store.Serial(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := sshca.MintHost(a.cfg.Keys.signer(sshca.TypeHost), sshca.HostRequest{
		Key: r.key, KeyID: "host:" + string(r.node.ID), Principals: hostPrincipals(nodeRecord(r.node)), Serial: serial,
		ValidAfter: a.cfg.Now().Add(-defaults.ClockSkew), ValidBefore: a.cfg.Now().Add(r.ttl),
	})
	if err != nil {
		return nil, err
	}
	about := events.Event{AddrRemote: callerOf(ctx).addr, Fields: map[string]any{"cert_type": string(sshca.TypeHost)}}
	return cert, a.recordCert(ctx, cert, aboutNode(about, r.node), r.method)
}

// PinHostKey puts on record which host key a plain sshd node has shown that
// dials home and has none yet: its tunnel has proven which node it is. The host
// key of a node that is dialled is an administrator's to say.
func (s delegationService) PinHostKey(ctx context.Context, req *connect.Request[accessdv1.PinHostKeyRequest]) (*connect.Response[accessdv1.PinHostKeyResponse], error) {
	key, err := parseKeyLine(req.Msg.GetHostKey())
	if err != nil {
		return nil, err
	}
	id, err := names.ParseNodeID(req.Msg.GetNode())
	if err != nil {
		return nil, err
	}
	node, err := s.cfg.Store.Node(ctx, id)
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	ev := aboutNode(events.Event{Name: events.NodeHostKey, AddrRemote: c.addr, Fields: map[string]any{
		"action": "pinned", "by": c.by, "fingerprint": ssh.FingerprintSHA256(key),
	}}, node)
	if slices.Contains(node.HostKeys, keyLine(key)) {
		return connect.NewResponse(&accessdv1.PinHostKeyResponse{}), nil
	}
	if why := unpinnable(node); why != "" {
		ev.Error, ev.Fields["action"], ev.Fields["reason"] = why, "refused", why
		ev.Fields["expected"] = fingerprints(node.HostKeys)
		set(ev, "address", node.Address)
		s.note(ctx, ev)
		return nil, fault.Wrap(fault.Denied, errors.New(why), "permission denied")
	}
	return connect.NewResponse(&accessdv1.PinHostKeyResponse{}), s.change(ctx, ev, func() error {
		_, err := s.cfg.Store.PinHostKey(ctx, id, keyLine(key))
		return err
	})
}

// unpinnable says why no proxy may pin a host key of n, or "".
func unpinnable(n services.Node) string {
	switch {
	case n.Kind != services.NodeSSHD:
		return "the node answers for itself"
	case len(n.HostKeys) > 0:
		return "the node has another host key on record"
	case n.Address != "":
		return "the host key of a node with an address is said when it is registered"
	}
	return ""
}

// fingerprints returns those of keys in authorized_keys format.
func fingerprints(lines []string) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = fingerprint(line)
	}
	return out
}
