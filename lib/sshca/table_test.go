package sshca_test

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// change is one row of the certificate function table: what is done to a good
// certificate before it is signed, and what the checks say then.
type change struct {
	name   string
	change func(c *ssh.Certificate)
	want   sshca.Code // "" means accepted
}

func principals(list ...string) func(*ssh.Certificate) {
	return func(c *ssh.Certificate) { c.ValidPrincipals = list }
}

func extension(name, value string) func(*ssh.Certificate) {
	return func(c *ssh.Certificate) { c.Extensions[name] = value }
}

func without(name string) func(*ssh.Certificate) {
	return func(c *ssh.Certificate) { delete(c.Extensions, name) }
}

func option(name, value string) func(*ssh.Certificate) {
	return func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{name: value} }
}

func valid(after, before uint64) func(*ssh.Certificate) {
	return func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = after, before }
}

func key(k ssh.PublicKey) func(*ssh.Certificate) { return func(c *ssh.Certificate) { c.Key = k } }

// at returns the time d from now in a certificate's form.
func at(d time.Duration) uint64 { return uint64(now.Add(d).Unix()) }

// userTable is the certificate function table for people (THREATS 1.2 and F25).
func userTable(t *testing.T) []change {
	t.Helper()
	return []change{
		{"good", func(*ssh.Certificate) {}, ""},

		// Time: the end is sharp, the start has one minute (F06).
		{"expired", valid(at(-2*time.Hour), at(-time.Hour)), sshca.CodeExpired},
		{"ends this second", valid(at(-time.Hour), at(0)), sshca.CodeExpired},
		{"ends next second", valid(at(-time.Hour), at(time.Second)), ""},
		{"starts in a minute", valid(at(time.Minute), at(time.Hour)), ""},
		{"starts in 61 s", valid(at(61*time.Second), at(time.Hour)), sshca.CodeNotYetValid},
		{"no end", valid(at(-time.Hour), ssh.CertTimeInfinity), sshca.CodeBadValidity},
		{"end overflows", valid(at(-time.Hour), math.MaxInt64+1), sshca.CodeBadValidity},
		{"start overflows", valid(math.MaxInt64+1, math.MaxUint64-1), sshca.CodeBadValidity},
		{"ends before start", valid(at(time.Second), at(-time.Second)), sshca.CodeBadValidity},
		{"zero times", valid(0, 0), sshca.CodeBadValidity},

		// Type.
		{"host certificate as user", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, sshca.CodeHostAsUser},
		{"type 0", func(c *ssh.Certificate) { c.CertType = 0 }, sshca.CodeWrongType},
		{"type 3", func(c *ssh.Certificate) { c.CertType = 3 }, sshca.CodeWrongType},

		// Principals: exact match only, nothing split, one bad one spoils all.
		{"no principals", principals(), sshca.CodeEmptyPrincipals},
		{"own principal missing", principals("alice", "root"), sshca.CodeWrongPrincipal},
		{"another's own principal", principals("user:bob", "root"), sshca.CodeWrongPrincipal},
		{"two own principals", principals("user:alice", "user:bob", "root"), sshca.CodeBadPrincipal},
		{"empty principal", principals("user:alice", "", "root"), sshca.CodeBadPrincipal},
		{"wildcard", principals("user:alice", "*"), sshca.CodeBadPrincipal},
		{"pattern", principals("user:alice", "root*"), sshca.CodeBadPrincipal},
		{"question mark", principals("user:alice", "roo?"), sshca.CodeBadPrincipal},
		{"comma", principals("user:alice", "root,deploy"), sshca.CodeBadPrincipal},
		{"trailing comma", principals("user:alice", "root,"), sshca.CodeBadPrincipal},
		{"leading blank", principals("user:alice", " root"), sshca.CodeBadPrincipal},
		{"newline", principals("user:alice", "root\n"), sshca.CodeBadPrincipal},
		{"NUL", principals("user:alice", "root\x00"), sshca.CodeBadPrincipal},
		{"homoglyph", principals("user:alice", "rооt"), sshca.CodeBadPrincipal},
		{"member principal", principals("user:alice", "member:"+memberID), sshca.CodeBadPrincipal},
		{"257 principals", func(c *ssh.Certificate) {
			c.ValidPrincipals = append(strings.Split(strings.Repeat("root ", 255), " ")[:255], "user:alice", "root")
		}, sshca.CodeBadPrincipal},

		// Critical options.
		{"unknown critical option", option("nobody-knows@example.com", ""), sshca.CodeCriticalOption},
		{"force-command", option("force-command", "id"), sshca.CodeCriticalOption},
		{"verify-required", option("verify-required", ""), sshca.CodeCriticalOption},
		{"option with a blank", option("source-address ", "0.0.0.0/0"), sshca.CodeCriticalOption},

		// Keys.
		{"RSA 1024", key(rsaKey(t, 1024)), sshca.CodeWeakKey},
		{"RSA 2047", key(rsaKey(t, 2047)), sshca.CodeWeakKey},
		{"RSA 2048", key(rsaKey(t, 2048)), ""},
		{"RSA 4096", key(rsaKey(t, 4096)), ""},
		{"RSA 4097", key(rsaKey(t, 4097)), sshca.CodeWeakKey},
		{"RSA 16384", key(rsaKey(t, 16384)), sshca.CodeWeakKey},
		{"DSA", key(dsaKey(t)), sshca.CodeWeakKey},
		{"ECDSA P-256", key(ecdsaKey(t, elliptic.P256())), ""},
		{"ECDSA P-384", key(ecdsaKey(t, elliptic.P384())), ""},
		{"ECDSA P-521", key(ecdsaKey(t, elliptic.P521())), ""},
		{"FIDO Ed25519", key(fidoKey(t)), ""},

		// Key id.
		{"empty key id", func(c *ssh.Certificate) { c.KeyId = "" }, sshca.CodeBadKeyID},
		{"key id with newline", func(c *ssh.Certificate) { c.KeyId = "alice\nAccepted publickey" }, sshca.CodeBadKeyID},
		{"key id 64 kB", func(c *ssh.Certificate) { c.KeyId = strings.Repeat("a", 64<<10) }, sshca.CodeBadKeyID},
		{"another's key id", func(c *ssh.Certificate) { c.KeyId = "bob" }, sshca.CodeWrongPrincipal},

		// Extensions of accessd.
		{"no roles", extension("roles@accessd", "[]"), ""},
		{"roles missing", without("roles@accessd"), sshca.CodeBadExtension},
		{"roles empty", extension("roles@accessd", ""), sshca.CodeBadExtension},
		{"roles null", extension("roles@accessd", "null"), sshca.CodeBadExtension},
		{"roles not a list", extension("roles@accessd", `"admin"`), sshca.CodeBadExtension},
		{"roles not texts", extension("roles@accessd", `[1]`), sshca.CodeBadExtension},
		{"roles cut", extension("roles@accessd", `["access"`), sshca.CodeBadExtension},
		{"roles with more behind", extension("roles@accessd", `["access"]["admin"]`), sshca.CodeBadExtension},
		{"roles with a blank", extension("roles@accessd", `["access", "ops"]`), sshca.CodeBadExtension},
		{"roles not sorted", extension("roles@accessd", `["ops","access"]`), sshca.CodeBadExtension},
		{"role twice", extension("roles@accessd", `["ops","ops"]`), sshca.CodeBadExtension},
		{"role with casbin text", extension("roles@accessd", `["p, admin, *"]`), sshca.CodeBadExtension},
		{"role wildcard", extension("roles@accessd", `["*"]`), sshca.CodeBadExtension},
		{"role empty", extension("roles@accessd", `[""]`), sshca.CodeBadExtension},
		{"129 roles", extension("roles@accessd", `["`+strings.Join(sortedNames(129), `","`)+`"]`), sshca.CodeBadExtension},
		{"roles too long", extension("roles@accessd", `["`+strings.Repeat("a", 33<<10)+`"]`), sshca.CodeBadExtension},
		{"no traits", without("traits@accessd"), ""},
		{"traits empty object", extension("traits@accessd", `{}`), sshca.CodeBadExtension},
		{"traits not an object", extension("traits@accessd", `[]`), sshca.CodeBadExtension},
		{"trait twice", extension("traits@accessd", `{"team":["a"],"team":["b"]}`), sshca.CodeBadExtension},
		{"trait without name", extension("traits@accessd", `{"":["a"]}`), sshca.CodeBadExtension},
		{"trait with escape", extension("traits@accessd", `{"team":["\u001b[2J"]}`), sshca.CodeBadExtension},
		{"trait with RTL override", extension("traits@accessd", "{\"team\":[\"\u202e\"]}"), sshca.CodeBadExtension},
		{"trait not UTF-8", extension("traits@accessd", "{\"team\":[\"\xff\"]}"), sshca.CodeBadExtension},
		{"no second factor", without("mfa@accessd"), ""},
		{"second factor empty", extension("mfa@accessd", `""`), sshca.CodeBadExtension},
		{"second factor not a text", extension("mfa@accessd", `true`), sshca.CodeBadExtension},
		{"requests", extension("requests@accessd", `["`+memberID+`"]`), ""},
		{"requests empty", extension("requests@accessd", `[]`), sshca.CodeBadExtension},
		{"requests null", extension("requests@accessd", `null`), sshca.CodeBadExtension},
		{"request without a form", extension("requests@accessd", `["1"]`), sshca.CodeBadExtension},
		{"request twice", extension("requests@accessd", `["`+memberID+`","`+memberID+`"]`), sshca.CodeBadExtension},
		{"requests not sorted", extension("requests@accessd", `["11111111-6a1c-4d8a-9d3c-0f7f1c9f3c11","`+memberID+`"]`), sshca.CodeBadExtension},
		{"17 requests", extension("requests@accessd", manyRequests(17)), sshca.CodeBadExtension},
		{"16 requests", extension("requests@accessd", manyRequests(16)), ""},
		{"stands for another", extension("for@accessd", `{"serials":[3,18446744073709551615],"roles":["ops"],"requests":["`+memberID+`"]}`), ""},
		{"stands for nothing", extension("for@accessd", `{"serials":[]}`), sshca.CodeBadExtension},
		{"stands for null", extension("for@accessd", `null`), sshca.CodeBadExtension},
		{"stands for a role", extension("for@accessd", `{"serials":null,"roles":["ops"]}`), sshca.CodeBadExtension},
		{"origins not sorted", extension("for@accessd", `{"serials":[4,3]}`), sshca.CodeBadExtension},
		{"origin twice", extension("for@accessd", `{"serials":[3,3]}`), sshca.CodeBadExtension},
		{"origin a text", extension("for@accessd", `{"serials":["3"]}`), sshca.CodeBadExtension},
		{"origin with a blank", extension("for@accessd", `{"serials":[3] }`), sshca.CodeBadExtension},
		{"origin with more", extension("for@accessd", `{"serials":[3],"admin":true}`), sshca.CodeBadExtension},
		{"65 origins", extension("for@accessd", `{"serials":[`+strings.TrimSuffix(manyNumbers(65), ",")+`]}`), sshca.CodeBadExtension},
		{"64 origins", extension("for@accessd", `{"serials":[`+strings.TrimSuffix(manyNumbers(64), ",")+`]}`), ""},
		{"origin's role empty", extension("for@accessd", `{"serials":[3],"roles":[""]}`), sshca.CodeBadExtension},
		{"origin's roles not sorted", extension("for@accessd", `{"serials":[3],"roles":["ops","access"]}`), sshca.CodeBadExtension},
		{"origin's request without a form", extension("for@accessd", `{"serials":[3],"requests":["1"]}`), sshca.CodeBadExtension},
		{"unknown extension", extension("other@example.com", "x"), ""},
	}
}

func manyRequests(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c%02d", i)
	}
	return `["` + strings.Join(list, `","`) + `"]`
}

func manyNumbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d,", i+1)
	}
	return b.String()
}

func sortedNames(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = "r" + string(rune('a'+i/26)) + string(rune('a'+i%26))
	}
	return list
}

// TestCertificateFunctionTable is the certificate function table for people:
// THREATS 1.2 and F25. The proxy and the node give the same answer, each alone.
func TestCertificateFunctionTable(t *testing.T) {
	w := newWorld()
	for _, row := range userTable(t) {
		t.Run(row.name, func(t *testing.T) {
			c := must(t)(sshca.MintUser(w.user, w.userRequest()))
			row.change(c)
			sign(t, c, w.user)
			id, err := w.trust.CheckUser(c, w.peer("alice"))
			expect(t, "CheckUser", c, id, err, row.want)
			id, err = w.trust.CheckLogin(c, w.peer("root"))
			expect(t, "CheckLogin", c, id, err, row.want)
		})
	}
}

// expect checks a check's answer: the code, what the log learns of the
// certificate, and that a peer learns nothing.
func expect(t *testing.T, check string, c *ssh.Certificate, id *sshca.Identity, err error, want sshca.Code) {
	t.Helper()
	if want == "" {
		if err != nil || id == nil {
			t.Errorf("%s = %v, %v, want an identity", check, id, err)
		}
		return
	}
	r, ok := errors.AsType[*sshca.Refusal](err)
	if !ok || r.Code != want || id != nil {
		t.Fatalf("%s = %v, %v, want refusal %q", check, id, err, want)
	}
	if got := fault.Public(err); got != "permission denied" || !fault.Is(err, fault.Denied) {
		t.Errorf("%s tells the peer %q (%v), want permission denied", check, got, fault.KindOf(err))
	}
	if c == nil {
		return
	}
	if r.Serial != c.Serial || !strings.HasPrefix(c.KeyId, r.KeyID) || len(r.KeyID) > 256 ||
		r.Fingerprint != ssh.FingerprintSHA256(c.Key) || r.CAFingerprint == "" {
		t.Errorf("%s does not name the certificate: %+v", check, r)
	}
	if strings.ContainsAny(r.Detail, "\n\r\x00\x1b") {
		t.Errorf("%s: detail %q holds control characters (F31)", check, r.Detail)
	}
}

// TestPrincipalsMatchExactly: THREATS 1.2, empty principals and comma rows.
func TestPrincipalsMatchExactly(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintUser(w.user, w.userRequest()))
	for _, name := range []string{"", "*", "root,", " root", "root*", "Root", "ROOT", "roo", "root,deploy", "user:alice", "alice"} {
		id, err := w.trust.CheckLogin(c, w.peer(name))
		expect(t, "CheckLogin as "+name, c, id, err, sshca.CodeWrongPrincipal)
	}
	for _, name := range []string{"", "*", "Alice", "alic", "alice2", "user:alice", "root"} {
		id, err := w.trust.CheckUser(c, w.peer(name))
		expect(t, "CheckUser as "+name, c, id, err, sshca.CodeWrongPrincipal)
	}
}

// TestAuthorityMatrix: THREATS 1.2, every authority signs every kind of
// certificate and only the diagonal opens.
func TestAuthorityMatrix(t *testing.T) {
	w := newWorld()
	cas := map[sshca.Type]ssh.Signer{sshca.TypeUser: w.user, sshca.TypeHost: w.host, sshca.TypeNode: w.node, sshca.TypeSSHD: w.sshd}
	opens := map[string]bool{
		"user CA, user certificate, CheckUser":     true,
		"user CA, user certificate, CheckLogin":    true,
		"host CA, host certificate, CheckHost":     true,
		"node CA, member certificate, CheckMember": true,
	}
	for caType, ca := range cas {
		certs := map[string]*ssh.Certificate{
			"user":   must(t)(sshca.MintUser(ca, w.userRequest())),
			"host":   must(t)(sshca.MintHost(ca, w.hostRequest())),
			"member": must(t)(sshca.MintMember(ca, w.memberRequest())),
		}
		for kind, c := range certs {
			if got, ok := w.trust.Type(c); !ok || got != caType {
				t.Errorf("Type of a %s certificate by the %s CA = %q, %v", kind, caType, got, ok)
			}
			checks := map[string]error{"CheckHost": w.trust.CheckHost(c, "n1", now)}
			_, checks["CheckUser"] = w.trust.CheckUser(c, w.peer("alice"))
			_, checks["CheckLogin"] = w.trust.CheckLogin(c, w.peer("root"))
			_, checks["CheckMember"] = w.trust.CheckMember(c, w.peer("n1"))
			for check, err := range checks {
				name := string(caType) + " CA, " + kind + " certificate, " + check
				if got := err == nil; got != opens[name] {
					t.Errorf("%s: opens = %v, want %v (%v)", name, got, opens[name], err)
				}
			}
		}
	}
}

// TestUntrusted: a stranger's key, and trust that is empty or for one purpose
// only (CVE-2026-39835), refuse and do not panic.
func TestUntrusted(t *testing.T) {
	w := newWorld()
	forged := must(t)(sshca.MintUser(w.stranger, w.userRequest()))
	good := must(t)(sshca.MintUser(w.user, w.userRequest()))
	host := must(t)(sshca.MintHost(w.host, w.hostRequest()))
	cases := []struct {
		name  string
		trust sshca.Trust
		c     *ssh.Certificate
	}{
		{"stranger", w.trust, forged},
		{"nobody trusted", sshca.Trust{}, good},
		{"only hosts trusted", sshca.Trust{Host: w.trust.Host}, good},
		{"sshd authority trusted", sshca.Trust{SSHD: w.trust.User}, good},
	}
	for _, c := range cases {
		id, err := c.trust.CheckUser(c.c, w.peer("alice"))
		expect(t, c.name, c.c, id, err, sshca.CodeWrongCA)
	}
	expect(t, "only users trusted", host, nil, sshca.Trust{User: w.trust.User}.CheckHost(host, "n1", now), sshca.CodeWrongCA)
	if kind, ok := w.trust.Type(forged); ok {
		t.Errorf("Type of a stranger's certificate = %q, want none", kind)
	}
	id, err := w.trust.CheckUser(nil, w.peer("alice"))
	expect(t, "nil", nil, id, err, sshca.CodeNotCertificate)
	if _, err := w.trust.CheckUser(&ssh.Certificate{}, w.peer("alice")); err == nil {
		t.Error("CheckUser of the zero certificate = nil, want a refusal")
	}
}

// TestTampered: F25, whatever is changed after the signature is refused.
func TestTampered(t *testing.T) {
	w := newWorld()
	cases := []struct {
		name string
		edit func(c *ssh.Certificate)
		want sshca.Code
	}{
		{"longer", func(c *ssh.Certificate) { c.ValidBefore++ }, sshca.CodeBadSignature},
		{"serial", func(c *ssh.Certificate) { c.Serial++ }, sshca.CodeBadSignature},
		{"login", func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "admin") }, sshca.CodeBadSignature},
		{"role", func(c *ssh.Certificate) { c.Extensions["roles@accessd"] = `["admin"]` }, sshca.CodeBadSignature},
		{"nonce", func(c *ssh.Certificate) { c.Nonce[0] ^= 1 }, sshca.CodeBadSignature},
		{"key", func(c *ssh.Certificate) { c.Key = w.stranger.PublicKey() }, sshca.CodeBadSignature},
		{"source address dropped", func(c *ssh.Certificate) { c.CriticalOptions = nil }, sshca.CodeBadSignature},
		{"signature bit", func(c *ssh.Certificate) { c.Signature.Blob[5] ^= 1 }, sshca.CodeBadSignature},
		{"signature cut", func(c *ssh.Certificate) { c.Signature.Blob = c.Signature.Blob[:63] }, sshca.CodeBadSignature},
		{"no signature", func(c *ssh.Certificate) { c.Signature = nil }, sshca.CodeBadSignature},
		{"other algorithm", func(c *ssh.Certificate) { c.Signature.Format = ssh.KeyAlgoRSASHA256 }, sshca.CodeBadSignature},
		{"unknown algorithm", func(c *ssh.Certificate) { c.Signature.Format = "none" }, sshca.CodeWeakSignature},
	}
	for _, row := range cases {
		t.Run(row.name, func(t *testing.T) {
			r := w.userRequest()
			r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			c := must(t)(sshca.MintUser(w.user, r))
			c.Permissions = ssh.Permissions{CriticalOptions: maps.Clone(c.CriticalOptions), Extensions: maps.Clone(c.Extensions)}
			row.edit(c)
			id, err := w.trust.CheckUser(c, w.peer("alice"))
			expect(t, "CheckUser", c, id, err, row.want)
		})
	}
}

// TestSHA1Signature: F25, an RSA authority's ssh-rsa signature is SHA-1 (RFC
// 8332) and refused; its SHA-2 ones count.
func TestSHA1Signature(t *testing.T) {
	w := newWorld()
	for algorithm, want := range map[string]sshca.Code{
		ssh.KeyAlgoRSA: sshca.CodeWeakSignature, ssh.KeyAlgoRSASHA256: "", ssh.KeyAlgoRSASHA512: "",
	} {
		ca := rsaSigner(t, 2048, algorithm)
		c := must(t)(sshca.MintUser(ca, w.userRequest()))
		id, err := sshca.Trust{User: []ssh.PublicKey{ca.PublicKey()}}.CheckUser(c, w.peer("alice"))
		expect(t, algorithm, c, id, err, want)
	}
}

// TestOversizedKeysAreCheap: THREATS 1.2 (CVE-2026-39829), 100 certificates
// with a 16384-bit modulus, as key and as signature key, cost under a second.
func TestOversizedKeysAreCheap(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintUser(w.user, w.userRequest()))
	big := rsaKey(t, 16384)
	byBig := *c
	byBig.SignatureKey = big
	byBig.Signature = &ssh.Signature{Format: ssh.KeyAlgoRSASHA512, Blob: make([]byte, 2048)}
	c.Key = big
	start := time.Now()
	for range 100 {
		if _, err := w.trust.CheckUser(c, w.peer("alice")); err == nil {
			t.Fatal("a 16384-bit key was accepted")
		}
		if _, err := w.trust.CheckUser(&byBig, w.peer("alice")); err == nil {
			t.Fatal("a 16384-bit authority was accepted")
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("100 refusals took %v, want under 1 s", took)
	}
}
