// Package sshca mints and checks OpenSSH certificates: it is the one place that
// turns a certificate into an [Identity] and a request into a certificate.
//
// A cluster has four authorities with separate keys, so that one kind of
// certificate can never serve as another:
//
//   - user signs what people log in with ([MintUser], [Trust.CheckUser] at a
//     proxy, [Trust.CheckLogin] at a node);
//   - host signs what proxies and nodes show ([MintHost], [Trust.CheckHost]);
//   - node signs what members dial home with ([MintMember],
//     [Trust.CheckMember]);
//   - sshd is the only one that plain sshd nodes trust; it signs for one login
//     and one session ([MintSession]), and no certificate of it is an identity
//     here.
//
// The format is that of OpenSSH's PROTOCOL.certkeys. What accessd adds stands
// in extensions named "…@accessd", each a JSON text; see [MintUser] and
// [MintMember].
//
// # What is refused
//
// The checks are this package's own; ssh.CertChecker leaves too much open (no
// principals means anybody, source-address is somebody else's work, SHA-1
// signatures count). A certificate is refused unless all of this holds: its
// key is Ed25519, ECDSA, a FIDO form of these, or RSA of 2048 to 4096 bits; it
// is of the type asked for; its signature key is, byte for byte, a trusted
// authority of the one kind asked for, never a certificate; the signature is
// good and not SHA-1; it is valid now, its start with [Tolerance]; it has an
// end; its only critical option is a well-formed source-address, which holds
// the peer's address; it has principals, each well formed; the wanted
// principal is among them, exactly; its key id and accessd extensions are in
// the one form this package writes. A certificate that a check here would
// refuse is never minted either.
//
// Refusals are [Refusal] errors of kind [fault.Denied]. Their cause is for the
// log and the audit event; a peer reads "permission denied" and no more.
//
// Revocation is not here: users who are gone and locks are part of the policy.
package sshca

import (
	"net/netip"
	"time"

	"github.com/accessd/accessd/lib/names"
)

// Type names one of the cluster's authorities.
type Type string

// The authorities.
const (
	TypeUser Type = "user" // signs people's certificates
	TypeHost Type = "host" // signs the host keys of proxies and nodes
	TypeNode Type = "node" // signs the keys members dial home with
	TypeSSHD Type = "sshd" // trusted by plain sshd nodes
)

// Kind says what an [Identity] is.
type Kind string

// The kinds.
const (
	KindUser  Kind = "user"
	KindNode  Kind = "node"
	KindProxy Kind = "proxy"
	KindAuth  Kind = "auth"
)

// SecurityKey says what is known of the key with which somebody signs; the zero
// value is nothing, and each includes those before.
type SecurityKey string

// The security keys (OpenSSH PROTOCOL.u2f).
const (
	SecurityKeyTouch SecurityKey = "touch" // signs when somebody touches it
	SecurityKeyPIN   SecurityKey = "pin"   // and has made sure, by PIN or fingerprint, who that is
)

// Is reports whether k is at least what want says.
func (k SecurityKey) Is(want SecurityKey) bool {
	return want == "" || k == SecurityKeyPIN || k == want
}

// Identity is who a checked certificate says its holder is. Only Check methods
// of [Trust] make one, and [Identity.WithFactor]; it is shared by pointer and
// never changed.
type Identity struct {
	Kind Kind

	User   names.UserName   // people only, as the three below
	Roles  []names.RoleName // sorted; what the certificate grants at most
	Logins []names.Login    // the principals that are logins, sorted
	Traits map[string][]string
	MFA    string // method of the last second factor, or ""

	// Factor is the method of the second factor that was given for this one
	// connection, or "".
	Factor string

	SecurityKey SecurityKey // the key with which the connection was begun

	Requests []string // access requests whose roles are among Roles; UUIDs, sorted

	For Origin // the certificates that this one stands for; locks on these hold for it

	Member     names.NodeID // members only
	MemberName names.NodeName

	Serial                  uint64
	KeyID                   string
	Fingerprint             string // "SHA256:…" of the holder's public key
	CAFingerprint           string // "SHA256:…" of the authority's public key
	ValidAfter, ValidBefore time.Time
	SourceAddresses         []netip.Prefix // empty means anywhere

	Addr netip.Addr // where it was shown from; zero when that is not known

	Certificate []byte // the certificate that was checked, in wire form
}

// WithFactor returns id with the second factor that was given for the connection
// it was proven on.
func (id *Identity) WithFactor(method string) *Identity {
	out := *id
	out.Factor = method
	return &out
}
