package sshca_test

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// FuzzCertificate feeds a peer's bytes to every check: nothing panics, and what
// is accepted is byte for byte one of the certificates that were signed.
func FuzzCertificate(f *testing.F) {
	w := newWorld()
	signed := [][]byte{
		must(f)(sshca.MintUser(w.user, w.userRequest())).Marshal(),
		must(f)(sshca.MintMember(w.node, w.memberRequest())).Marshal(),
		must(f)(sshca.MintHost(w.host, w.hostRequest())).Marshal(),
	}
	for _, b := range signed {
		f.Add(b)
	}
	f.Add(w.key.PublicKey().Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := ssh.ParsePublicKey(b)
		if err != nil {
			return
		}
		c, ok := key.(*ssh.Certificate)
		if !ok {
			return
		}
		_, userErr := w.trust.CheckUser(c, w.peer("alice"))
		_, loginErr := w.trust.CheckLogin(c, w.peer("root"))
		_, memberErr := w.trust.CheckMember(c, w.peer("n1"))
		hostErr := w.trust.CheckHost(c, "n1", now)
		if userErr != nil && loginErr != nil && memberErr != nil && hostErr != nil {
			return
		}
		for _, s := range signed {
			if bytes.Equal(c.Marshal(), s) {
				return
			}
		}
		t.Errorf("accepted a certificate nobody signed: %q", b)
	})
}

// FuzzExtensions has the real authority sign arbitrary key ids, principals and
// extensions: a check refuses them, or minting the identity it returns writes
// the same bytes again.
func FuzzExtensions(f *testing.F) {
	w := newWorld()
	f.Add("alice", "root", `["access"]`, `{"team":["a"]}`, `"totp"`, "", "10.0.0.0/8")
	f.Add("alice", "", `[]`, ``, ``, `["`+memberID+`"]`, "")
	f.Add("p, admin, *", "*", `["a","a"]`, `{"a":null}`, `"\u0000"`, `["a"]`, "::ffff:1.2.3.4/99")
	f.Fuzz(func(t *testing.T, user, login, roles, traits, mfa, requests, source string) {
		c := must(t)(sshca.MintUser(w.user, w.userRequest()))
		c.KeyId, c.ValidPrincipals = user, []string{"user:" + user}
		if login != "" {
			c.ValidPrincipals = append(c.ValidPrincipals, login)
		}
		c.CriticalOptions = map[string]string{}
		if source != "" {
			c.CriticalOptions["source-address"] = source
		}
		for name, text := range map[string]string{"roles@accessd": roles, "traits@accessd": traits, "mfa@accessd": mfa, "factor@accessd": mfa, "requests@accessd": requests} {
			delete(c.Extensions, name)
			if text != "" {
				c.Extensions[name] = text
			}
		}
		sign(t, c, w.user)
		id, err := w.trust.CheckUser(c, w.peer(user))
		if err != nil {
			return
		}
		again := must(t)(sshca.MintUser(w.user, sshca.UserRequest{
			Key: c.Key, User: id.User, Roles: id.Roles, Logins: id.Logins, Traits: id.Traits, MFA: id.MFA, Factor: id.Factor, Requests: id.Requests,
			ValidAfter: id.ValidAfter, ValidBefore: id.ValidBefore, SourceAddresses: id.SourceAddresses, Serial: id.Serial,
		}))
		for name, text := range again.Extensions {
			if c.Extensions[name] != text {
				t.Errorf("%s %q reads back as %q", name, c.Extensions[name], text)
			}
		}
		if _, err := names.ParseUserName(user); err != nil {
			t.Errorf("accepted the user name %q", user)
		}
		for _, l := range id.Logins {
			if _, err := names.ParseLogin(string(l)); err != nil || string(l) != login {
				t.Errorf("accepted the login %q of principal %q", l, login)
			}
		}
	})
}

func BenchmarkMintUser(b *testing.B) {
	w := newWorld()
	for b.Loop() {
		must(b)(sshca.MintUser(w.user, w.userRequest()))
	}
}

func BenchmarkCheckUser(b *testing.B) {
	w := newWorld()
	c := must(b)(sshca.MintUser(w.user, w.userRequest()))
	for b.Loop() {
		if _, err := w.trust.CheckUser(c, w.peer("alice")); err != nil {
			b.Fatal(err)
		}
	}
}
