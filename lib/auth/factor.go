package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshca"
)

// factorService checks second factors for the members that people have their
// connections to. It takes their word that the credential was proven there.
type factorService struct{ *Authority }

// factorUse is a second factor that was found good.
type factorUse struct {
	method string
	// apply notes in the credentials, as they are at the time, that it is used up,
	// or refuses when it has been meanwhile.
	apply func(*services.Credentials) error
}

// matchFactor finds out which second factor of user answer is, by the credentials
// c as they were read. It does the same work where there is none.
func (a *Authority) matchFactor(ctx context.Context, user names.UserName, c services.Credentials, answer string) (factorUse, bool, error) {
	sealed, purpose := c.TOTPSecret, totpPurpose(user)
	enrolled := len(sealed) > 0
	if !enrolled {
		sealed, purpose = a.cfg.Keys.decoy, totpPurpose("")
	}
	key, err := a.cfg.Sealer.Unseal(ctx, purpose, sealed)
	if err != nil {
		return factorUse{}, false, err
	}
	at, ok := totpKey(key).match(answer, a.cfg.Now())
	if ok && enrolled {
		return factorUse{methodTOTP, func(now *services.Credentials) error { return useStep(now, c.TOTPSecret, at) }}, true, nil
	}
	hash := hashRecovery(answer)
	if hash != "" && slices.ContainsFunc(c.Recovery, func(h string) bool { return sameHash(h, hash) }) {
		return factorUse{methodRecovery, func(now *services.Credentials) error { return useRecovery(now, hash) }}, true, nil
	}
	return factorUse{}, false, nil
}

// useStep notes that the code of the time step at was used, of the second factor
// whose sealed secret is given.
func useStep(c *services.Credentials, secret []byte, at int64) error {
	switch {
	case !bytes.Equal(c.TOTPSecret, secret):
		return refusal("the second factor was changed meanwhile")
	case at <= c.TOTPLastStep:
		return refusal("the code was used before")
	}
	c.TOTPLastStep = at
	return nil
}

// useRecovery notes that a recovery code was used.
func useRecovery(c *services.Credentials, hash string) error {
	i := slices.IndexFunc(c.Recovery, func(h string) bool { return sameHash(h, hash) })
	if i < 0 {
		return refusal("the recovery code was used before")
	}
	c.Recovery = slices.Delete(slices.Clone(c.Recovery), i, i+1)
	return nil
}

// holder is a person whose credential was proven to a member.
type holder struct {
	user        names.UserName
	fingerprint string
	identity    *sshca.Identity // for decisions
}

// VerifyFactor takes a code for one connection.
func (s factorService) VerifyFactor(ctx context.Context, req *connect.Request[accessdv1.VerifyFactorRequest]) (*connect.Response[accessdv1.VerifyFactorResponse], error) {
	m, caller := req.Msg, callerOf(ctx).member
	client, err := parseClient(m.GetClient())
	if err != nil {
		return nil, err
	}
	if len(m.GetCode()) > maxText {
		return nil, fault.New(fault.BadInput, "a code of %d bytes: want at most %d", len(m.GetCode()), maxText)
	}
	who, err := s.holder(ctx, m, client)
	if err != nil {
		return nil, err
	}
	ev := events.Event{Name: events.FactorVerify, User: who.user, AddrRemote: client.String(), Proto: "ssh", Fields: map[string]any{
		"fingerprint": who.fingerprint, "by": callerOf(ctx).by,
	}}
	if err := s.mayAsk(ctx, who, m.GetNode(), ev); err != nil {
		return nil, s.refuseFactor(ctx, ev, err)
	}
	method := methodTouch
	switch {
	case m.GetBrowser():
		l, err := s.factorLink(ctx, who, client)
		if err != nil {
			return nil, s.refuseFactor(ctx, ev, err)
		}
		return connect.NewResponse(&accessdv1.VerifyFactorResponse{Link: l.id, Words: l.factorWords()}), nil
	case m.GetTouchedKey() != "":
		err = s.useTouch(ctx, who, m.GetTouchedKey(), ev)
	case m.GetLink() != "":
		method, err = s.useLink(ctx, who, m.GetLink(), m.GetCode())
	default:
		method, err = s.useFactor(ctx, who, m.GetCode(), sourceAt{caller.ID, listener.SourceOf(client.Addr())})
	}
	if err != nil {
		return nil, s.refuseFactor(ctx, ev, err)
	}
	proof, err := s.proofOf(ctx, who, method)
	if err != nil {
		return nil, err
	}
	ev.Success, ev.Fields["method"] = true, method
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.VerifyFactorResponse{Method: method, Proof: proof}), nil
}

// refuseFactor records why a code is refused and returns what the person, who has
// proven who they are, reads of it.
func (s factorService) refuseFactor(ctx context.Context, ev events.Event, why error) error {
	ev.Error = why.Error()
	set(ev, "reason", why.Error())
	s.note(ctx, ev)
	if r, ok := why.(refusal); ok { //nolint:errorlint // made here, wrapped by nobody
		return fault.Wrap(fault.Denied, why, r.Error())
	}
	return why
}

// holder returns the person whose credential is shown.
func (s factorService) holder(ctx context.Context, m *accessdv1.VerifyFactorRequest, client netip.AddrPort) (holder, error) {
	if line := m.GetCertificate(); line != "" {
		id, err := delegationService(s).verify(ctx, line, client)
		if err != nil {
			return holder{}, err
		}
		return holder{id.User, id.Fingerprint, id}, nil
	}
	key, err := parseKeyLine(m.GetEnrolledKey())
	if err != nil {
		return holder{}, err
	}
	fingerprint := ssh.FingerprintSHA256(key)
	sub, err := s.enrolled(ctx, fingerprint)
	if err != nil {
		return holder{}, fault.Wrap(fault.Denied, err, "permission denied")
	}
	return holder{sub.Name, fingerprint, &sshca.Identity{Kind: sshca.KindUser, User: sub.Name, Roles: sub.Roles}}, nil
}

// mayAsk refuses a member the check of a code that it has no use for: a node is
// told of those only who reach it, so that it tries nobody else's codes.
func (s factorService) mayAsk(ctx context.Context, who holder, node string, ev events.Event) error {
	caller := callerOf(ctx).member
	if node == "" && caller.Kind != sshca.KindNode {
		return nil
	}
	id, err := names.ParseNodeID(node)
	if err != nil {
		return err
	}
	if caller.Kind == sshca.KindNode && caller.ID != id {
		return refusal("the code is not for the node that asks")
	}
	n, err := s.cfg.Store.Node(ctx, id)
	if err != nil {
		return err
	}
	aboutNode(ev, n)
	if d := s.cfg.Engine.Reach(who.identity, authz.ViewOf(n)); !d.Allow {
		return refusal(d.Reason)
	}
	return nil
}

// methodTouch is a security key that was touched for the connection, in events.
const methodTouch = "touch"

// useTouch takes a security key that was touched for the connection of who: the
// one that was proven there, or another that is enrolled. That the signature says
// so, and is of this connection, the member has seen.
func (s factorService) useTouch(ctx context.Context, who holder, line string, ev events.Event) error {
	key, err := parseKeyLine(line)
	if err != nil {
		return err
	}
	fingerprint := ssh.FingerprintSHA256(key)
	ev.Fields["touched"] = fingerprint
	u, err := s.cfg.Store.User(ctx, who.user)
	if fault.Is(err, fault.NotFound) {
		return refusal("the user was removed")
	}
	if err != nil {
		return err
	}
	if _, ok := u.SecurityKey(fingerprint); !ok && fingerprint != who.fingerprint {
		return refusal("the security key is not enrolled for you")
	}
	kind, err := s.securityKeyOf(ctx, u, key)
	if err == nil && kind == "" {
		err = refusal("the key is no security key, or none that the cluster takes")
	}
	return err
}

// sourceAt is where a code is tried: at which member, and from where, as far as
// that member tells. A member that lies charges itself.
type sourceAt struct {
	member names.NodeID
	source netip.Prefix
}

// useFactor checks answer and uses it up.
func (s factorService) useFactor(ctx context.Context, who holder, answer string, at any) (method string, err error) {
	acquit, err := s.codes.try(ctx, who.user, at, false)
	if err != nil {
		return "", err
	}
	err = retryConflict(func() error {
		c, err := s.cfg.Store.Credentials(ctx, who.user)
		if fault.Is(err, fault.NotFound) {
			return refusal("the user was removed")
		}
		if err != nil {
			return err
		}
		use, ok, err := s.matchFactor(ctx, who.user, c, answer)
		switch {
		case err != nil:
			return err
		case len(c.TOTPSecret)+len(c.Recovery) == 0:
			return refusal("you have no second factor")
		case !ok:
			return refusal("that is not the code of this moment")
		}
		if err := use.apply(&c); err != nil {
			return err
		}
		method = use.method
		_, err = s.cfg.Store.UpdateCredentials(ctx, who.user, c)
		return err
	})
	if err == nil {
		acquit()
	}
	return method, err
}

// A proof says that a second factor was given for one connection. The proxy that
// has the connection keeps it for as long, and shows it when it asks for what it
// goes on with.
type proof struct {
	Fingerprint string    `json:"fingerprint"` // of the key that was proven on the connection
	Method      string    `json:"method"`
	Expires     time.Time `json:"expires"`
}

// maxProof bounds the text of a proof, in bytes.
const maxProof = 4 << 10

func proofPurpose(user names.UserName, member names.NodeID) string {
	return "factor/" + string(member) + "/" + string(user)
}

// proofOf returns a proof for the member that asks. It is sealed, not kept: every
// authority of the cluster can open it.
func (s factorService) proofOf(ctx context.Context, who holder, method string) (string, error) {
	p, err := json.Marshal(proof{who.fingerprint, method, s.cfg.Now().Add(s.cfg.MaxUserTTL).UTC()})
	if err != nil {
		return "", err
	}
	sealed, err := s.cfg.Sealer.Seal(ctx, proofPurpose(who.user, callerOf(ctx).member.ID), p)
	return base64.RawStdEncoding.EncodeToString(sealed), err
}

// factorOf returns the method of the second factor that text proves for the
// connection of id to the member that asks, or "" when there is no text.
func (a *Authority) factorOf(ctx context.Context, user names.UserName, fingerprint, text string) (string, error) {
	if text == "" {
		return "", nil
	}
	bad := fault.New(fault.Denied, "permission denied")
	sealed, err := base64.RawStdEncoding.DecodeString(text[:min(len(text), maxProof)])
	if err != nil {
		return "", bad
	}
	b, err := a.cfg.Sealer.Unseal(ctx, proofPurpose(user, callerOf(ctx).member.ID), sealed)
	if err != nil {
		return "", fault.Wrap(fault.Denied, err, bad.Public)
	}
	var p proof
	if err := json.Unmarshal(b, &p); err != nil {
		return "", fault.Wrap(fault.Denied, err, bad.Public)
	}
	if p.Fingerprint != fingerprint || !a.cfg.Now().Before(p.Expires) {
		return "", bad
	}
	return p.Method, nil
}

// recoveryGroups and recoveryGroup are the form of a recovery code: 80 random
// bits in base32, in groups that people can copy.
const (
	recoveryCodes  = 10
	recoveryGroups = 4
	recoveryGroup  = 4
)

// methodRecovery is a recovery code as a second factor, in events.
const methodRecovery = "recovery"

// newRecovery returns recovery codes and their hashes for the store.
func newRecovery() (codes, hashes []string) {
	for range recoveryCodes {
		secret, groups := names.NewSecret(), make([]string, recoveryGroups)
		for i := range groups {
			groups[i] = secret[i*recoveryGroup : (i+1)*recoveryGroup]
		}
		code := strings.Join(groups, "-")
		codes, hashes = append(codes, code), append(hashes, hashRecovery(code))
	}
	return codes, hashes
}

// hashRecovery returns the hash of a recovery code, or "" of what is none. Blanks
// and capitals do not count, nor does it where the dashes are.
func hashRecovery(s string) string {
	s = strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(strings.TrimSpace(s)))
	if len(s) != recoveryGroups*recoveryGroup || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return ""
	}
	return hashSecret("recovery " + s)
}
