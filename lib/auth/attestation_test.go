package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// Flags of authenticator data (WebAuthn level 2, section 6.1).
const (
	flagPresent  = 0x01
	flagAttested = 0x40
	flagExtended = 0x80
)

// A maker attests one key; a test has something of it wrong.
type maker struct {
	challenge   []byte
	application string
	flags       byte
	model       []byte
	cose        []byte // in place of the key's own
	after       []byte // behind the key
	cut         int    // bytes less of the authenticator data
	extension   []byte // model in the certificate; nil leaves it out
	unit        string
	ca          bool          // the certificate is an authority's
	age         time.Duration // since the certificate ended
	unsigned    bool
	bare        bool // no certificate
}

// attest returns an attestation of a security key in software, and who vouches.
func (m maker) attest(t *testing.T) (file []byte, key ssh.PublicKey, roots *x509.CertPool) {
	t.Helper()
	file, key, ca := m.attested(t)
	roots = x509.NewCertPool()
	roots.AddCert(ca)
	return file, key, roots
}

func (m maker) attested(t *testing.T) (file []byte, key ssh.PublicKey, ca *x509.Certificate) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	public, _, err := ed25519.GenerateKey(nil)
	must(err)
	key, err = ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	must(err)
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: attestTime.Add(-time.Hour), NotAfter: attestTime.Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, root.Public(), root)
	must(err)
	ca, err = x509.ParseCertificate(der)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: attestTime.Add(-time.Hour - m.age), NotAfter: attestTime.Add(time.Minute - m.age), BasicConstraintsValid: true, IsCA: m.ca,
		Subject: pkix.Name{Organization: []string{"Maker"}, OrganizationalUnit: []string{m.unit}, CommonName: "Key"},
	}
	if m.extension != nil {
		id, err := asn1.Marshal(m.extension)
		must(err)
		leaf.ExtraExtensions = []pkix.Extension{{Id: fidoAAGUID, Value: id}}
	}
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	cert, err := x509.CreateCertificate(rand.Reader, leaf, ca, vendor.Public(), root)
	must(err)
	if m.cose == nil {
		m.cose = slices.Concat([]byte{0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32}, public)
	}
	rp, sum := sha256.Sum256([]byte(m.application)), sha256.Sum256(m.challenge)
	data := slices.Concat(rp[:], []byte{m.flags, 0, 0, 0, 7}, m.model, []byte{0, 4}, []byte("name"), m.cose, m.after)
	data = data[:len(data)-m.cut]
	digest := sha256.Sum256(slices.Concat(data, sum[:]))
	signature, err := ecdsa.SignASN1(rand.Reader, vendor, digest[:])
	must(err)
	if m.unsigned {
		signature = []byte{0x30, 0}
	}
	if m.bare {
		cert = nil
	}
	wrapped := append(binary.BigEndian.AppendUint16([]byte{0x59}, uint16(len(data))), data...)
	return ssh.Marshal(struct {
		Magic                        string
		Certificate, Signature, Data []byte
		Flags                        uint32
		Reserved                     []byte
	}{attestMagic, cert, signature, wrapped, 0, nil}), key, ca
}

// attestTime is when attestations are looked at.
var attestTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Whatever is wrong with an attestation, alone, is found and named.
func TestAttestationRefused(t *testing.T) {
	model := bytes.Repeat([]byte{0xab}, 16)
	protects := append([]byte{0xa1, 0x6b}, "credProtect\x03"...)
	for name, row := range map[string]struct {
		change func(*maker)
		words  string // "" is taken
		pin    bool
	}{
		"nothing":                      {func(*maker) {}, "", false},
		"no model in the certificate":  {func(m *maker) { m.extension = nil }, "", false},
		"a PIN":                        {func(m *maker) { m.flags, m.after = m.flags|flagExtended, protects }, "", true},
		"a PIN that it may do without": {func(m *maker) { m.flags, m.after = m.flags|flagExtended, append(bytes.Clone(protects[:13]), 2) }, "", false},
		"another application":          {func(m *maker) { m.application = "web" }, "for another application", false},
		"nobody there":                 {func(m *maker) { m.flags &^= flagPresent }, "nobody touched", false},
		"no key in it":                 {func(m *maker) { m.flags &^= flagAttested }, "malformed", false},
		"another key": {func(m *maker) {
			m.cose = slices.Concat([]byte{0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32}, make([]byte, 32))
		}, "of another key", false},
		"a key without its curve":      {func(m *maker) { m.cose = []byte{0xa2, 1, 1, 3, 0x27} }, "of another key", false},
		"a field twice":                {func(m *maker) { m.cose = []byte{0xa2, 1, 1, 1, 1} }, "malformed", false},
		"a list for a key":             {func(m *maker) { m.cose = []byte{0x80} }, "malformed", false},
		"something behind it":          {func(m *maker) { m.after = []byte{0} }, "malformed", false},
		"extensions that are not told": {func(m *maker) { m.after = protects }, "malformed", false},
		"cut off":                      {func(m *maker) { m.cut = 1 }, "malformed", false},
		"its head alone":               {func(m *maker) { m.cut = 60 }, "malformed", false},
		"another model's certificate":  {func(m *maker) { m.extension = make([]byte, 16) }, "of another model", false},
		"a certificate for else":       {func(m *maker) { m.unit = "Mail" }, "not one for attestation", false},
		"an authority's certificate":   {func(m *maker) { m.ca = true }, "not one for attestation", false},
		"a certificate of long ago":    {func(m *maker) { m.age = time.Hour }, "no maker that counts", false},
		"no certificate":               {func(m *maker) { m.bare = true }, "no maker vouches", false},
		"another challenge":            {func(m *maker) { m.challenge = []byte("other") }, "for another challenge", false},
		"no signature":                 {func(m *maker) { m.unsigned = true }, "not signed", false},
	} {
		m := maker{
			challenge: []byte("challenge"), application: "ssh:", flags: flagPresent | flagAttested, model: model, extension: model, unit: "Authenticator Attestation",
		}
		row.change(&m)
		file, key, roots := m.attest(t)
		a, err := parseAttestation(file, key)
		if err == nil {
			err = a.verify(roots, []byte("challenge"), attestTime)
		}
		switch {
		case row.words != "" && (err == nil || !strings.Contains(err.Error(), row.words)):
			t.Errorf("%s: %v, want %q", name, err, row.words)
		case row.words == "" && (err != nil || a.pin != row.pin || a.aaguid != "abababab-abab-abab-abab-abababababab"):
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		for n := range file {
			if _, err := parseAttestation(file[:n], key); err == nil {
				t.Errorf("%s: its first %d bytes are taken", name, n)
				break
			}
		}
	}
	file, key, _ := maker{application: "ssh:", flags: flagPresent | flagAttested, model: model}.attest(t)
	_, _, strangers := maker{model: model}.attest(t)
	if a, err := parseAttestation(file, key); err != nil || a.verify(strangers, nil, attestTime) == nil {
		t.Errorf("another maker vouches for it: %v", err)
	}
}

// TestChallengeIsGoodForOneKey: a second key that was made with a challenge is refused
// by every authority, and so is the first once it was removed; one that is refused for
// something else leaves it good.
func TestChallengeIsGoodForOneKey(t *testing.T) {
	one := newWorld(t, plan{})
	two := newWorld(t, plan{backend: one.back, sealKey: filepath.Join(one.dir, "seal.key")})
	for _, w := range []*world{one, two} {
		w.clock.advance(attestTime.Sub(w.clock.Now()))
	}
	one.addUser("alice", "access")
	challenge := must(t, one.admin().NewKeyChallenge, &accessdv1.NewKeyChallengeRequest{User: "alice"}).GetChallenge()
	m := maker{challenge: challenge, application: "ssh:", flags: flagPresent | flagAttested, model: make([]byte, 16), unit: "Authenticator Attestation"}
	var makers []byte
	var tries []*accessdv1.AddUserKeyRequest
	for range 3 {
		file, key, ca := m.attested(t)
		makers = append(makers, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
		tries = append(tries, &accessdv1.AddUserKeyRequest{User: "alice", PublicKey: keyLine(key), Attestation: file, Challenge: challenge})
	}
	must(t, one.admin().SetAuthenticators, &accessdv1.SetAuthenticatorsRequest{Authenticators: &accessdv1.Authenticators{Roots: string(makers)}})
	refused := func(what string, w *world, r *accessdv1.AddUserKeyRequest) {
		t.Helper()
		w.rec.take()
		_, err := call(t, w.admin().AddUserKey, r)
		if !fault.Is(err, fault.Denied) || !strings.HasSuffix(fault.Public(err), "the challenge was used before") {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.UserKeyCreate || evs[0].Success || !strings.Contains(evs[0].Error, "the challenge was used before") {
			t.Errorf("%s: events = %+v, want one refusal", what, evs)
		}
	}
	wrong := proto.CloneOf(tries[0])
	wrong.PublicKey = tries[1].GetPublicKey()
	if _, err := call(t, one.admin().AddUserKey, wrong); !fault.Is(err, fault.Denied) || strings.Contains(fault.Public(err), "used before") {
		t.Errorf("another key: %v, want a refusal", err)
	}
	added := must(t, one.admin().AddUserKey, tries[0]).GetKey()
	if added.GetAaguid() == "" {
		t.Errorf("key = %v, want its model", added)
	}
	refused("a second key", one, tries[1])
	refused("a second key, at another authority", two, tries[2])
	must(t, two.admin().RemoveUserKey, &accessdv1.RemoveUserKeyRequest{User: "alice", Fingerprint: added.GetFingerprint()})
	refused("the first again", two, tries[0])
	spaced := proto.CloneOf(tries[1])
	spaced.Challenge = append(slices.Clone(challenge), '\n')
	refused("a second key, and the challenge written otherwise", one, spaced)
	another := must(t, two.admin().NewKeyChallenge, &accessdv1.NewKeyChallengeRequest{User: "alice"}).GetChallenge()
	m.challenge = another
	file, key, ca := m.attested(t)
	must(t, two.admin().SetAuthenticators, &accessdv1.SetAuthenticatorsRequest{Authenticators: &accessdv1.Authenticators{
		Roots: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})),
	}})
	must(t, two.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "alice", PublicKey: keyLine(key), Attestation: file, Challenge: another})
}

// FuzzCBOR: what is read of an authenticator's word is bounded, and refused or
// read without going beyond it.
func FuzzCBOR(f *testing.F) {
	for _, s := range []string{"a501020326200121582000", "a16b6372656450726f7465637403", "5903e8", "9fff", "bb7fffffffffffffff", "818181818181"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &cborReader{rest: b}
		if m, err := r.mapping(); err == nil && (len(m) > maxCBORItems || len(r.rest) >= len(b)) {
			t.Errorf("%x: %d items, %d bytes left", b, len(m), len(r.rest))
		}
	})
}

// FuzzAttestation: bytes of a stranger's are refused and nothing else.
func FuzzAttestation(f *testing.F) {
	public := make([]byte, 32)
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("ssh-sk-attest-v01"), []byte{0xa0})
	sum := sha256.Sum256([]byte("ssh:"))
	f.Add([]byte{}, append(append(append(sum[:], 0x41), make([]byte, 22)...), append([]byte("\xa4\x01\x01\x03\x27\x20\x06\x21\x58\x20"), public...)...))
	f.Fuzz(func(t *testing.T, file, data []byte) {
		if a, err := parseAttestation(file, key); err == nil && a.cert == nil {
			t.Errorf("%q: an attestation without a certificate", file)
		}
		a := &attestation{data: data}
		if a.read(key) == nil && (len(a.aaguid) != 36 || len(data) < 87) {
			t.Errorf("%x: read as of model %q", data, a.aaguid)
		}
	})
}
