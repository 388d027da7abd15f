package sshca_test

import (
	"reflect"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

func TestUserIdentity(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintUser(w.user, w.userRequest()))
	parsed, err := ssh.ParsePublicKey(c.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.trust.CheckUser(parsed.(*ssh.Certificate), w.peer("alice"))
	if err != nil {
		t.Fatal(err)
	}
	want := &sshca.Identity{
		Kind: sshca.KindUser, User: "alice", Roles: []names.RoleName{"access", "ops"},
		Logins: []names.Login{"deploy", "root"}, Traits: map[string][]string{"team": {"blue", "grün"}}, MFA: "totp",
		Requests: []string{memberID},
		Serial:   7, KeyID: "alice", Fingerprint: ssh.FingerprintSHA256(w.key.PublicKey()),
		CAFingerprint: ssh.FingerprintSHA256(w.user.PublicKey()),
		ValidAfter:    now.Add(-time.Minute), ValidBefore: now.Add(time.Hour),
		Addr: w.peer("alice").Addr, Certificate: c.Marshal(),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("CheckUser = %+v, want %+v", got, want)
	}
}

func TestMemberIdentity(t *testing.T) {
	w := newWorld()
	for _, kind := range []sshca.Kind{sshca.KindNode, sshca.KindProxy, sshca.KindAuth} {
		r := w.memberRequest()
		r.Kind = kind
		got, err := w.trust.CheckMember(must(t)(sshca.MintMember(w.node, r)), w.peer("n1"))
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind != kind || got.Member != memberID || got.MemberName != "n1" || got.KeyID != string(kind)+":"+memberID {
			t.Errorf("CheckMember = %+v", got)
		}
	}
}

// TestMemberTable is the certificate function table for members (F25): above
// all, one member's certificate is never another's.
func TestMemberTable(t *testing.T) {
	w := newWorld()
	const other = "11111111-6a1c-4d8a-9d3c-0f7f1c9f3c11"
	rows := []change{
		{"good", func(*ssh.Certificate) {}, ""},
		{"host certificate", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, sshca.CodeHostAsUser},
		{"expired", valid(at(-time.Hour), at(-time.Second)), sshca.CodeExpired},
		{"no principals", principals(), sshca.CodeEmptyPrincipals},
		{"wildcard", principals("*"), sshca.CodeWrongPrincipal},
		{"another's principal", principals("member:" + other), sshca.CodeWrongPrincipal},
		{"two principals", principals("member:"+memberID, "member:"+other), sshca.CodeWrongPrincipal},
		{"login as principal", principals("root"), sshca.CodeWrongPrincipal},
		{"key id of another kind", func(c *ssh.Certificate) { c.KeyId = "proxy:" + memberID }, sshca.CodeBadKeyID},
		{"key id of another", func(c *ssh.Certificate) { c.KeyId = "node:" + other }, sshca.CodeWrongPrincipal},
		{"key id without id", func(c *ssh.Certificate) { c.KeyId = "node:" }, sshca.CodeBadKeyID},
		{"key id in upper case", func(c *ssh.Certificate) { c.KeyId = "node:0B9FDD2A-6A1C-4D8A-9D3C-0F7F1C9F3C11" }, sshca.CodeBadKeyID},
		{"kind user", extension("kind@accessd", `"user"`), sshca.CodeBadExtension},
		{"kind proxy", extension("kind@accessd", `"proxy"`), sshca.CodeBadKeyID},
		{"kind missing", without("kind@accessd"), sshca.CodeBadExtension},
		{"name missing", without("name@accessd"), sshca.CodeBadExtension},
		{"name malformed", extension("name@accessd", `"N1"`), sshca.CodeBadExtension},
		{"name not a text", extension("name@accessd", `["n1"]`), sshca.CodeBadExtension},
		{"another's name", extension("name@accessd", `"n2"`), sshca.CodeWrongPrincipal},
		{"force-command", option("force-command", "x"), sshca.CodeCriticalOption},
		{"source-address elsewhere", option("source-address", "10.0.0.0/8"), sshca.CodeSourceAddress},
		{"RSA 1024", key(rsaKey(t, 1024)), sshca.CodeWeakKey},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := must(t)(sshca.MintMember(w.node, w.memberRequest()))
			row.change(c)
			sign(t, c, w.node)
			id, err := w.trust.CheckMember(c, w.peer("n1"))
			expect(t, "CheckMember", c, id, err, row.want)
		})
	}
}

// TestHostTable is the certificate function table for hosts (F25).
func TestHostTable(t *testing.T) {
	w := newWorld()
	rows := []change{
		{"good", func(*ssh.Certificate) {}, ""},
		{"user certificate as host", func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, sshca.CodeUserAsHost},
		{"expired", valid(at(-time.Hour), at(-time.Second)), sshca.CodeExpired},
		{"starts in 61 s", valid(at(61*time.Second), at(time.Hour)), sshca.CodeNotYetValid},
		{"no principals", principals(), sshca.CodeEmptyPrincipals},
		{"wildcard", principals("n1", "*"), sshca.CodeBadPrincipal},
		{"pattern", principals("n1", "n*"), sshca.CodeBadPrincipal},
		{"comma", principals("n1,n2", "n1"), sshca.CodeBadPrincipal},
		{"upper case", principals("N1"), sshca.CodeBadPrincipal},
		{"empty principal", principals("n1", ""), sshca.CodeBadPrincipal},
		{"another's name", principals("n2"), sshca.CodeWrongPrincipal},
		{"longer name", principals("n11", "n1.example.com"), sshca.CodeWrongPrincipal},
		{"any critical option", option("source-address", "0.0.0.0/0"), sshca.CodeCriticalOption},
		{"key id with escape", func(c *ssh.Certificate) { c.KeyId = "\x1b[2J" }, sshca.CodeBadKeyID},
		{"RSA 1024", key(rsaKey(t, 1024)), sshca.CodeWeakKey},
		{"DSA", key(dsaKey(t)), sshca.CodeWeakKey},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := must(t)(sshca.MintHost(w.host, w.hostRequest()))
			row.change(c)
			sign(t, c, w.host)
			for _, err := range []error{
				w.trust.CheckHost(c, "n1", now),
				w.trust.CheckHost(c, "N1", now), // host names know no case
				w.trust.HostKeyCallback("n1", clock)("anything:22", nil, c),
			} {
				if row.want == "" {
					if err != nil {
						t.Errorf("CheckHost = %v, want nil", err)
					}
					continue
				}
				expect(t, "CheckHost", c, nil, err, row.want)
			}
		})
	}
}

func clock() time.Time { return now }

func TestHostKeyCallbackWantsCertificate(t *testing.T) {
	w := newWorld()
	expect(t, "plain key", nil, nil, w.trust.HostKeyCallback("n1", clock)("n1:22", nil, w.key.PublicKey()), sshca.CodeNotCertificate)
}

// TestPinnedHostKeyCallback: F18, wrong CA pin and man in the middle at join.
func TestPinnedHostKeyCallback(t *testing.T) {
	w := newWorld()
	good := must(t)(sshca.MintHost(w.host, w.hostRequest()))
	forged := must(t)(sshca.MintHost(w.stranger, w.hostRequest()))
	altered := must(t)(sshca.MintHost(w.host, w.hostRequest()))
	altered.ValidBefore++
	pins := []string{sshca.Pin(w.user.PublicKey()), sshca.Pin(w.host.PublicKey())}
	cases := []struct {
		name string
		pins []string
		key  ssh.PublicKey
		want sshca.Code
	}{
		{"good", pins, good, ""},
		{"wrong pin", pins[:1], good, sshca.CodeWrongCA},
		{"no pin", nil, good, sshca.CodeWrongCA},
		{"other authority", pins, forged, sshca.CodeWrongCA},
		{"altered", pins, altered, sshca.CodeBadSignature},
		{"plain host key", pins, w.key.PublicKey(), sshca.CodeNotCertificate},
		{"the authority's own key", pins, w.host.PublicKey(), sshca.CodeNotCertificate},
		{"user certificate of a pinned key", pins, must(t)(sshca.MintUser(w.user, w.userRequest())), sshca.CodeUserAsHost},
	}
	for _, row := range cases {
		t.Run(row.name, func(t *testing.T) {
			var trusted ssh.PublicKey
			err := sshca.PinnedHostKeyCallback(row.pins, clock, func(ca ssh.PublicKey) { trusted = ca })("x:1", nil, row.key)
			if row.want == "" {
				if err != nil || trusted == nil || sshca.Pin(trusted) != sshca.Pin(w.host.PublicKey()) {
					t.Errorf("callback = %v, trusts %v", err, trusted)
				}
				return
			}
			c, _ := row.key.(*ssh.Certificate) // a plain key is nil
			expect(t, "callback", c, nil, err, row.want)
			if trusted != nil {
				t.Error("a refused authority was handed on")
			}
		})
	}
}

func TestParsePin(t *testing.T) {
	w := newWorld()
	pin := sshca.Pin(w.host.PublicKey())
	if got, err := sshca.ParsePin(pin); got != pin || err != nil {
		t.Errorf("ParsePin(%q) = %q, %v", pin, got, err)
	}
	for _, bad := range []string{"", "sha256:", pin[7:], pin + "0", "SHA256" + pin[6:], pin[:70] + "G", " " + pin, pin + "\n"} {
		if got, err := sshca.ParsePin(bad); err == nil || !fault.Is(err, fault.BadInput) {
			t.Errorf("ParsePin(%q) = %q, %v, want bad input", bad, got, err)
		}
	}
}

// TestMintRefuses: what a check would refuse is never signed.
func TestMintRefuses(t *testing.T) {
	w := newWorld()
	own := must(t)(sshca.MintUser(w.user, w.userRequest()))
	user := map[string]func(r *sshca.UserRequest){
		"no key":             func(r *sshca.UserRequest) { r.Key = nil },
		"certificate as key": func(r *sshca.UserRequest) { r.Key = own },
		"RSA 1024":           func(r *sshca.UserRequest) { r.Key = rsaKey(t, 1024) },
		"RSA 16384":          func(r *sshca.UserRequest) { r.Key = rsaKey(t, 16384) },
		"DSA":                func(r *sshca.UserRequest) { r.Key = dsaKey(t) },
		"user with comma":    func(r *sshca.UserRequest) { r.User = "alice,root" },
		"user empty":         func(r *sshca.UserRequest) { r.User = "" },
		"login wildcard":     func(r *sshca.UserRequest) { r.Logins = []names.Login{"*"} },
		"login with comma":   func(r *sshca.UserRequest) { r.Logins = []names.Login{"root,admin"} },
		"login empty":        func(r *sshca.UserRequest) { r.Logins = []names.Login{""} },
		"login with newline": func(r *sshca.UserRequest) { r.Logins = []names.Login{"root\n"} },
		"login of a member":  func(r *sshca.UserRequest) { r.Logins = []names.Login{"member:" + memberID} },
		"role with comma":    func(r *sshca.UserRequest) { r.Roles = []names.RoleName{"p, admin, *"} },
		"trait with escape":  func(r *sshca.UserRequest) { r.Traits = map[string][]string{"a": {"\x1b"}} },
		"no end":             func(r *sshca.UserRequest) { r.ValidBefore = time.Time{} },
		"end before start":   func(r *sshca.UserRequest) { r.ValidBefore = r.ValidAfter },
	}
	for name, edit := range user {
		r := w.userRequest()
		edit(&r)
		if c, err := sshca.MintUser(w.user, r); c != nil || !fault.Is(err, fault.BadInput) {
			t.Errorf("MintUser, %s = %v, %v, want bad input", name, c, err)
		}
	}
	member := map[string]func(r *sshca.MemberRequest){
		"kind user":     func(r *sshca.MemberRequest) { r.Kind = sshca.KindUser },
		"no name":       func(r *sshca.MemberRequest) { r.Name = "" },
		"name wildcard": func(r *sshca.MemberRequest) { r.Name = "*" },
		"no id":         func(r *sshca.MemberRequest) { r.ID = "" },
		"id is a name":  func(r *sshca.MemberRequest) { r.ID = "n1" },
	}
	for name, edit := range member {
		r := w.memberRequest()
		edit(&r)
		if c, err := sshca.MintMember(w.node, r); c != nil || !fault.Is(err, fault.BadInput) {
			t.Errorf("MintMember, %s = %v, %v, want bad input", name, c, err)
		}
	}
	for _, list := range [][]string{nil, {"*"}, {"n1,n2"}, {"n1", ""}, {"n1 "}, {"[::1]:22"}, {"n?"}} {
		r := w.hostRequest()
		r.Principals = list
		if c, err := sshca.MintHost(w.host, r); c != nil || !fault.Is(err, fault.BadInput) {
			t.Errorf("MintHost for %q = %v, %v, want bad input", list, c, err)
		}
	}
	if c, err := sshca.MintUser(certSigner(t, own, w.key), w.userRequest()); err == nil {
		t.Errorf("MintUser with a certificate as authority = %v, want an error", c)
	}
}

func certSigner(t *testing.T, c *ssh.Certificate, s ssh.Signer) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewCertSigner(c, s)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}
