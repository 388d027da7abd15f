package auth

import (
	"crypto/ed25519"
	"testing"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// securityKey returns the public half of a new security key.
func securityKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// touch has m tell that key was touched for a connection of the certificate.
func (c *careful) touch(m *member, certificate string, key ssh.PublicKey) (*accessdv1.VerifyFactorResponse, error) {
	return call(c.w.t, c.w.factors(m.identity).VerifyFactor, &accessdv1.VerifyFactorRequest{
		Credential: &accessdv1.VerifyFactorRequest_Certificate{Certificate: certificate}, Client: clientAddr.String(), TouchedKey: keyLine(key),
	})
}

// TestTouchedKeyIsThePersons: a touch is a second factor when the key is that of
// the credential, or is enrolled for its person, and a security key. Anybody has
// one of some kind.
func TestTouchedKeyIsThePersons(t *testing.T) {
	c := newCareful(t)
	own, mine, others := securityKey(t), securityKey(t), securityKey(t)
	signed := must(t, c.w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(own)}).GetCertificate()
	c.w.addUser("bob", "strict")
	must(t, c.w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "alice", PublicKey: keyLine(mine)})
	must(t, c.w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "bob", PublicKey: keyLine(others)})
	soft := proxyKey()
	must(t, c.w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "alice", PublicKey: keyLine(soft)})
	c.w.rec.take()
	for what, good := range map[string]struct {
		certificate string
		key         ssh.PublicKey
	}{"the certificate's": {signed, own}, "an enrolled one": {c.cert, mine}} {
		if res, err := c.touch(c.proxy, good.certificate, good.key); err != nil || res.GetMethod() != "touch" || res.GetProof() == "" {
			t.Errorf("%s: %v, %v", what, res, err)
		}
	}
	if evs := named(c.w.rec.take(), events.FactorVerify); len(evs) != 2 || !evs[0].Success || evs[0].Fields["method"] != "touch" || evs[0].Fields["touched"] == "" {
		t.Errorf("events = %+v", evs)
	}
	for what, key := range map[string]ssh.PublicKey{"of nobody": own, "of bob": others, "no security key": soft} {
		if _, err := c.touch(c.proxy, c.cert, key); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, want a denial", what, err)
		}
	}
	if evs := named(c.w.rec.take(), events.FactorVerify); len(evs) != 3 || evs[0].Success {
		t.Errorf("events = %+v, want three refusals", evs)
	}
}
