package auth

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// sign returns a person's certificate, as users sign issues it.
func (w *world) sign(user string, change ...func(*accessdv1.SignUserRequest)) string {
	w.t.Helper()
	_, key := sshca.Generate()
	req := &accessdv1.SignUserRequest{Name: user, PublicKey: keyLine(key.PublicKey()), Ttl: durationpb.New(time.Hour)}
	for _, c := range change {
		c(req)
	}
	return must(w.t, w.admin().SignUser, req).GetCertificate()
}

// identityOf returns whom a certificate of the user CA identifies at clientAddr.
func (w *world) identityOf(line string) *sshca.Identity {
	w.t.Helper()
	c := parseCert(w.t, line)
	id, err := w.cfg.Keys.Trust().CheckUser(c, sshca.Peer{SSHUser: c.KeyId, Addr: clientAddr.Addr(), Now: w.clock.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) apply(yaml string) {
	w.t.Helper()
	must(w.t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(yaml)})
}

// addSSHD registers a plain sshd node and waits until decisions know it.
func (w *world) addSSHD(name string, labels map[string]string) *accessdv1.Node {
	w.t.Helper()
	n := must(w.t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: name, Labels: labels}).GetNode()
	await(w.t, w, func() bool { _, ok := w.policy.Node(names.NodeID(n.GetId())); return ok })
	return n
}

func (w *world) known(user string) {
	w.t.Helper()
	await(w.t, w, func() bool { _, ok := w.policy.User(names.UserName(user)); return ok })
}

func proxyKey() ssh.PublicKey {
	_, key := sshca.Generate()
	return key.PublicKey()
}

// TestDelegateNeverWidens: the proxy's certificate has the person's roles,
// logins, traits, second factor, addresses and end, and of the roles only those
// that the person still has.
func TestDelegateNeverWidens(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.apply("kind: role\nname: second\nallow:\n  - {nodes: {env: dev}, logins: [app], actions: [shell]}\n")
	must(t, w.admin().AddUser, &accessdv1.AddUserRequest{
		Name: "alice", Roles: []string{"access", "second"}, Logins: []string{"root", "deploy"},
		Traits: map[string]*accessdv1.Values{"team": {Values: []string{"blue"}}},
	})
	line := w.sign("alice", func(r *accessdv1.SignUserRequest) { r.SourceAddresses = []string{"203.0.113.0/24"} })
	first, key := w.identityOf(line), proxyKey()
	u, err := w.cfg.Store.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	u.Roles = []names.RoleName{"access", "admin"} // one gained, one lost
	if _, err := w.cfg.Store.UpdateUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(20 * time.Minute)
	w.rec.take()
	res := must(t, p.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: line}, PublicKey: keyLine(key), Client: clientAddr.String(),
	})
	got := w.identityOf(res.GetCertificate())
	if got.User != "alice" || got.Fingerprint != ssh.FingerprintSHA256(key) {
		t.Errorf("identity = %+v, want alice's with the proxy's key", got)
	}
	if !slices.Equal(got.Roles, []names.RoleName{"access"}) {
		t.Errorf("roles = %v, want those of the certificate that alice still has", got.Roles)
	}
	if !slices.Equal(got.Logins, first.Logins) || got.Traits["team"][0] != "blue" || !slices.Equal(got.SourceAddresses, first.SourceAddresses) {
		t.Errorf("identity = %+v, want logins, traits and addresses of %+v", got, first)
	}
	if !got.ValidBefore.Equal(first.ValidBefore) || !res.GetExpires().AsTime().Equal(first.ValidBefore) {
		t.Errorf("ends at %v, want %v", got.ValidBefore, first.ValidBefore)
	}
	evs := w.rec.take()
	if len(evs) != 1 || evs[0].Name != events.CertCreate || evs[0].User != "alice" || evs[0].AddrRemote != clientAddr.String() ||
		evs[0].Fields["method"] != "delegate" || evs[0].Fields["by"] != "proxy:"+string(p.id) {
		t.Errorf("events = %+v", evs)
	}

	narrow := must(t, p.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: res.GetCertificate()}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(), Login: "deploy",
	})
	if got := w.identityOf(narrow.GetCertificate()); !slices.Equal(got.Logins, []names.Login{"deploy"}) {
		t.Errorf("logins = %v, want the one asked for", got.Logins)
	}
	_, err = call(t, p.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: narrow.GetCertificate()}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(), Login: "root",
	})
	wantFault(t, err, fault.Denied, "permission denied")
}

// TestDelegateKeepsTheSecondFactor: what a sign-in proved, its delegate says, and
// what it did not prove, it does not.
func TestDelegateKeepsTheSecondFactor(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	done := w.desk(p, "alice").enrol(w.addUser("alice", "access"))
	for line, want := range map[string]string{done.GetCertificate(): "totp", w.sign("alice"): ""} {
		res := must(t, p.Delegate, &accessdv1.DelegateRequest{
			Credential: &accessdv1.DelegateRequest_Certificate{Certificate: line}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
		})
		if got := w.identityOf(res.GetCertificate()).MFA; got != want {
			t.Errorf("mfa = %q, want %q", got, want)
		}
	}
}

// TestDelegateRefuses: every certificate that a proxy itself would refuse, and
// every person who is gone.
func TestDelegateRefuses(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.addUser("alice", "access")
	w.addUser("gone", "access")
	good, gone := w.sign("alice"), w.sign("gone")
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "gone"})
	expired := w.sign("alice", func(r *accessdv1.SignUserRequest) { r.Ttl = durationpb.New(time.Minute) })
	w.clock.advance(2 * time.Minute)
	stranger, key := strangerCert(t, parseCert(t, good))
	elsewhere := w.sign("alice", func(r *accessdv1.SignUserRequest) { r.SourceAddresses = []string{"192.0.2.1"} })
	for name, c := range map[string]struct {
		line    string
		refusal string
	}{
		"another authority's": {stranger, "wrong_ca"},
		"a member's":          {p.joined.GetCertificates().GetMember(), "wrong_ca"},
		"a host's":            {p.joined.GetCertificates().GetHost(), "host_as_user"},
		"an expired one":      {expired, "expired"},
		"one for elsewhere":   {elsewhere, "source_address"},
		"a removed user's":    {gone, ""},
	} {
		w.rec.take()
		_, err := call(t, p.Delegate, &accessdv1.DelegateRequest{
			Credential: &accessdv1.DelegateRequest_Certificate{Certificate: c.line}, PublicKey: keyLine(key), Client: clientAddr.String(),
		})
		wantFault(t, err, fault.Denied, "permission denied")
		evs := w.rec.take()
		if len(evs) != 1 || evs[0].Name != events.AuthRejected || evs[0].Success || c.refusal != "" && evs[0].Fields["refusal"] != c.refusal {
			t.Errorf("%s: events %+v, want one auth.rejected (%s)", name, evs, c.refusal)
		}
	}
	cred := func(line string) *accessdv1.DelegateRequest {
		return &accessdv1.DelegateRequest{
			Credential: &accessdv1.DelegateRequest_Certificate{Certificate: line}, PublicKey: keyLine(key), Client: clientAddr.String(),
		}
	}
	for name, spoil := range map[string]func(*accessdv1.DelegateRequest){
		"no credential": func(r *accessdv1.DelegateRequest) { r.Credential = nil },
		"a plain key":   func(r *accessdv1.DelegateRequest) { r.Credential = cred(keyLine(key)).GetCredential() },
		"two lines":     func(r *accessdv1.DelegateRequest) { r.Credential = cred(good + "\n" + good).GetCredential() },
		"much too long": func(r *accessdv1.DelegateRequest) {
			r.Credential = cred(good + strings.Repeat(" ", 200<<10)).GetCredential()
		},
		"no key":                func(r *accessdv1.DelegateRequest) { r.PublicKey = "" },
		"a certificate for key": func(r *accessdv1.DelegateRequest) { r.PublicKey = good },
		"no client":             func(r *accessdv1.DelegateRequest) { r.Client = "" },
	} {
		r := cred(good)
		spoil(r)
		if _, err := call(t, p.Delegate, r); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
	w.rec.breakFor(events.CertCreate)
	if _, err := call(t, p.Delegate, cred(good)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a record: %v, want unavailable", err)
	}
}

// strangerCert returns c signed by somebody else, and a key of the test's.
func strangerCert(t *testing.T, c *ssh.Certificate) (string, ssh.PublicKey) {
	t.Helper()
	_, ca := sshca.Generate()
	forged := *c
	if err := forged.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return keyLine(&forged), proxyKey()
}

// TestEnrolledKeys: a key signs in with the roles that take plain keys, without a
// second factor, and not at all where there is none or when it is gone.
func TestEnrolledKeys(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.apply("kind: role\nname: robots\nallow:\n  - {nodes: {env: dev}, logins: [app], actions: [exec]}\noptions: {plain_keys: true, pin_source: true}\n")
	w.addUser("alice", "access", "robots")
	w.addUser("bob", "access")
	admin := w.admin()
	keys := map[string]ssh.PublicKey{"alice": proxyKey(), "bob": proxyKey()}
	for user, key := range keys {
		w.rec.take()
		got := must(t, admin.AddUserKey, &accessdv1.AddUserKeyRequest{User: user, PublicKey: keyLine(key) + " " + user + "@router"}).GetKey()
		if got.GetUser() != user || got.GetFingerprint() != ssh.FingerprintSHA256(key) || got.GetComment() != user+"@router" {
			t.Errorf("AddUserKey = %v", got)
		}
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.UserKeyCreate || !evs[0].Success || evs[0].Fields["name"] != user {
			t.Errorf("events = %+v", evs)
		}
		await(t, w, func() bool { _, ok := w.policy.UserByKey(ssh.FingerprintSHA256(key)); return ok })
	}
	ask := func(key ssh.PublicKey, login string) *accessdv1.DelegateRequest {
		return &accessdv1.DelegateRequest{
			Credential: &accessdv1.DelegateRequest_EnrolledKey{EnrolledKey: keyLine(key)}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(), Login: login,
		}
	}
	w.rec.take()
	got := w.identityOf(must(t, p.Delegate, ask(keys["alice"], "")).GetCertificate())
	if got.User != "alice" || !slices.Equal(got.Roles, []names.RoleName{"robots"}) || !slices.Equal(got.Logins, []names.Login{"app"}) || got.MFA != "" {
		t.Errorf("identity = %+v, want the one role that takes keys and its logins", got)
	}
	if want := w.clock.Now().Add(w.cfg.UserTTL); got.ValidBefore.Sub(want).Abs() > time.Second {
		t.Errorf("ends at %v, want %v", got.ValidBefore, want)
	}
	if want := netip.MustParsePrefix("203.0.113.7/32"); len(got.SourceAddresses) != 1 || got.SourceAddresses[0] != want {
		t.Errorf("source addresses = %v, want %v", got.SourceAddresses, want)
	}
	evs := w.rec.take()
	if len(evs) != 2 || evs[0].Name != events.UserLogin || !evs[0].Success || evs[0].User != "alice" || evs[0].Fields["method"] != "key" || evs[1].Name != events.CertCreate {
		t.Errorf("events = %+v, want a login and a certificate", evs)
	}
	for name, r := range map[string]*accessdv1.DelegateRequest{
		"no role takes keys": ask(keys["bob"], ""),
		"nobody's":           ask(proxyKey(), ""),
		"another login":      ask(keys["alice"], "root"),
	} {
		w.rec.take()
		_, err := call(t, p.Delegate, r)
		wantFault(t, err, fault.Denied, "permission denied")
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.AuthRejected || evs[0].Fields["method"] != "key" {
			t.Errorf("%s: events %+v, want one auth.rejected", name, evs)
		}
	}
	w.rec.breakFor(events.UserLogin)
	if _, err := call(t, p.Delegate, ask(keys["alice"], "")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a record: %v, want unavailable", err)
	}
	w.rec.breakFor()

	if _, err := call(t, admin.AddUserKey, &accessdv1.AddUserKeyRequest{User: "bob", PublicKey: keyLine(keys["alice"])}); !fault.Is(err, fault.Conflict) {
		t.Errorf("another's key: %v, want a conflict", err)
	}
	for user, want := range map[string]int{"": 2, "alice": 1} {
		if got := must(t, admin.ListUserKeys, &accessdv1.ListUserKeysRequest{User: user}).GetKeys(); len(got) != want {
			t.Errorf("keys of %q = %v, want %d", user, got, want)
		}
	}
	fp := ssh.FingerprintSHA256(keys["alice"])
	if _, err := call(t, admin.RemoveUserKey, &accessdv1.RemoveUserKeyRequest{User: "bob", Fingerprint: fp}); !fault.Is(err, fault.NotFound) {
		t.Errorf("remove another's key: %v, want not found", err)
	}
	w.rec.take()
	must(t, admin.RemoveUserKey, &accessdv1.RemoveUserKeyRequest{User: "alice", Fingerprint: fp})
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.UserKeyDelete || evs[0].Fields["fingerprint"] != fp {
		t.Errorf("events = %+v", evs)
	}
	if _, err := call(t, p.Delegate, ask(keys["alice"], "")); !fault.Is(err, fault.Denied) {
		t.Errorf("a removed key signs in: %v", err)
	}
}

func TestUserKeysAreHeldToTheirForm(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	cert := w.sign("alice")
	for name, line := range map[string]string{
		"empty": "", "a certificate": cert, "two lines": keyLine(proxyKey()) + "\n" + keyLine(proxyKey()),
		"options": `command="sh" ` + keyLine(proxyKey()), "control characters": keyLine(proxyKey()) + " a\x1b[2Jb", "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
	} {
		if _, err := call(t, w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "alice", PublicKey: line}); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
	_, err := call(t, w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "nobody", PublicKey: keyLine(proxyKey())})
	wantFault(t, err, fault.NotFound, `no user named "nobody"`)
}

func sessionRequest(cert string, n *accessdv1.Node) *accessdv1.SignSessionRequest {
	return &accessdv1.SignSessionRequest{
		Certificate: cert, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(), Node: n.GetId(), Login: "root",
		Session: string(names.NewSessionID()), Role: "access",
	}
}

func TestSignSession(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.addUser("alice", "access")
	w.known("alice")
	n := w.addSSHD("web-1", map[string]string{"env": "dev"})
	r := sessionRequest(w.sign("alice"), n)
	w.rec.take()
	res := must(t, p.SignSession, r)
	c := parseCert(t, res.GetCertificate())
	if want := "alice session=" + r.GetSession() + " role=access node=web-1"; c.KeyId != want || c.CertType != ssh.UserCert {
		t.Errorf("key id = %q, want %q", c.KeyId, want)
	}
	if kind, _ := w.cfg.Keys.Trust().Type(c); kind != sshca.TypeSSHD || !slices.Equal(c.ValidPrincipals, []string{"root"}) {
		t.Errorf("certificate of the %s CA for %v, want the sshd CA's for root", kind, c.ValidPrincipals)
	}
	if got, want := certTime(c.ValidBefore), w.clock.Now().Add(5*time.Minute); got.Sub(want).Abs() > time.Second {
		t.Errorf("ends at %v, want %v", got, want)
	}
	evs := w.rec.take()
	if len(evs) != 1 || evs[0].Name != events.CertCreate || !evs[0].Success || evs[0].Fields["cert_type"] != "sshd" || evs[0].Fields["node_id"] != n.GetId() ||
		string(evs[0].SID) != r.GetSession() || evs[0].User != "alice" || evs[0].Login != "root" || evs[0].Fields["by"] != "proxy:"+string(p.id) {
		t.Errorf("events = %+v", evs)
	}
	w.clock.advance(58 * time.Minute)
	c = parseCert(t, must(t, p.SignSession, r).GetCertificate())
	if got, want := certTime(c.ValidBefore), w.clock.Now().Add(2*time.Minute); got.Sub(want).Abs() > time.Second {
		t.Errorf("ends at %v, want the end of the person's own, %v", got, want)
	}
}

// TestSignSessionAsksTheRules: a proxy gets no certificate for what the person
// could not do: the sshd CA opens only what the roles open.
func TestSignSessionAsksTheRules(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	w.apply("kind: role\nname: dev\nallow:\n  - {nodes: {env: dev}, logins: [root, app], actions: [exec]}\n")
	w.apply("kind: role\nname: noapp\ndeny:\n  - {nodes: {team: blue}, logins: [app]}\n")
	w.addUser("alice", "dev", "noapp")
	w.addUser("gone", "dev")
	w.known("gone")
	dev, prod := w.addSSHD("web-1", map[string]string{"env": "dev", "team": "blue"}), w.addSSHD("web-2", map[string]string{"env": "prod"})
	accessd := w.join(sshca.KindNode, "web-3")
	alice, gone := w.sign("alice"), w.sign("gone")
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "gone"})
	await(t, w, func() bool { _, ok := w.policy.User("gone"); return !ok })
	good := sessionRequest(alice, dev)
	good.Role = "dev"
	must(t, p.SignSession, good)
	for name, spoil := range map[string]func(*accessdv1.SignSessionRequest){
		"a node no role reaches":        func(r *accessdv1.SignSessionRequest) { r.Node = prod.GetId() },
		"a login that is denied":        func(r *accessdv1.SignSessionRequest) { r.Login = "app" },
		"a login of no role":            func(r *accessdv1.SignSessionRequest) { r.Login = "postgres" },
		"a role the person has not":     func(r *accessdv1.SignSessionRequest) { r.Role = "admin" },
		"an accessd node":               func(r *accessdv1.SignSessionRequest) { r.Node = string(accessd.id) },
		"a proxy":                       func(r *accessdv1.SignSessionRequest) { r.Node = string(p.id) },
		"a node that is none":           func(r *accessdv1.SignSessionRequest) { r.Node = string(names.NewNodeID()) },
		"a person who was removed":      func(r *accessdv1.SignSessionRequest) { r.Certificate = gone },
		"a certificate that is not one": func(r *accessdv1.SignSessionRequest) { r.Certificate = accessd.joined.GetCertificates().GetMember() },
	} {
		r := sessionRequest(alice, dev)
		r.Role = "dev"
		spoil(r)
		w.rec.take()
		_, err := call(t, p.SignSession, r)
		wantFault(t, err, fault.Denied, "permission denied")
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Success || evs[0].Error == "" {
			t.Errorf("%s: events %+v, want one refusal", name, evs)
		}
	}
	for name, spoil := range map[string]func(*accessdv1.SignSessionRequest){
		"session": func(r *accessdv1.SignSessionRequest) { r.Session = "x y=z" },
		"login":   func(r *accessdv1.SignSessionRequest) { r.Login = "root,app" },
		"node":    func(r *accessdv1.SignSessionRequest) { r.Node = "web-1" },
		"client":  func(r *accessdv1.SignSessionRequest) { r.Client = "x" },
		"key":     func(r *accessdv1.SignSessionRequest) { r.PublicKey = "x" },
	} {
		r := sessionRequest(alice, dev)
		spoil(r)
		if _, err := call(t, p.SignSession, r); !fault.Is(err, fault.BadInput) {
			t.Errorf("a malformed %s: %v, want bad input", name, err)
		}
	}
	w.rec.breakFor(events.CertCreate)
	if _, err := call(t, p.SignSession, good); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a record: %v, want unavailable", err)
	}
}

// TestSignSessionForces: who may run no shell has a certificate with which the sshd
// runs what was decided and nothing else, whatever the proxy does.
func TestSignSessionForces(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	rule := "kind: role\nname: %s\nallow:\n  - {nodes: {env: dev}, logins: [root], actions: [%s]}\n"
	w.apply(fmt.Sprintf(rule, "shells", "shell, exec"))
	w.apply(fmt.Sprintf(rule, "lines", "exec"))
	w.apply(fmt.Sprintf(rule, "files", `"sftp:read"`))
	w.apply(fmt.Sprintf(rule, "tunnels", `"forward:local"`))
	w.apply("kind: role\nname: confined\nallow:\n  - {nodes: {env: dev}, logins: [root], actions: [exec], commands: [uptime, \"ls *\"]}\n")
	n := w.addSSHD("web-1", map[string]string{"env": "dev"})
	exec := func(line string) *accessdv1.SessionStart {
		return &accessdv1.SessionStart{Kind: "exec", Line: []byte(line)}
	}
	shell, files := &accessdv1.SessionStart{Kind: "shell"}, &accessdv1.SessionStart{Kind: "subsystem", Line: []byte("sftp")}
	const refused = "refused"
	for i, c := range []struct {
		role  string
		start *accessdv1.SessionStart
		want  string
	}{
		{"shells", shell, ""},
		{"shells", exec("anything; at all"), ""},
		{"shells", nil, ""},
		{"lines", exec("anything; at all"), ""},
		{"lines", shell, refused},
		{"lines", files, refused},
		{"lines", nil, "exit 1"},
		{"confined", exec("uptime"), "uptime"},
		{"confined", exec("ls -l /tmp | uptime"), "ls -l /tmp | uptime"},
		{"confined", exec("uptime; id"), refused},
		{"confined", exec("scp -f /etc/passwd"), refused},
		{"confined", exec(""), refused},
		{"confined", shell, refused},
		{"confined", nil, "exit 1"},
		{"files", files, "internal-sftp"},
		{"files", &accessdv1.SessionStart{Kind: "subsystem", Line: []byte("other")}, refused},
		{"files", exec("scp -f /etc/passwd"), "scp -f /etc/passwd"},
		{"files", exec("scp -f /etc/passwd; id"), refused},
		{"files", exec("id"), refused},
		{"tunnels", nil, "exit 1"},
		{"tunnels", files, refused},
		{"tunnels", &accessdv1.SessionStart{Kind: "fly"}, "exit 1"},
	} {
		name := fmt.Sprintf("%s-%d", c.role, i)
		w.addUser(name, c.role)
		w.known(name)
		r := sessionRequest(w.sign(name), n)
		r.Role, r.Start = c.role, c.start
		w.rec.take()
		res, err := call(t, p.SignSession, r)
		if c.want == refused {
			if !fault.Is(err, fault.Denied) {
				t.Errorf("%s %v: %v, want denied", c.role, c.start, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %v: %v", c.role, c.start, err)
			continue
		}
		cert := parseCert(t, res.GetCertificate())
		if got := cert.CriticalOptions["force-command"]; got != c.want || len(cert.CriticalOptions) > 1 {
			t.Errorf("%s %v: forces %q, want %q", c.role, c.start, got, c.want)
		}
		if _, rc := cert.Extensions["permit-user-rc"]; rc != (c.want == "") {
			t.Errorf("%s %v: permit-user-rc is %v", c.role, c.start, rc)
		}
		if got, _ := w.rec.take()[0].Fields["force_command"].(string); got != c.want {
			t.Errorf("%s %v: the event says %q", c.role, c.start, got)
		}
	}
}

// TestSignNodeHostForgesNobody: THREATS 1.2, "Forged host certificates". A proxy
// answers for plain sshd nodes only.
func TestSignNodeHostForgesNobody(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	n, key := w.addSSHD("web-1", nil), proxyKey()
	w.rec.take()
	c := parseCert(t, must(t, p.SignNodeHost, &accessdv1.SignNodeHostRequest{Node: n.GetId(), PublicKey: keyLine(key)}).GetCertificate())
	for _, host := range []string{"web-1", n.GetId(), "localhost", "127.0.0.1", "::1"} {
		if err := w.cfg.Keys.Trust().CheckHost(c, host, w.clock.Now()); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if len(c.ValidPrincipals) != 5 || certTime(c.ValidBefore).After(w.clock.Now().Add(w.cfg.MemberTTL)) {
		t.Errorf("certificate = %+v, want five names for the time of a member's", c)
	}
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.CertCreate || evs[0].Fields["cert_type"] != "host" || evs[0].Fields["node_id"] != n.GetId() {
		t.Errorf("events = %+v", evs)
	}
	for name, id := range map[string]string{"an accessd node": string(accessd.id), "itself": string(p.id), "nobody": string(names.NewNodeID())} {
		w.rec.take()
		_, err := call(t, p.SignNodeHost, &accessdv1.SignNodeHostRequest{Node: id, PublicKey: keyLine(key)})
		wantFault(t, err, fault.Denied, "permission denied")
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.CertCreate || evs[0].Success {
			t.Errorf("%s: events %+v, want one refusal", name, evs)
		}
	}
	for _, node := range []string{"web-1", "*", "", "127.0.0.1"} {
		if _, err := call(t, p.SignNodeHost, &accessdv1.SignNodeHostRequest{Node: node, PublicKey: keyLine(key)}); !fault.Is(err, fault.BadInput) {
			t.Errorf("node %q: %v, want bad input", node, err)
		}
	}
}

// TestPinHostKey: the first key that a node shows which dialled home is its key;
// no proxy changes it afterwards, or says one for a node that is dialled.
func TestPinHostKey(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	n, key := w.addSSHD("web-1", nil), proxyKey()
	dialled := must(t, w.admin().AddNode, &accessdv1.AddNodeRequest{Name: "web-2", Address: "192.0.2.1", HostKeys: []string{keyLine(proxyKey())}}).GetNode()
	pin := func(node string, key ssh.PublicKey) error {
		_, err := call(t, p.PinHostKey, &accessdv1.PinHostKeyRequest{Node: node, HostKey: keyLine(key)})
		return err
	}
	w.rec.breakFor(events.NodeHostKey)
	if err := pin(n.GetId(), key); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a record: %v, want unavailable", err)
	}
	w.rec.breakFor()
	w.rec.take()
	for range 2 {
		if err := pin(n.GetId(), key); err != nil {
			t.Fatal(err)
		}
	}
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.NodeHostKey || !evs[0].Success || evs[0].Fields["fingerprint"] != ssh.FingerprintSHA256(key) || evs[0].Fields["action"] != "pinned" {
		t.Errorf("events = %+v, want one pin", evs)
	}
	for name, id := range map[string]string{"another key": n.GetId(), "a node with an address": dialled.GetId(), "an accessd node": string(accessd.id)} {
		w.rec.take()
		wantFault(t, pin(id, proxyKey()), fault.Denied, "permission denied")
		if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.NodeHostKey || evs[0].Success || evs[0].Fields["action"] != "refused" {
			t.Errorf("%s: events %+v, want one refusal", name, evs)
		}
	}
	stored, err := w.cfg.Store.Node(t.Context(), names.NodeID(n.GetId()))
	if err != nil || !slices.Equal(stored.HostKeys, []string{keyLine(key)}) || stored.Kind != services.NodeSSHD {
		t.Errorf("node = %+v, %v, want the first key", stored, err)
	}
}
