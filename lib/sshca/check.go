package sshca

import (
	"bytes"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
)

// Tolerance is how far in the future a certificate may start, for authorities
// whose clock is ahead. Its end has none.
const Tolerance = time.Minute

// The critical options known here; every other is refused, force-command among
// them. That who signs is verified (PROTOCOL.certkeys, "verify-required") says the
// flags of a signature, which x/crypto keeps to itself: the option is taken of a
// certificate alone that also says that the key signs for nobody else, which the
// authority knows from its maker.
const (
	optionSourceAddress  = "source-address"
	optionVerifyRequired = "verify-required"
)

// Bounds on a certificate's lists.
const (
	maxPrincipals = 256 // OpenSSH's SSHKEY_CERT_MAX_PRINCIPALS
	maxSources    = 64  // networks of a source-address
	maxHostName   = 253 // RFC 1035, section 2.3.4, in text form
	maxHostKeyID  = 128 // bytes
)

// Trust holds the public keys of the authorities, several each while one is
// replaced: then the first is that which signs. The zero value trusts nobody.
type Trust struct{ User, Host, Node, SSHD []ssh.PublicKey }

// Fingerprints returns those of all keys, "SHA256:…", sorted.
func (t Trust) Fingerprints() []string {
	var out []string
	for _, key := range slices.Concat(t.User, t.Host, t.Node, t.SSHD) {
		out = append(out, ssh.FingerprintSHA256(key))
	}
	slices.Sort(out)
	return out
}

// Peer is who presents a certificate.
type Peer struct {
	SSHUser string     // the user name of the SSH connection
	Addr    netip.Addr // where it comes from in truth, not the last hop; zero when it is no IP peer
	Now     time.Time
}

// Type returns which authority signed c, by the signature key alone: nothing is
// verified. A certificate as signature key is no authority, whatever key it
// names.
func (t Trust) Type(c *ssh.Certificate) (Type, bool) {
	if c == nil {
		return "", false
	}
	for _, ca := range []struct {
		kind Type
		keys []ssh.PublicKey
	}{{TypeUser, t.User}, {TypeHost, t.Host}, {TypeNode, t.Node}, {TypeSSHD, t.SSHD}} {
		if signedBy(c, ca.keys) {
			return ca.kind, true
		}
	}
	return "", false
}

// CheckUser returns who presents c to a proxy, where the SSH user name is the
// user's own.
func (t Trust) CheckUser(c *ssh.Certificate, p Peer) (*Identity, error) {
	id, err := t.identify(c, t.User, userIdentity, p)
	if err == nil && string(id.User) != p.SSHUser {
		// Not the name that was typed, which may be a password in the wrong field.
		err = refuse(CodeWrongPrincipal, "the certificate is of user %.80q, and another name was given", string(id.User))
	}
	return conclude(c, id, err)
}

// CheckLogin returns who presents c to a node, where the SSH user name is a
// login, which must be among the principals.
func (t Trust) CheckLogin(c *ssh.Certificate, p Peer) (*Identity, error) {
	id, err := t.identify(c, t.User, userIdentity, p)
	if err == nil && !slices.Contains(id.Logins, names.Login(p.SSHUser)) {
		err = refuse(CodeWrongPrincipal, "the certificate is not for login %.80q", p.SSHUser)
	}
	return conclude(c, id, err)
}

// CheckMember returns the node, proxy or authority that presents c. The SSH
// user name is the member's own name.
func (t Trust) CheckMember(c *ssh.Certificate, p Peer) (*Identity, error) {
	id, err := t.identify(c, t.Node, memberIdentity, p)
	if err == nil && string(id.MemberName) != p.SSHUser {
		err = refuse(CodeWrongPrincipal, "the certificate is not for member %.80q", p.SSHUser)
	}
	return conclude(c, id, err)
}

// CheckHost refuses c unless it is a good host certificate for host, a name or
// an address without a port.
func (t Trust) CheckHost(c *ssh.Certificate, host string, now time.Time) error {
	err := t.checkAnyHost(c, now)
	if err == nil && !slices.Contains(c.ValidPrincipals, strings.ToLower(host)) {
		err = refuse(CodeWrongPrincipal, "the certificate is not for host %.80q", host)
	}
	return about(c, err)
}

// HostKeyCallback returns a callback that takes host certificates of the
// cluster for host only, however the connection was dialled.
func (t Trust) HostKeyCallback(host string, now func() time.Time) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		c, ok := key.(*ssh.Certificate)
		if !ok {
			return refuse(CodeNotCertificate, "host key %s is not a certificate", ssh.FingerprintSHA256(key))
		}
		return t.CheckHost(c, host, now())
	}
}

// PinnedHostKeyCallback returns a callback for a member that joins: it knows
// the host authority by its pins only, and not yet by which names the cluster
// knows the address it dials, so every good host certificate of a pinned
// authority will do. That authority is handed to onTrust.
func PinnedHostKeyCallback(pins []string, now func() time.Time, onTrust func(ca ssh.PublicKey)) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		c, ok := key.(*ssh.Certificate)
		if !ok {
			return refuse(CodeNotCertificate, "host key %s is not a certificate", ssh.FingerprintSHA256(key))
		}
		t := Trust{}
		if c.SignatureKey != nil && slices.Contains(pins, Pin(c.SignatureKey)) {
			t.Host = []ssh.PublicKey{c.SignatureKey}
		}
		if err := t.checkAnyHost(c, now()); err != nil {
			return about(c, err)
		}
		onTrust(c.SignatureKey)
		return nil
	}
}

func conclude(c *ssh.Certificate, id *Identity, err error) (*Identity, error) {
	if err != nil {
		return nil, about(c, err)
	}
	id.Certificate = c.Marshal()
	return id, nil
}

// identify returns the identity that form reads from c, a user certificate that
// one of cas signed, for a peer that may show it.
func (t Trust) identify(
	c *ssh.Certificate, cas []ssh.PublicKey, form func(*ssh.Certificate) (*Identity, error), p Peer,
) (*Identity, error) {
	if err := t.check(c, ssh.UserCert, cas, p.Now); err != nil {
		return nil, err
	}
	id, err := form(c)
	if err != nil {
		return nil, err
	}
	id.Addr = p.Addr.Unmap().WithZone("")
	return id, checkSource(id, p.Addr)
}

func (t Trust) checkAnyHost(c *ssh.Certificate, now time.Time) error {
	if err := t.check(c, ssh.HostCert, t.Host, now); err != nil {
		return err
	}
	return checkHostForm(c)
}

// check refuses c unless it is a certificate of certType that one of cas signed
// and that is valid now. The cheap checks come first: nothing is computed with
// a stranger's key.
func (t Trust) check(c *ssh.Certificate, certType uint32, cas []ssh.PublicKey, now time.Time) error {
	if c == nil {
		return refuse(CodeNotCertificate, "there is no certificate")
	}
	if err := checkKey(c.Key); err != nil {
		return err
	}
	if _, ok := c.SignatureKey.(*ssh.Certificate); ok {
		return refuse(CodeNested, "the signature key is itself a certificate")
	}
	if err := checkType(c, certType); err != nil {
		return err
	}
	if !signedBy(c, cas) {
		if other, ok := t.Type(c); ok {
			return refuse(CodeWrongCA, "signed by the %s authority, which is not trusted for this", other)
		}
		return refuse(CodeWrongCA, "signed by a key that is no authority of this cluster")
	}
	if err := checkValidity(c, now); err != nil {
		return err
	}
	return checkSignature(c)
}

func checkType(c *ssh.Certificate, want uint32) error {
	switch c.CertType {
	case want:
		return nil
	case ssh.HostCert:
		return refuse(CodeHostAsUser, "a host certificate where a user certificate belongs")
	case ssh.UserCert:
		return refuse(CodeUserAsHost, "a user certificate where a host certificate belongs")
	}
	return refuse(CodeWrongType, "certificate type %d is unknown", c.CertType)
}

func signedBy(c *ssh.Certificate, cas []ssh.PublicKey) bool {
	if _, nested := c.SignatureKey.(*ssh.Certificate); nested || c.SignatureKey == nil {
		return false
	}
	key := c.SignatureKey.Marshal()
	return slices.ContainsFunc(cas, func(ca ssh.PublicKey) bool { return bytes.Equal(ca.Marshal(), key) })
}

// checkValidityForm refuses a certificate without an end, with one before its
// start, or with times that time.Time cannot hold.
func checkValidityForm(c *ssh.Certificate) error {
	if c.ValidBefore > math.MaxInt64 || c.ValidAfter >= c.ValidBefore {
		return refuse(CodeBadValidity, "valid from %d to %d: want an end after the start", c.ValidAfter, c.ValidBefore)
	}
	return nil
}

func checkValidity(c *ssh.Certificate, now time.Time) error {
	if err := checkValidityForm(c); err != nil {
		return err
	}
	after, before := validity(c)
	if now.Before(after.Add(-Tolerance)) {
		return refuse(CodeNotYetValid, "valid from %s", after.Format(time.RFC3339))
	}
	if !now.Before(before) {
		return refuse(CodeExpired, "valid until %s", before.Format(time.RFC3339))
	}
	return nil
}

func validity(c *ssh.Certificate) (after, before time.Time) {
	return time.Unix(int64(c.ValidAfter), 0).UTC(), time.Unix(int64(c.ValidBefore), 0).UTC() // checkValidityForm bounds both
}

func checkSignature(c *ssh.Certificate) error {
	if c.Signature == nil {
		return refuse(CodeBadSignature, "there is no signature")
	}
	switch c.Signature.Format {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512:
	default: // "ssh-rsa" is SHA-1 (RFC 8332, section 1)
		return refuse(CodeWeakSignature, "signature algorithm %.80q is not accepted", c.Signature.Format)
	}
	if err := c.SignatureKey.Verify(signedBytes(c), c.Signature); err != nil {
		return refuse(CodeBadSignature, "the signature does not verify")
	}
	return nil
}

// signedBytes returns what an authority signs: the certificate up to the
// signature (OpenSSH PROTOCOL.certkeys, "signature").
func signedBytes(c *ssh.Certificate) []byte {
	unsigned := *c
	unsigned.Signature = nil
	b := unsigned.Marshal()
	const emptySignature = 4 // its length, zero
	return b[:len(b)-emptySignature]
}

// sources returns the networks of c's source-address. Any other critical option
// is refused, and so is a source-address that allows nothing or whose meaning
// could be disputed: empty, with blanks, host bits, zones, IPv4 written as IPv6.
func sources(c *ssh.Certificate) ([]netip.Prefix, error) {
	for option, value := range c.CriticalOptions {
		if option == optionVerifyRequired && value == "" && verifies(c) {
			continue
		}
		if option != optionSourceAddress {
			return nil, refuse(CodeCriticalOption, "critical option %.80q is not supported", option)
		}
	}
	list, ok := c.CriticalOptions[optionSourceAddress]
	if !ok {
		return nil, nil
	}
	items := strings.Split(list, ",")
	if len(items) > maxSources {
		return nil, refuse(CodeSourceAddress, "source-address has %d networks, want at most %d", len(items), maxSources)
	}
	prefixes := make([]netip.Prefix, len(items))
	for i, item := range items {
		p, ok := parseSource(item)
		if !ok {
			return nil, refuse(CodeSourceAddress, "source-address: network %.80q is malformed", item)
		}
		prefixes[i] = p
	}
	return prefixes, nil
}

// verifies reports whether c says that its key makes sure who signs.
func verifies(c *ssh.Certificate) bool {
	k, err := decodeKey(c)
	return err == nil && k == SecurityKeyPIN && IsSecurityKey(c.Key)
}

// IsSecurityKey reports whether key is one of a FIDO authenticator (OpenSSH
// PROTOCOL.u2f). A certificate is none; its key may be.
func IsSecurityKey(key ssh.PublicKey) bool {
	return key.Type() == ssh.KeyAlgoSKED25519 || key.Type() == ssh.KeyAlgoSKECDSA256
}

// parseSource reads a network, or an address as the network of itself.
func parseSource(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	return p, err == nil && p == p.Masked() && !p.Addr().Is4In6()
}

// checkSource refuses id to a peer at addr outside its networks. A peer without
// an address, such as a Unix socket's, is outside every network.
func checkSource(id *Identity, addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	if len(id.SourceAddresses) > 0 && !slices.ContainsFunc(id.SourceAddresses, in) {
		return refuse(CodeSourceAddress, "the peer's address %s is outside %v", addr, id.SourceAddresses)
	}
	return nil
}
