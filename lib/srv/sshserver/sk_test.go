package sshserver

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/big"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Flags of a FIDO signature (OpenSSH PROTOCOL.u2f, "SSH U2F signatures").
const (
	skTouched  = 0x01
	skVerified = 0x04
)

// token is a security key in software: it signs whether or not anybody has touched
// it, and says so in the flags.
type token struct {
	public ssh.PublicKey
	flags  byte
	sign   func(message []byte) []byte // the blob of a signature
}

// PublicKey implements [ssh.Signer].
func (k *token) PublicKey() ssh.PublicKey { return k.public }

// Sign implements [ssh.Signer].
func (k *token) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	application, sum := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	state := binary.BigEndian.AppendUint32([]byte{k.flags}, 7)
	message := append(append(application[:], state...), sum[:]...)
	return &ssh.Signature{Format: k.public.Type(), Blob: k.sign(message), Rest: state}, nil
}

func newED25519Token(t *testing.T) *token {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(slices.Concat(str(ssh.KeyAlgoSKED25519), str(string(public)), str("ssh:")))
	if err != nil {
		t.Fatal(err)
	}
	return &token{public: key, sign: func(m []byte) []byte { return ed25519.Sign(private, m) }}
}

func newECDSAToken(t *testing.T) *token {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(slices.Concat(str(ssh.KeyAlgoSKECDSA256), str("nistp256"), str(string(point)), str("ssh:")))
	if err != nil {
		t.Fatal(err)
	}
	return &token{public: key, sign: func(m []byte) []byte {
		sum := sha256.Sum256(m)
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			panic(err)
		}
		return ssh.Marshal(struct{ R, S *big.Int }{r, s})
	}}
}

// TestSecurityKeyWithoutTouch: CVE-2026-39831. Malware on the person's machine has
// the security key sign while nobody touches it. The signature says so, and is not
// taken; nor is a certificate that would do without.
func TestSecurityKeyWithoutTouch(t *testing.T) {
	for name, k := range map[string]*token{"ed25519": newED25519Token(t), "ecdsa": newECDSAToken(t)} {
		for how, c := range map[string]struct {
			signer ssh.Signer
			never  bool
		}{
			"key": {signer: k}, "certificate": {signer: certified(t, k, "permit-pty")}, "certificate without touch": {certified(t, k, noTouch), true},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				w := newWorld(t, nil)
				w.alice = c.signer
				for _, flags := range []byte{0, skVerified, skTouched, skTouched | skVerified} {
					k.flags = flags
					_, err := w.dial(w.serve(), &ssh.ClientConfig{
						User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(c.signer)}, HostKeyCallback: ssh.FixedHostKey(w.host.PublicKey()),
					})
					if want := flags&skTouched != 0 && !c.never; (err == nil) != want {
						t.Errorf("flags %#x: %v, want in: %v", flags, err, want)
					}
				}
			})
		}
	}
}

// certified returns k with a certificate that has an extension.
func certified(t *testing.T, k *token, extension string) ssh.Signer {
	t.Helper()
	cert := &ssh.Certificate{
		Key: k.public, CertType: ssh.UserCert, KeyId: "alice", ValidPrincipals: []string{"alice"}, ValidBefore: ssh.CertTimeInfinity,
		Permissions: ssh.Permissions{Extensions: map[string]string{extension: ""}},
	}
	if err := cert.SignCert(rand.Reader, newSigner(t)); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, k)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}
