package sshca_test

import (
	"crypto/dsa" //nolint:staticcheck // only to offer one
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// now is when every test happens.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// world is a cluster's four authorities, a stranger and what they sign for.
type world struct {
	user, host, node, sshd, stranger ssh.Signer
	key                              ssh.Signer // holder of the certificates
	trust                            sshca.Trust
}

func newWorld() *world {
	w := &world{}
	for _, s := range []*ssh.Signer{&w.user, &w.host, &w.node, &w.sshd, &w.stranger, &w.key} {
		_, *s = sshca.Generate()
	}
	w.trust = sshca.Trust{
		User: []ssh.PublicKey{w.user.PublicKey()}, Host: []ssh.PublicKey{w.host.PublicKey()},
		Node: []ssh.PublicKey{w.node.PublicKey()}, SSHD: []ssh.PublicKey{w.sshd.PublicKey()},
	}
	return w
}

func (w *world) userRequest() sshca.UserRequest {
	return sshca.UserRequest{
		Key: w.key.PublicKey(), User: "alice", Roles: []names.RoleName{"ops", "access", "ops"},
		Logins: []names.Login{"root", "deploy", "root"}, Traits: map[string][]string{"team": {"blue", "grün"}},
		MFA: "totp", Requests: []string{memberID, memberID}, ValidAfter: now.Add(-time.Minute), ValidBefore: now.Add(time.Hour), Serial: 7,
	}
}

// memberID is the id of the member n1 in these tests.
const memberID = "0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11"

func (w *world) memberRequest() sshca.MemberRequest {
	return sshca.MemberRequest{
		Key: w.key.PublicKey(), ID: memberID, Name: "n1", Kind: sshca.KindNode,
		ValidAfter: now.Add(-time.Minute), ValidBefore: now.Add(time.Hour), Serial: 8,
	}
}

func (w *world) hostRequest() sshca.HostRequest {
	return sshca.HostRequest{
		Key: w.key.PublicKey(), KeyID: "node:" + memberID, Principals: []string{"n1", memberID, "localhost", "127.0.0.1", "::1"},
		ValidAfter: now.Add(-time.Minute), ValidBefore: now.Add(time.Hour), Serial: 9,
	}
}

// must returns the certificate of a Mint function.
func must(tb testing.TB) func(*ssh.Certificate, error) *ssh.Certificate {
	tb.Helper()
	return func(c *ssh.Certificate, err error) *ssh.Certificate {
		tb.Helper()
		if err != nil {
			tb.Fatalf("mint: %v", err)
		}
		return c
	}
}

// sign signs c with ca, whatever c says.
func sign(tb testing.TB, c *ssh.Certificate, ca ssh.Signer) *ssh.Certificate {
	tb.Helper()
	if err := c.SignCert(rand.Reader, ca); err != nil {
		tb.Fatalf("sign: %v", err)
	}
	return c
}

func (w *world) peer(sshUser string) sshca.Peer {
	return sshca.Peer{SSHUser: sshUser, Addr: netip.MustParseAddr("192.0.2.7"), Now: now}
}

// rsaSigner returns an RSA signer that signs with algorithm only.
func rsaSigner(tb testing.TB, bits int, algorithm string) ssh.Signer {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	multi, err := ssh.NewSignerWithAlgorithms(s.(ssh.AlgorithmSigner), []string{algorithm})
	if err != nil {
		tb.Fatal(err)
	}
	return multi
}

// rsaKey returns an RSA public key of the given size that nobody holds.
func rsaKey(tb testing.TB, bits uint) ssh.PublicKey {
	tb.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return publicKey(tb, &rsa.PublicKey{N: n.Add(n, big.NewInt(65)), E: 65537})
}

func dsaKey(tb testing.TB) ssh.PublicKey {
	tb.Helper()
	p := new(big.Int).Lsh(big.NewInt(1), 1023)
	q := new(big.Int).Lsh(big.NewInt(1), 159)
	return publicKey(tb, &dsa.PublicKey{Parameters: dsa.Parameters{P: p, Q: q, G: big.NewInt(2)}, Y: big.NewInt(4)})
}

func ecdsaKey(tb testing.TB, curve elliptic.Curve) ssh.PublicKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return publicKey(tb, &key.PublicKey)
}

func publicKey(tb testing.TB, key any) ssh.PublicKey {
	tb.Helper()
	k, err := ssh.NewPublicKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// fidoKey returns an sk-ssh-ed25519 key.
func fidoKey(tb testing.TB) ssh.PublicKey {
	tb.Helper()
	k, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{
		ssh.KeyAlgoSKED25519, strings.Repeat("k", 32), "ssh:",
	}))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}
