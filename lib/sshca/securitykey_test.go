package sshca_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
)

// A certificate says of which kind its key is, and to sshd that who signs is to be
// verified. That option is taken of no other: what it asks for cannot be seen here.
func TestSecurityKeyInCertificate(t *testing.T) {
	w := newWorld()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []sshca.SecurityKey{"", sshca.SecurityKeyTouch, sshca.SecurityKeyPIN} {
		r := w.userRequest()
		r.SecurityKey = kind
		for what, k := range map[string]ssh.PublicKey{"security key": key, "key for one connection": w.key.PublicKey()} {
			r.Key = k
			c, err := sshca.MintUser(w.user, r)
			if err != nil {
				t.Fatalf("%s %q: %v", what, kind, err)
			}
			id, err := w.trust.CheckUser(c, w.peer("alice"))
			if err != nil || id.SecurityKey != kind {
				t.Errorf("%s %q: %+v, %v", what, kind, id, err)
			}
			if _, says := c.CriticalOptions["verify-required"]; says != (kind == sshca.SecurityKeyPIN && what == "security key") {
				t.Errorf("%s %q: critical options %v", what, kind, c.CriticalOptions)
			}
		}
	}
	for what, edit := range map[string]func(*ssh.Certificate){
		"of a key that is only touched": func(c *ssh.Certificate) { c.Extensions["key@accessd"] = `"touch"` },
		"of an ordinary key":            func(c *ssh.Certificate) { c.Key = w.key.PublicKey() },
		"that says nothing of the key":  func(c *ssh.Certificate) { delete(c.Extensions, "key@accessd") },
		"with a value":                  func(c *ssh.Certificate) { c.CriticalOptions["verify-required"] = "no" },
		"of a kind that is unknown":     func(c *ssh.Certificate) { c.Extensions["key@accessd"] = `"none"` },
	} {
		r := w.userRequest()
		r.Key, r.SecurityKey = key, sshca.SecurityKeyPIN
		c, err := sshca.MintUser(w.user, r)
		if err != nil {
			t.Fatal(err)
		}
		edit(c)
		if err := c.SignCert(rand.Reader, w.user); err != nil {
			t.Fatal(err)
		}
		if id, err := w.trust.CheckUser(c, w.peer("alice")); err == nil {
			t.Errorf("verify-required %s: taken as %+v", what, id)
		}
	}
}
