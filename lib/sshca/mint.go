package sshca

import (
	"cmp"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// UserRequest asks for a person's certificate.
type UserRequest struct {
	Key    ssh.PublicKey
	User   names.UserName
	Roles  []names.RoleName
	Logins []names.Login
	Traits map[string][]string
	MFA    string // method of the second factor just given, or ""
	Factor string // the same, if Key is good for the one connection at which it was given

	// SecurityKey is what Key is or, of a key for one connection, the one with
	// which that was begun.
	SecurityKey SecurityKey

	Requests []string // access requests that some of Roles are of

	For Origin // the certificates on whose strength this one is asked for

	ValidAfter, ValidBefore time.Time
	SourceAddresses         []netip.Prefix // empty means anywhere
	Serial                  uint64
}

// MintUser returns a certificate for a person. Its key id is the user name, its
// principals are "user:" and the name, so that there always is one, and the
// logins. Roles, traits, second factors and access requests stand in the
// extensions roles@accessd, traits@accessd, mfa@accessd, factor@accessd,
// key@accessd, requests@accessd and for@accessd. The certificate of a key that makes sure who
// signs has the critical option verify-required, for sshd.
func MintUser(ca ssh.Signer, r UserRequest) (*ssh.Certificate, error) {
	roles, logins := slices.Sorted(slices.Values(r.Roles)), slices.Sorted(slices.Values(r.Logins))
	c := &ssh.Certificate{
		Key: r.Key, Serial: r.Serial, CertType: ssh.UserCert, KeyId: string(r.User),
		ValidAfter: unix(r.ValidAfter), ValidBefore: unix(r.ValidBefore),
		ValidPrincipals: []string{userPrincipal(r.User)},
		Permissions:     ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: permits()},
	}
	for _, l := range slices.Compact(logins) {
		c.ValidPrincipals = append(c.ValidPrincipals, string(l))
	}
	if len(r.SourceAddresses) > 0 {
		c.CriticalOptions[optionSourceAddress] = formatSources(r.SourceAddresses)
	}
	if r.SecurityKey == SecurityKeyPIN && IsSecurityKey(r.Key) {
		c.CriticalOptions[optionVerifyRequired] = ""
	}
	r.Roles, r.Requests = slices.Compact(roles), slices.Compact(slices.Sorted(slices.Values(r.Requests)))
	if err := encodeUser(c, r); err != nil {
		return nil, err
	}
	return mint(ca, c, func() error {
		id, err := userIdentity(c)
		if err == nil && id.User != r.User {
			err = refuse(CodeBadKeyID, "user name %q does not keep its form", r.User)
		}
		return err
	})
}

// MemberRequest asks for the certificate a member dials home with.
type MemberRequest struct {
	Key  ssh.PublicKey
	ID   names.NodeID
	Name names.NodeName
	Kind Kind // KindNode, KindProxy or KindAuth

	ValidAfter, ValidBefore time.Time
	Serial                  uint64
}

// MintMember returns a certificate for a node, a proxy or an authority. Its key
// id is the kind, a colon and the id; its only principal is "member:" and the
// id. Name and kind stand in the extensions name@accessd and kind@accessd.
func MintMember(ca ssh.Signer, r MemberRequest) (*ssh.Certificate, error) {
	c := &ssh.Certificate{
		Key: r.Key, Serial: r.Serial, CertType: ssh.UserCert,
		ValidAfter: unix(r.ValidAfter), ValidBefore: unix(r.ValidBefore),
		KeyId:           string(r.Kind) + ":" + string(r.ID),
		ValidPrincipals: []string{memberPrincipal(r.ID)},
		Permissions:     ssh.Permissions{Extensions: map[string]string{}},
	}
	if err := encodeMember(c, r.Name, r.Kind); err != nil {
		return nil, err
	}
	return mint(ca, c, func() error {
		_, err := memberIdentity(c)
		return err
	})
}

// HostRequest asks for the certificate of a host key.
type HostRequest struct {
	Key        ssh.PublicKey
	KeyID      string
	Principals []string // host names and addresses in lower case, no patterns

	ValidAfter, ValidBefore time.Time
	Serial                  uint64
}

// MintHost returns a certificate for a host key.
func MintHost(ca ssh.Signer, r HostRequest) (*ssh.Certificate, error) {
	c := &ssh.Certificate{
		Key: r.Key, Serial: r.Serial, CertType: ssh.HostCert, KeyId: r.KeyID,
		ValidAfter: unix(r.ValidAfter), ValidBefore: unix(r.ValidBefore),
		ValidPrincipals: slices.Compact(slices.Sorted(slices.Values(r.Principals))),
	}
	return mint(ca, c, func() error { return checkHostForm(c) })
}

// SessionRequest asks for the certificate with which a proxy opens one session
// on one plain sshd node.
type SessionRequest struct {
	Key     ssh.PublicKey
	User    names.UserName
	Login   names.Login
	Node    names.NodeName
	Session names.SessionID
	Role    names.RoleName // whose rule grants it; "" when that is not known
	Force   string         // all that the sshd may run; "" is no bound

	ValidAfter, ValidBefore time.Time
	Serial                  uint64
}

// MintSession returns a certificate for one login on a plain sshd. sshd asks
// for nothing but the one principal, the login. Its only critical option is
// force-command, for who may not run anything; it has the standard extensions,
// since what of them is used is decided in front of sshd. The key id, which sshd writes into
// its log, says on whose behalf:
//
//	USER " session=" SESSION " role=" ROLE " node=" NODE
//
// with a blank before each word and none in any value, "-" standing for no role,
// which is the name of none.
func MintSession(ca ssh.Signer, r SessionRequest) (*ssh.Certificate, error) {
	role := string(r.Role)
	if role == "" {
		role = "-"
	}
	c := &ssh.Certificate{
		Key: r.Key, Serial: r.Serial, CertType: ssh.UserCert,
		KeyId:      string(r.User) + " session=" + string(r.Session) + " role=" + role + " node=" + string(r.Node),
		ValidAfter: unix(r.ValidAfter), ValidBefore: unix(r.ValidBefore),
		ValidPrincipals: []string{string(r.Login)},
		Permissions:     ssh.Permissions{Extensions: permits()},
	}
	if r.Force != "" {
		c.CriticalOptions = map[string]string{optionForceCommand: r.Force}
		delete(c.Extensions, permitUserRC) // which would run before it
	}
	return mint(ca, c, r.check)
}

// check refuses names that do not keep their grammars: they would mean something
// else in a key id or to sshd.
func (r SessionRequest) check() error {
	_, user := names.ParseUserName(string(r.User))
	_, login := names.ParseLogin(string(r.Login))
	_, node := names.ParseNodeName(string(r.Node))
	_, session := names.ParseSessionID(string(r.Session))
	var role error
	if r.Role != "" {
		_, role = names.ParseRoleName(string(r.Role))
	}
	if err := cmp.Or(user, node, session, role); err != nil {
		return refuse(CodeBadKeyID, "key id: %v", err)
	}
	if login != nil {
		return refuse(CodeBadPrincipal, "principal: %v", login)
	}
	return nil
}

// mint holds c to what a check would and signs it.
func mint(ca ssh.Signer, c *ssh.Certificate, form func() error) (*ssh.Certificate, error) {
	for _, check := range []func() error{
		func() error { return checkKey(c.Key) },
		func() error { return checkValidityForm(c) },
		form,
	} {
		err := check()
		if r, ok := errors.AsType[*Refusal](err); ok {
			return nil, fault.New(fault.BadInput, "mint a certificate: %s", r.Detail)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "sign a certificate")
	}
	return c, nil
}

// unix returns t in a certificate's form; a time before 1970 becomes 0, which
// as an end is in the past.
func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// What a certificate for a plain sshd may say (PROTOCOL.certkeys).
const (
	optionForceCommand = "force-command"
	permitUserRC       = "permit-user-rc"
)

// permits are the standard extensions that let plain sshd grant what it can;
// accessd's own nodes ask the roles instead.
func permits() map[string]string {
	return map[string]string{
		"permit-X11-forwarding":   "",
		"permit-agent-forwarding": "",
		"permit-port-forwarding":  "",
		"permit-pty":              "",
		permitUserRC:              "",
	}
}

func formatSources(prefixes []netip.Prefix) string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}
