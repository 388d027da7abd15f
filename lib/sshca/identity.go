package sshca

import (
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
)

// A principal that is not a login begins with what cannot begin one: logins
// have no colon.
func userPrincipal(u names.UserName) string  { return "user:" + string(u) }
func memberPrincipal(id names.NodeID) string { return "member:" + string(id) }

// identity returns what every kind of identity has.
func identity(c *ssh.Certificate, kind Kind) (*Identity, error) {
	prefixes, err := sources(c)
	if err != nil {
		return nil, err
	}
	id := &Identity{
		Kind: kind, Serial: c.Serial, KeyID: c.KeyId,
		Fingerprint: ssh.FingerprintSHA256(c.Key), SourceAddresses: prefixes,
	}
	id.ValidAfter, id.ValidBefore = validity(c)
	if c.SignatureKey != nil { // there is none yet while minting
		id.CAFingerprint = ssh.FingerprintSHA256(c.SignatureKey)
	}
	return id, nil
}

// userIdentity returns the person c describes. Only c's form is judged.
func userIdentity(c *ssh.Certificate) (*Identity, error) {
	id, err := identity(c, KindUser)
	if err != nil {
		return nil, err
	}
	if id.User, err = names.ParseUserName(c.KeyId); err != nil {
		return nil, refuse(CodeBadKeyID, "key id: %v", err)
	}
	if id.Logins, err = logins(c, id.User); err != nil {
		return nil, err
	}
	if id.Roles, err = decodeRoles(c); err != nil {
		return nil, err
	}
	if id.Traits, err = decodeTraits(c); err != nil {
		return nil, err
	}
	if id.MFA, err = decodeMethod(c, extMFA); err != nil {
		return nil, err
	}
	if id.Factor, err = decodeMethod(c, extFactor); err != nil {
		return nil, err
	}
	if id.SecurityKey, err = decodeKey(c); err != nil {
		return nil, err
	}
	if id.Requests, err = decodeRequests(c); err != nil {
		return nil, err
	}
	id.For, err = decodeOrigin(c)
	return id, err
}

// logins returns the principals of a person's certificate that are logins: all
// but "user:NAME", which must be there. Nothing is split or matched as a
// pattern; one malformed principal spoils all.
func logins(c *ssh.Certificate, user names.UserName) ([]names.Login, error) {
	if err := checkPrincipals(c); err != nil {
		return nil, err
	}
	own := userPrincipal(user)
	if !slices.Contains(c.ValidPrincipals, own) {
		return nil, refuse(CodeWrongPrincipal, "principal %q is missing", own)
	}
	var list []names.Login
	for _, p := range c.ValidPrincipals {
		if p == own {
			continue
		}
		l, err := names.ParseLogin(p)
		if err != nil {
			return nil, refuse(CodeBadPrincipal, "principal: %v", err)
		}
		list = append(list, l)
	}
	slices.Sort(list)
	return list, nil
}

func checkPrincipals(c *ssh.Certificate) error {
	switch n := len(c.ValidPrincipals); {
	case n == 0:
		return refuse(CodeEmptyPrincipals, "the certificate has no principals")
	case n > maxPrincipals:
		return refuse(CodeBadPrincipal, "the certificate has %d principals, want at most %d", n, maxPrincipals)
	}
	return nil
}

// memberIdentity returns the member c describes. Only c's form is judged.
func memberIdentity(c *ssh.Certificate) (*Identity, error) {
	id, err := identity(c, "")
	if err != nil {
		return nil, err
	}
	if id.MemberName, id.Kind, err = decodeMember(c); err != nil {
		return nil, err
	}
	kind, uuid, _ := strings.Cut(c.KeyId, ":")
	if id.Member, err = names.ParseNodeID(uuid); err != nil || kind != string(id.Kind) {
		return nil, refuse(CodeBadKeyID, "key id %.80q is not that of a %s", c.KeyId, id.Kind)
	}
	if err := checkPrincipals(c); err != nil {
		return nil, err
	}
	if want := memberPrincipal(id.Member); len(c.ValidPrincipals) != 1 || c.ValidPrincipals[0] != want {
		return nil, refuse(CodeWrongPrincipal, "want the one principal %q", want)
	}
	return id, nil
}

// checkHostForm refuses a host certificate with critical options (none is
// defined for hosts), without principals or with one that is not a plain host
// name or address in lower case.
func checkHostForm(c *ssh.Certificate) error {
	for option := range c.CriticalOptions {
		return refuse(CodeCriticalOption, "critical option %.80q is not supported", option)
	}
	if len(c.KeyId) > maxHostKeyID || !isText(c.KeyId) {
		return refuse(CodeBadKeyID, "key id %.80q is malformed", c.KeyId)
	}
	if err := checkPrincipals(c); err != nil {
		return err
	}
	for _, p := range c.ValidPrincipals {
		if !isHost(p) {
			return refuse(CodeBadPrincipal, "principal %.80q is not a host name or address", p)
		}
	}
	return nil
}

// isHost reports whether s can be a host's name or address: nothing that could
// be a pattern, a list or a port in brackets.
func isHost(s string) bool {
	return s != "" && len(s) <= maxHostName && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_:", r)
	}) < 0
}
