package proxy

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

func pubkey(signers ...ssh.Signer) ssh.AuthMethod { return ssh.PublicKeys(signers...) }

// answer is a keyboard-interactive client that knows alice's secrets.
func answer(secrets ...string) ssh.AuthMethod {
	return ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i := range questions {
			if len(secrets) == 0 {
				return nil, errors.New("no more answers")
			}
			answers[i], secrets = secrets[0], secrets[1:]
		}
		return answers, nil
	})
}

// shifty offers one key and signs with another: a query is answered for shown,
// the signature is own's.
type shifty struct {
	ssh.Signer // own
	shown      ssh.PublicKey
}

func (s shifty) PublicKey() ssh.PublicKey {
	return &shiftyKey{PublicKey: s.Signer.PublicKey(), shown: s.shown}
}

type shiftyKey struct {
	ssh.PublicKey
	shown    ssh.PublicKey
	marshals int
}

// Marshal returns the shown key for the query and for the check of its answer,
// then the own key.
func (k *shiftyKey) Marshal() []byte {
	if k.marshals++; k.marshals <= 2 {
		return k.shown.Marshal()
	}
	return k.PublicKey.Marshal()
}

// TestQueryIsNotProof is the row of that name: what was only offered, and even
// accepted as an offer, gives nothing.
func TestQueryIsNotProof(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	admins := w.person("alice", func(r *sshca.UserRequest) { r.Roles, r.Serial = []names.RoleName{"access"}, 100 })
	own := w.person("alice", func(r *sshca.UserRequest) { r.Roles, r.Serial = []names.RoleName{"auditor"}, 1 })

	conn := w.must("alice", pubkey(shifty{own, admins.PublicKey()}))
	if _, err := conn.Dial("tcp", "n1:22"); err == nil {
		t.Error("the roles of a certificate that was only offered were used")
	}
	if ev := w.audit.all(events.UserLogin); len(ev) != 1 || ev[0].Fields["cert_serial"] != "1" {
		t.Errorf("user.login = %+v, want serial 1", ev)
	}

	t.Run("then sign in", func(t *testing.T) {
		_, victim := sshca.Generate()
		_, mine := sshca.Generate()
		conn := w.must("alice", pubkey(shifty{mine, victim.PublicKey()}), answer("right", "123456"))
		out, err := runLogin(t, conn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseCertificate(out, mine.PublicKey()); err != nil {
			t.Errorf("the certificate is not for the key that was proven: %v", err)
		}
	})
	t.Run("a key that was never proven", func(t *testing.T) {
		_, mine := sshca.Generate()
		broken := shifty{admins, admins.PublicKey()}
		broken.Signer = wrongSigner{admins, mine}
		if c, err := w.dial("alice", pubkey(broken)); err == nil {
			c.Close()
			t.Error("a signature by another key was taken")
		}
	})
}

// wrongSigner shows one key and signs with another.
type wrongSigner struct {
	ssh.Signer
	with ssh.Signer
}

func (s wrongSigner) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return s.with.Sign(r, data)
}

func runLogin(t *testing.T, conn *ssh.Client) (string, error) {
	t.Helper()
	s, err := conn.NewSession()
	if err != nil {
		return "", err
	}
	defer s.Close()
	out, err := s.Output("login")
	return string(out), err
}

// forge returns a signer whose certificate is signed by ca, whoever that is.
func forge(t *testing.T, ca ssh.Signer, edit func(*ssh.Certificate)) ssh.Signer {
	t.Helper()
	_, key := sshca.Generate()
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.UserCert, KeyId: "alice", Serial: 66, ValidPrincipals: []string{"user:alice", "root"},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"roles@accessd": `["access"]`}},
	}
	if edit != nil {
		edit(cert)
	}
	if err := cert.SignCert(strings.NewReader(strings.Repeat("x", 4096)), ca); err != nil {
		t.Fatal(err)
	}
	return certSigner(t, cert, key)
}

// TestCertificateRefusals is F25 at the proxy: one event each, and the client
// learns nothing but that it is refused.
func TestCertificateRefusals(t *testing.T) {
	w := newWorld(t)
	user := w.ca[sshca.TypeUser]
	_, stranger := sshca.Generate()
	hour := func(n int) uint64 { return uint64(time.Now().Add(time.Duration(n) * time.Hour).Unix()) }
	w.policy.user("bob", "access")
	for _, c := range []struct {
		name, as string
		key      ssh.Signer
		want     sshca.Code
	}{
		{"stranger's CA", "alice", forge(t, stranger, nil), sshca.CodeWrongCA},
		{"host CA", "alice", forge(t, w.ca[sshca.TypeHost], nil), sshca.CodeWrongCA},
		{"sshd CA", "alice", forge(t, w.ca[sshca.TypeSSHD], nil), sshca.CodeWrongCA},
		{"node CA", "alice", forge(t, w.ca[sshca.TypeNode], nil), sshca.CodeBadExtension},
		{"a person's certified key as CA", "alice", forge(t, certSignerKey(t, w), nil), sshca.CodeWrongCA},
		{"host certificate", "alice", forge(t, user, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), sshca.CodeHostAsUser},
		{"no principals", "alice", forge(t, user, func(c *ssh.Certificate) { c.ValidPrincipals = nil }), sshca.CodeEmptyPrincipals},
		{"comma in a principal", "alice", forge(t, user, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"user:alice,root"} }), sshca.CodeWrongPrincipal},
		{"not yet valid", "alice", forge(t, user, func(c *ssh.Certificate) { c.ValidAfter = hour(1); c.ValidBefore = hour(2) }), sshca.CodeNotYetValid},
		{"no end", "alice", forge(t, user, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }), sshca.CodeBadValidity},
		{"force-command", "alice", forge(t, user, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }), sshca.CodeCriticalOption},
		{"another user's name", "bob", forge(t, user, nil), sshca.CodeWrongPrincipal},
		{"a login's name", "root", forge(t, user, nil), sshca.CodeWrongPrincipal},
		{"user who is gone", "carol", forge(t, user, func(c *ssh.Certificate) { c.KeyId = "carol"; c.ValidPrincipals = []string{"user:carol"} }), codeUserGone},
		{"join with a certificate", JoinUser, forge(t, user, nil), sshca.CodeWrongPrincipal},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.audit.reset()
			conn, err := w.dial(c.as, pubkey(c.key))
			if err == nil {
				conn.Close()
				t.Fatal("let in")
			}
			ev := w.audit.all(events.AuthRejected)
			if len(ev) != 1 {
				t.Fatalf("%d events auth.rejected: %+v", len(ev), ev)
			}
			cert, _ := c.key.PublicKey().(*ssh.Certificate)
			if ev[0].Fields["refusal"] != c.want || ev[0].Fields["fingerprint"] != ssh.FingerprintSHA256(cert.Key) ||
				ev[0].Fields["cert_serial"] != "66" || ev[0].Fields["key_id"] != cert.KeyId || ev[0].Success || ev[0].User != names.UserName(c.as) {
				t.Errorf("auth.rejected = %+v, want refusal %s", ev[0], c.want)
			}
			if n := len(w.audit.all(events.UserLogin)); n > 0 {
				t.Errorf("%d events user.login", n)
			}
		})
	}
}

// TestNotAccepted is the rest of F25: what is taken of nobody, key or method, is
// one event too.
func TestNotAccepted(t *testing.T) {
	w := newWorld(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small, err := ssh.NewSignerFromKey(weak)
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sha1, err := ssh.NewSignerFromKey(big)
	if err != nil {
		t.Fatal(err)
	}
	for name, method := range map[string]ssh.AuthMethod{
		"RSA of 1024 bits": pubkey(small),
		"SHA-1 signature":  pubkey(sha1Signer{sha1}),
		"password":         ssh.Password("right"),
	} {
		t.Run(name, func(t *testing.T) {
			w.audit.reset()
			if c, err := w.dial("alice", method); err == nil {
				c.Close()
				t.Fatal("let in")
			}
			if ev := w.audit.all(events.AuthRejected); name != "password" && (len(ev) != 1 || ev[0].Fields["refusal"] != codeNotAccepted) {
				t.Errorf("auth.rejected = %+v", ev)
			}
		})
	}
}

// sha1Signer signs as old clients do (RFC 8332, section 1).
type sha1Signer struct{ ssh.Signer }

func (s sha1Signer) Algorithms() []string { return []string{ssh.KeyAlgoRSA} }

func (s sha1Signer) SignWithAlgorithm(r io.Reader, data []byte, _ string) (*ssh.Signature, error) {
	return s.Signer.(ssh.AlgorithmSigner).SignWithAlgorithm(r, data, ssh.KeyAlgoRSA)
}

// certSignerKey returns the bare key of a person's good certificate.
func certSignerKey(t *testing.T, w *world) ssh.Signer {
	t.Helper()
	_, key := sshca.Generate()
	if _, err := sshca.MintUser(w.ca[sshca.TypeUser], w.userRequest("alice", key.PublicKey())); err != nil {
		t.Fatal(err)
	}
	return key
}

// from makes connections appear to come from addr, as a load balancer attests.
type from struct {
	guardedConn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// TestSourceAddress is the row of critical options at the proxy: the address
// that counts is the one the listener attests.
func TestSourceAddress(t *testing.T) {
	for _, c := range []struct {
		name, source string
		peer         net.Addr
		ok           bool
	}{
		{"in", "10.1.0.0/16", &net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 5}, true},
		{"out", "10.1.0.0/16", &net.TCPAddr{IP: net.ParseIP("10.2.2.3"), Port: 5}, false},
		{"v4 in v6 form", "10.1.0.0/16", &net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3"), Port: 5}, true},
		{"v6 in", "2001:db8::/32", &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5}, true},
		{"unix peer", "10.1.0.0/16", &net.UnixAddr{Name: "@", Net: "unix"}, false},
		{"none", "", &net.UnixAddr{Name: "@", Net: "unix"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			key := w.person("alice", func(r *sshca.UserRequest) {
				if c.source != "" {
					r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix(c.source)}
				}
			})
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			defer ln.Close()
			wg.Go(func() {
				if nc, err := ln.Accept(); err == nil {
					_ = w.server.outer.ServeConn(t.Context(), from{guardedConn{nc, w.offend}, c.peer})
				}
			})
			conn, err := ssh.Dial("tcp", ln.Addr().String(), w.client("alice", pubkey(key)))
			if (err == nil) != c.ok {
				t.Errorf("login: %v, want success %v", err, c.ok)
			}
			if err == nil {
				conn.Close()
			}
		})
	}
}

// TestAllowList holds who may open what. Everything else is refused, whoever
// asks, and the connection lives.
func TestAllowList(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	_, key := sshca.Generate()
	node, proxy := w.member(sshca.KindNode, idN2, "n2"), w.member(sshca.KindProxy, idProxy, "edge")
	peers := map[string]*ssh.Client{
		"person":  w.must("alice", pubkey(w.person("alice"))),
		"sign-in": w.must("alice", pubkey(key), answer("right", "123456")),
		"node":    w.must("n2", pubkey(node)),
		"proxy":   w.must("edge", pubkey(proxy)),
		"joiner":  w.must(JoinUser, pubkey(key)),
	}
	origin := sshwire.AuthorityOpen{OriginAddr: "192.0.2.1", OriginPort: 1}.Marshal()
	target := sshwire.DirectTCPIP{Host: "n1", Port: 22, OriginAddr: "127.0.0.1", OriginPort: 1}.Marshal()
	for _, c := range []struct {
		kind  string
		extra []byte
		may   []string
	}{
		{sshwire.ChannelSession, nil, []string{"person", "sign-in"}},
		{sshwire.ChannelDirectTCPIP, target, []string{"person"}},
		{sshwire.ChannelDirectTCPIP, []byte("junk"), nil},
		{sshwire.ChannelAPI, nil, []string{"person", "node", "proxy"}},
		{sshwire.ChannelAuthority, origin, []string{"node", "proxy", "joiner"}},
		{sshwire.ChannelAuthority, []byte("junk"), nil},
		{sshwire.ChannelForwardedTCPIP, target, nil},
		{"direct-streamlocal@openssh.com", nil, nil},
		{"tun@openssh.com", nil, nil},
		{"x11", nil, nil},
		{channelAgent, nil, nil},
		{"nonsense", nil, nil},
	} {
		for who, conn := range peers {
			ch, reqs, err := conn.OpenChannel(c.kind, c.extra)
			if err == nil {
				go ssh.DiscardRequests(reqs)
				ch.Close()
			}
			if want := slices.Contains(c.may, who); (err == nil) != want {
				t.Errorf("%s opens %s: %v, want success %v", who, c.kind, err, want)
			}
		}
	}
	for _, c := range []struct {
		kind string
		may  []string
	}{
		{sshwire.RequestTCPIPForward, []string{"node"}},
		{sshwire.RequestCancelTCPIPForward, []string{"node"}},
		{"streamlocal-forward@openssh.com", nil},
		{"nonsense", nil},
	} {
		for who, conn := range peers {
			ok, _, err := conn.SendRequest(c.kind, true, sshwire.TCPIPForward{Addr: "", Port: 0}.Marshal())
			if err != nil || ok != slices.Contains(c.may, who) {
				t.Errorf("%s asks for %s: %v, %v", who, c.kind, ok, err)
			}
		}
	}
}

// TestSessionRequests: before login there is nothing to be had, and the agent
// is for those who signed in.
func TestSessionRequests(t *testing.T) {
	w := newWorld(t)
	_, key := sshca.Generate()
	person := w.must("alice", pubkey(w.person("alice")))
	signed := w.must("alice", pubkey(key), answer("right", "123456"))
	pty := sshwire.PtyRequest{Term: "xterm", Columns: 80, Rows: 24}.Marshal()
	for _, c := range []struct {
		kind    string
		payload []byte
		may     []*ssh.Client
	}{
		{sshwire.RequestPTY, pty, []*ssh.Client{person, signed}},
		{sshwire.RequestPTY, []byte("junk"), nil},
		{sshwire.RequestAgent, nil, []*ssh.Client{person, signed}},
		{sshwire.RequestX11, nil, nil},
		{sshwire.RequestEnv, sshwire.Env{Name: "LD_PRELOAD", Value: "x"}.Marshal(), nil},
		{sshwire.RequestSignal, sshwire.Signal{Name: "KILL"}.Marshal(), nil},
		{"nonsense", nil, nil},
	} {
		for _, conn := range []*ssh.Client{person, signed} {
			s, err := conn.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			ok, err := s.SendRequest(c.kind, true, c.payload)
			if err != nil || ok != slices.Contains(c.may, conn) {
				t.Errorf("%s: %v, %v", c.kind, ok, err)
			}
			s.Close()
		}
	}
}

// TestSignedInOnlyLogsIn: what a password opens is the login verb; it is not the
// way to a node, though the person is known and the node allowed.
func TestSignedInOnlyLogsIn(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	_, key := sshca.Generate()
	conn := w.must("alice", pubkey(key), answer("right", "123456"))
	if _, err := conn.Dial("tcp", "n1:22"); err == nil || !strings.Contains(err.Error(), "it can only run") {
		t.Errorf("after a sign-in: %v", err)
	}
	out, err := runLogin(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	isCertificate(t, out, key.PublicKey())
	if got := w.tunnel.dials(); len(got) > 0 {
		t.Errorf("nodes dialled: %v", got)
	}
}

// TestCertificateEndsSignIn: after a plain key was proven a certificate still
// counts, and it alone: the plain key gives nothing.
func TestCertificateEndsSignIn(t *testing.T) {
	w := newWorld(t)
	w.connectNode()
	_, key := sshca.Generate()
	conn := w.must("alice", pubkey(key, w.person("alice")))
	if c, err := conn.Dial("tcp", "n1:22"); err != nil {
		t.Errorf("with a certificate: %v", err)
	} else {
		c.Close()
	}
	if begun, _ := w.login.counts(); begun > 0 {
		t.Errorf("%d sign-ins begun", begun)
	}
}

// TestSignInAbandoned: the authority forgets a sign-in whose person went away.
func TestSignInAbandoned(t *testing.T) {
	w := newWorld(t)
	_, key := sshca.Generate()
	if c, err := w.dial("alice", pubkey(key), answer("right")); err == nil {
		c.Close()
		t.Fatal("let in without a code")
	}
	<-w.login.cancelled
	if begun, open := w.login.counts(); begun != 1 || open != 0 {
		t.Errorf("%d sign-ins begun, %d still open", begun, open)
	}
}

// TestHostileWords is F31: what a stranger calls itself is one value in one
// event, and is not repeated.
func TestHostileWords(t *testing.T) {
	w := newWorld(t)
	_, key := sshca.Generate()
	for _, user := range []string{
		"a\nb", "\x1b]52;c;x\a", "\u202eeve", "\x00", "../..", "@n1", "a b@n1", "alice,bob", "*", strings.Repeat("x", 64<<10), "\xff\xfe",
		"Accepted publickey for root from 1.2.3.4", "+joined", "+sessions", "",
	} {
		w.audit.reset()
		if c, err := w.dial(user, pubkey(key), answer("right", "123456")); err == nil {
			c.Close()
			t.Errorf("user %.20q was let in", user)
		}
		if ev := w.audit.all(events.AuthRejected); len(ev) != 1 || ev[0].Fields["refusal"] != codeBadName || ev[0].User != names.UserName(user) {
			t.Errorf("user %.20q: auth.rejected = %+v", user, ev)
		}
	}
	if begun, _ := w.login.counts(); begun > 0 {
		t.Errorf("%d sign-ins begun", begun)
	}
}
