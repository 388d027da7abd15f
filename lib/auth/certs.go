package auth

import (
	"bytes"
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// keyLine returns key in authorized_keys format, without comment and newline.
func keyLine(key ssh.PublicKey) string {
	return string(bytes.TrimRight(ssh.MarshalAuthorizedKey(key), "\n"))
}

// maxKeyLine bounds the text of a public key, in bytes. RSA keys of 4096 bits
// have about 750; the rest is room for a comment.
const maxKeyLine = 16 << 10

// parseKeyLine reads one public key in authorized_keys format: one line, no
// options, no certificate.
func parseKeyLine(s string) (ssh.PublicKey, error) {
	if len(s) > maxKeyLine {
		return nil, fault.New(fault.BadInput, "public key: %d bytes, want at most %d", len(s), maxKeyLine)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, fault.New(fault.BadInput, "public key: it is empty")
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, fault.New(fault.BadInput, "public key: line 2: want one key on one line")
	}
	if strings.HasPrefix(s, "-----BEGIN") {
		return nil, fault.New(fault.BadInput, "public key: line 1: this is a private key or a PEM file").WithHint("give the file that ends in .pub")
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(s))
	if err != nil {
		return nil, fault.New(fault.BadInput, "public key: line 1: not in the form \"ssh-ed25519 AAAA…\"")
	}
	if len(options) > 0 {
		return nil, fault.New(fault.BadInput, "public key: line 1: options before the key are not taken")
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, fault.New(fault.BadInput, "public key: line 1: this is a certificate").WithHint("give the public key it was made for")
	}
	return key, nil
}

// A subject is a person as a certificate is made from: with the roles that
// exist. It is read from the store, not the cache, so that a person who was
// added a moment ago has all there is.
type subject struct {
	services.User

	roles    []services.Role
	requests []string // access requests that give some of them; see [Authority.elevated]
}

func (a *Authority) subject(ctx context.Context, name names.UserName) (subject, error) {
	u, err := a.cfg.Store.User(ctx, name)
	if err != nil {
		return subject{}, err
	}
	if !u.Expires.IsZero() && !a.cfg.Now().Before(u.Expires) {
		return subject{}, fault.New(fault.Denied, "user %q has to sign in again", name)
	}
	s := subject{User: u}
	for _, r := range u.Roles {
		role, err := a.cfg.Store.Role(ctx, r)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return subject{}, err
		}
		s.roles = append(s.roles, role)
	}
	return s, nil
}

// pinned returns the role that demands certificates bound to the address they
// were asked from, if one does.
func (s subject) pinned() (names.RoleName, bool) {
	for _, r := range s.roles {
		if r.Options.PinSource {
			return r.Name, true
		}
	}
	return "", false
}

// sources returns the addresses a certificate for the person at client is good
// at: that one when a role pins it, else any.
func (s subject) sources(client netip.AddrPort) []netip.Prefix {
	if _, pin := s.pinned(); !pin {
		return nil
	}
	addr := client.Addr().Unmap().WithZone("")
	return []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
}

// until returns the end of a certificate that may be good until then.
func (s subject) until(then time.Time) time.Time {
	if !s.Expires.IsZero() && s.Expires.Before(then) {
		return s.Expires
	}
	return then
}

// request asks for a certificate with all that the person has now; key, times,
// addresses and second factor are the caller's to add.
func (s subject) request() sshca.UserRequest {
	return sshca.UserRequest{User: s.Name, Roles: s.Roles, Logins: authz.Logins(s.User, s.roles), Traits: s.Traits, Requests: s.requests}
}

// A userCert asks for a person's certificate.
type userCert struct {
	sshca.UserRequest // without a serial number; no start means now

	method, by, client string // for the event
}

// issueUser signs a person's certificate and records it before anybody sees it.
func (a *Authority) issueUser(ctx context.Context, r userCert) (*ssh.Certificate, error) {
	err := a.checkPerson(ctx, r)
	if err != nil {
		return nil, err
	}
	if r.Serial, err = a.cfg.Store.Serial(ctx); err != nil {
		return nil, err
	}
	if r.ValidAfter.IsZero() {
		r.ValidAfter = a.cfg.Now().Add(-defaults.ClockSkew)
	}
	if r.SecurityKey == "" {
		if r.SecurityKey, err = a.securityKey(ctx, r.User, r.Key); err != nil {
			return nil, err
		}
	}
	if err := a.bound(ctx, &r.UserRequest); err != nil {
		return nil, err
	}
	cert, err := sshca.MintUser(a.cfg.Keys.signer(sshca.TypeUser), r.UserRequest)
	if err != nil {
		return nil, err
	}
	if err := a.hold(ctx, r.User, cert); err != nil {
		return nil, err
	}
	ev := certEvent("user", cert)
	ev.User, ev.AddrRemote = r.User, r.client
	ev.Fields["roles"] = r.Roles
	set(ev, "method", r.method)
	set(ev, "by", r.by)
	set(ev, "mfa", r.MFA)
	if len(r.Requests) > 0 {
		ev.Fields["requests"] = r.Requests
	}
	standsFor(ev, r.For)
	if s := cert.CriticalOptions["source-address"]; s != "" {
		ev.Fields["source_addresses"] = strings.Split(s, ",")
	}
	return cert, a.record(ctx, ev)
}

// issueMember signs a member's two certificates for the keys, the name and the
// addresses on record, and records them before anybody sees them. trusts are the
// keys that the member trusts.
func (a *Authority) issueMember(ctx context.Context, rec *record, method string, trusts []string) (*accessdv1.MemberCertificates, error) {
	memberKey, err := parseKeyLine(rec.MemberKey)
	if err != nil {
		return nil, fault.New(fault.BadInput, "member key: %w", err)
	}
	hostKey, err := parseKeyLine(rec.HostKey)
	if err != nil {
		return nil, fault.New(fault.BadInput, "host key: %w", err)
	}
	now := a.cfg.Now()
	after, before := now.Add(-defaults.ClockSkew), now.Add(a.cfg.MemberTTL)
	out := &accessdv1.MemberCertificates{Expires: timestamppb.New(before), Renew: timestamppb.New(now.Add(a.cfg.MemberTTL / 2))}
	var given []*ssh.Certificate
	for _, half := range []struct {
		kind string
		line *string
		mint func(serial uint64) (*ssh.Certificate, error)
	}{
		{string(rec.Kind), &out.Member, func(serial uint64) (*ssh.Certificate, error) {
			return sshca.MintMember(a.cfg.Keys.signer(sshca.TypeNode), sshca.MemberRequest{
				Key: memberKey, ID: rec.ID, Name: rec.Name, Kind: rec.Kind, ValidAfter: after, ValidBefore: before, Serial: serial,
			})
		}},
		{"host", &out.Host, func(serial uint64) (*ssh.Certificate, error) {
			return sshca.MintHost(a.cfg.Keys.signer(sshca.TypeHost), sshca.HostRequest{
				Key: hostKey, KeyID: "host:" + string(rec.ID), Principals: hostPrincipals(rec), ValidAfter: after, ValidBefore: before, Serial: serial,
			})
		}},
	} {
		serial, err := a.cfg.Store.Serial(ctx)
		if err != nil {
			return nil, err
		}
		cert, err := half.mint(serial)
		if err != nil {
			return nil, err
		}
		ev := certEvent(half.kind, cert)
		ev.Fields["method"], ev.Fields["by"] = method, string(rec.Kind)+":"+string(rec.ID)
		if err := a.record(ctx, ev); err != nil {
			return nil, err
		}
		*half.line = keyLine(cert)
		given = append(given, cert)
	}
	return out, a.stand(ctx, rec, trusts, given...)
}

// hostPrincipals returns the names a member answers to: its own, and those by
// which a client on the same machine calls it. A proxy also has its public
// addresses; an authority the name under which proxies relay to it.
func hostPrincipals(rec *record) []string {
	p := []string{string(rec.Name), string(rec.ID), "localhost", "127.0.0.1", "::1"}
	for _, addr := range rec.Addresses {
		p = append(p, hostOf(addr))
	}
	if rec.Kind == sshca.KindAuth {
		p = append(p, defaults.AuthorityName)
	}
	return p
}

func certEvent(kind string, c *ssh.Certificate) events.Event {
	return events.Event{Name: events.CertCreate, Success: true, Fields: map[string]any{
		"cert_type":    kind,
		"cert_serial":  strconv.FormatUint(c.Serial, 10),
		"key_id":       c.KeyId,
		"fingerprint":  ssh.FingerprintSHA256(c.Key),
		"ca":           ssh.FingerprintSHA256(c.SignatureKey),
		"principals":   c.ValidPrincipals,
		"valid_after":  certTime(c.ValidAfter).Format(time.RFC3339),
		"valid_before": certTime(c.ValidBefore).Format(time.RFC3339),
	}}
}

// standsFor notes in ev which certificates that which ev is about stands for.
func standsFor(ev events.Event, o sshca.Origin) {
	serials := make([]string, len(o.Serials))
	for i, n := range o.Serials {
		serials[i] = strconv.FormatUint(n, 10)
	}
	if len(serials) > 0 {
		ev.Fields["stands_for"] = serials
	}
}

func certTime(t uint64) time.Time { return time.Unix(int64(t), 0).UTC() }
