// Package passkey asks browsers for passkeys and checks what they answer (Web
// Authentication, Level 3: https://www.w3.org/TR/webauthn-3/). It is the small part
// of that standard which a relying party with one page needs: discoverable
// credentials that verify their person, made without attestation. It keeps nothing
// and knows no users: who a key belongs to, that a challenge is asked once, and what
// a counter was before are its caller's.
//
// Without attestation a new key is a browser's word, whatever form it comes in, so
// the form is the one that Go's own parser reads: a SubjectPublicKeyInfo, which
// browsers make of what the device sent (section 5.2.1.1). No CBOR is read. What a
// passkey signs afterwards is checked over the very bytes that were signed.
package passkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Algorithms that are asked for, in the order in which they are liked (IANA's COSE
// registry). Every browser knows how to make a SubjectPublicKeyInfo of these.
const (
	es256 = -7
	eddsa = -8
	rs256 = -257
)

// Bounds of what is asked and taken.
const (
	challengeSize = 32      // random bytes (section 13.4.3 wants 16)
	MaxID         = 1023    // bytes (section 5.8.5)
	MaxKey        = 4 << 10 // bytes of a public key; RSA of 16384 bits has half of it
	minRSA        = 2048    // bits
	maxRSA        = 8192    // bits
	MaxTransports = 8
	maxTransport  = 32 // bytes
)

// Party is a relying party with one page. Only [At] makes one.
type Party struct {
	ID     string // host name that its passkeys are for
	origin string // of its page
}

// hostGrammar is what a relying party may be called: a host name whose last label is
// not a number, which browsers would take for a part of an address.
var hostGrammar = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// maxHost bounds a host name, in bytes (RFC 1035, section 2.3.4).
const maxHost = 253

// At returns the relying party of pages at base, https://HOST[:PORT], and whether
// there can be one: there are no passkeys for IP addresses (section 5.1.3, step 8).
func At(base string) (Party, bool) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" {
		return Party{}, false
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if _, err := netip.ParseAddr(host); err == nil || len(host) > maxHost || !hostGrammar.MatchString(host) {
		return Party{}, false
	}
	p := Party{ID: host, origin: "https://" + host}
	if port != "" && port != "443" { // a browser leaves its scheme's own out (RFC 6454, section 6.2)
		p.origin += ":" + port
	}
	return p, true
}

// NewChallenge returns what a passkey signs once.
func NewChallenge() string {
	b := make([]byte, challengeSize)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// base64url are bytes as they stand in JSON (section 3, "Base64url Encoding").
type base64url []byte

// MarshalText returns the bytes as text.
func (b base64url) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads what MarshalText makes, and nothing else.
func (b *base64url) UnmarshalText(text []byte) (err error) {
	*b, err = base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	return err
}

// descriptor names a passkey (section 5.8.3).
type descriptor struct {
	Type string    `json:"type"`
	ID   base64url `json:"id"`
}

const publicKey = "public-key" // the only type of credential (section 5.8.2)

type parameter struct {
	Type      string `json:"type"`
	Algorithm int    `json:"alg"`
}

type entity struct {
	ID          any    `json:"id"`
	Name        string `json:"name"`
	DisplayName string `json:"displayName,omitempty"`
}

type selection struct {
	ResidentKey        string `json:"residentKey"`
	RequireResidentKey bool   `json:"requireResidentKey"`
	UserVerification   string `json:"userVerification"`
}

// options are what navigator.credentials.create or get takes as publicKey (sections
// 5.4 and 5.5), with their buffers in base64url.
type options struct {
	Challenge string `json:"challenge"`
	Timeout   int64  `json:"timeout"` // milliseconds

	RPID             string `json:"rpId,omitempty"` // get alone
	UserVerification string `json:"userVerification,omitempty"`

	RP          *entity      `json:"rp,omitempty"` // create alone, as what follows
	User        *entity      `json:"user,omitempty"`
	Parameters  []parameter  `json:"pubKeyCredParams,omitempty"`
	Exclude     []descriptor `json:"excludeCredentials,omitempty"`
	Selection   *selection   `json:"authenticatorSelection,omitempty"`
	Attestation string       `json:"attestation,omitempty"`
}

func (o options) json() ([]byte, error) {
	return json.Marshal(map[string]options{"publicKey": o})
}

const required = "required"

// AskUse returns what a browser is asked to have a passkey, whoever's, sign a
// challenge.
func (p Party) AskUse(challenge string, timeout time.Duration) ([]byte, error) {
	return options{Challenge: challenge, Timeout: timeout.Milliseconds(), RPID: p.ID, UserVerification: required}.json()
}

// Wish is what a browser makes a passkey for.
type Wish struct {
	Challenge string
	Timeout   time.Duration
	Site      string   // what the person knows the relying party by
	User      string   // and themselves
	Handle    []byte   // what the passkey knows the user by
	Has       [][]byte // ids of passkeys whose devices need no further one
}

// AskNew returns what a browser is asked to make a passkey.
func (p Party) AskNew(w Wish) ([]byte, error) {
	o := options{
		Challenge: w.Challenge, Timeout: w.Timeout.Milliseconds(),
		RP: &entity{ID: p.ID, Name: w.Site}, User: &entity{ID: base64url(w.Handle), Name: w.User, DisplayName: w.User},
		Selection: &selection{required, true, required}, Attestation: "none",
	}
	for _, alg := range []int{es256, eddsa, rs256} {
		o.Parameters = append(o.Parameters, parameter{publicKey, alg})
	}
	for _, id := range w.Has {
		o.Exclude = append(o.Exclude, descriptor{publicKey, id})
	}
	return o.json()
}

// Key is the public half of a passkey.
type Key struct {
	ID         []byte
	PublicKey  []byte // SubjectPublicKeyInfo (RFC 5280, section 4.1)
	Model      []byte // AAGUID of the device, 16 bytes; zeros where it does not say
	Transports []string
	State
}

// State is what changes with each use of a passkey.
type State struct {
	Counter uint32
	Flags   byte // of the authenticator data (section 6.1)
}

// answer is a PublicKeyCredential as JSON (section 5.1.2).
type answer struct {
	ID       base64url `json:"rawId"`
	Type     string    `json:"type"`
	Response struct {
		ClientData base64url `json:"clientDataJSON"`
		Data       base64url `json:"authenticatorData"`

		PublicKey  base64url `json:"publicKey"` // create alone, as what follows
		Algorithm  int       `json:"publicKeyAlgorithm"`
		Transports []string  `json:"transports"`

		Signature base64url `json:"signature"` // get alone, as what follows
		Handle    base64url `json:"userHandle"`
	} `json:"response"`
}

func parse(text []byte) (answer, error) {
	var a answer
	if err := json.Unmarshal(text, &a); err != nil {
		return a, errors.New("it cannot be read")
	}
	if a.Type != publicKey || len(a.ID) == 0 || len(a.ID) > MaxID {
		return a, errors.New("it is of no passkey")
	}
	return a, nil
}

// clientData is what the browser says of the page that asked (section 5.8.1).
type clientData struct {
	Type        string `json:"type"`
	Challenge   string `json:"challenge"`
	Origin      string `json:"origin"`
	CrossOrigin bool   `json:"crossOrigin"`
	TopOrigin   string `json:"topOrigin"`
}

// checkPage refuses an answer to another page, or to another question than act with
// challenge (section 7.1, steps 7 to 11, and 7.2, steps 10 to 14).
func (p Party) checkPage(text []byte, act, challenge string) error {
	var c clientData
	if err := json.Unmarshal(text, &c); err != nil {
		return errors.New("what the browser says of the page cannot be read")
	}
	switch {
	case c.Type != act:
		return fmt.Errorf("it is for %.40q, not %q", c.Type, act)
	case challenge == "" || c.Challenge != challenge:
		return errors.New("it is to another challenge")
	case c.Origin != p.origin || c.CrossOrigin || c.TopOrigin != "":
		return fmt.Errorf("it was given to the page %.200q, not %q", c.Origin, p.origin)
	}
	return nil
}

// read returns what the device says, if it is for p and it has verified the person
// (section 7.1, steps 13 to 18, and 7.2, steps 16 to 20).
func (p Party) read(data []byte) (Data, error) {
	d, ok := ParseData(data)
	hash := sha256.Sum256([]byte(p.ID))
	switch {
	case !ok:
		return d, errors.New("what the device says is too short")
	case !bytes.Equal(d.Hash, hash[:]):
		return d, errors.New("it is for another host name")
	case !d.Present() || d.Flags&flagVerified == 0:
		return d, errors.New("the device has not verified its person")
	case d.Flags&flagEligible == 0 && d.Flags&flagBackedUp != 0:
		return d, errors.New("the device contradicts itself about backups")
	}
	return d, nil
}

// New returns the passkey that was made for a challenge (section 7.1).
func (p Party) New(text []byte, challenge string) (Key, error) {
	a, err := parse(text)
	if err != nil {
		return Key{}, err
	}
	if err := p.checkPage(a.Response.ClientData, "webauthn.create", challenge); err != nil {
		return Key{}, err
	}
	k := Key{ID: a.ID, PublicKey: a.Response.PublicKey}
	d, err := p.read(a.Response.Data)
	if err != nil {
		return Key{}, err
	}
	model, id, _, made := d.NewKey()
	if !made || !bytes.Equal(id, a.ID) {
		return Key{}, errors.New("the device has made no such key")
	}
	k.State, k.Model = State{d.Counter, d.Flags}, bytes.Clone(model)
	alg, err := k.algorithm()
	if err != nil {
		return Key{}, err
	}
	if alg != a.Response.Algorithm {
		return Key{}, errors.New("the key is for another algorithm")
	}
	if len(a.Response.Transports) > MaxTransports {
		return Key{}, errors.New("the device has too many ways to be reached")
	}
	for _, t := range a.Response.Transports {
		if len(t) > maxTransport {
			return Key{}, errors.New("the device is reached in a way that none is")
		}
	}
	k.Transports = a.Response.Transports
	return k, nil
}

// parse returns the public key, if it is one that is asked for.
func (k Key) parse() (crypto.PublicKey, error) {
	if len(k.PublicKey) > MaxKey {
		return nil, errors.New("the key is too long")
	}
	public, err := x509.ParsePKIXPublicKey(k.PublicKey)
	if err != nil {
		return nil, errors.New("the key cannot be read")
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P256() {
			return public, nil
		}
	case ed25519.PublicKey:
		return public, nil
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits >= minRSA && bits <= maxRSA {
			return public, nil
		}
	}
	return nil, errors.New("the key is of a kind that was not asked for")
}

func (k Key) algorithm() (int, error) {
	public, err := k.parse()
	switch public.(type) {
	case *ecdsa.PublicKey:
		return es256, err
	case ed25519.PublicKey:
		return eddsa, err
	}
	return rs256, err
}

// Use is a passkey's signature, not checked yet.
type Use struct {
	ID     []byte // of the passkey that is said to have made it
	Handle []byte // what that knows its user by
	answer answer
}

// ParseUse reads a passkey's signature, to find out whose it is said to be.
func ParseUse(text []byte) (Use, error) {
	a, err := parse(text)
	if err != nil {
		return Use{}, err
	}
	return Use{a.ID, a.Response.Handle, a}, nil
}

// Errors of [Party.Check] that are about the passkey, not about its answer.
var (
	ErrSignature = errors.New("the signature is not the passkey's")
	ErrCopied    = errors.New("its counter has not gone on: there may be a copy of the passkey")
)

// Check checks that k signed the challenge now, on p's page, with its person there
// and verified (section 7.2). It returns the state that k has from then on.
func (p Party) Check(u Use, challenge string, k Key) (State, error) {
	r := u.answer.Response
	if !bytes.Equal(u.ID, k.ID) {
		return k.State, errors.New("it is another passkey's")
	}
	if err := p.checkPage(r.ClientData, "webauthn.get", challenge); err != nil {
		return k.State, err
	}
	d, err := p.read(r.Data)
	if err != nil {
		return k.State, err
	}
	s := State{d.Counter, d.Flags}
	public, err := k.parse()
	if err != nil {
		return k.State, err
	}
	hash := sha256.Sum256(r.ClientData)
	if !signed(public, append(bytes.Clone(r.Data), hash[:]...), r.Signature) {
		return k.State, ErrSignature
	}
	switch {
	case s.Flags&flagEligible != k.Flags&flagEligible:
		return k.State, errors.New("the device has changed its mind about backups")
	case s.Counter <= k.Counter && s.Counter|k.Counter != 0: // section 6.1.1
		return k.State, ErrCopied
	}
	return s, nil
}

// signed reports whether public's key made the signature over message (section
// 6.5.5).
func signed(public crypto.PublicKey, message, signature []byte) bool {
	hash := sha256.Sum256(message)
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, hash[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(public, message, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, hash[:], signature) == nil
	}
	return false
}
