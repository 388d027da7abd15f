package sshserver

import (
	"bytes"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshca"
)

// TestNoneIsRefused: gliderlabs sets NoClientAuth when it has no handlers of its
// own, which lets everyone in.
func TestNoneIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	for range 4 {
		c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("none")))
		if p := c.expect(msgAuthFailure); !bytes.Equal(p[1:], append(str("publickey"), 0)) {
			t.Errorf("the answer to none is %q", p)
		}
	}
	c.conn.Close()
	if err := <-w.errs; err == nil || len(w.conns()) != 0 {
		t.Errorf("ServeConn = %v with %d connections opened, want an error and none", err, len(w.conns()))
	}
	if _, err := w.dial(w.serve(), &ssh.ClientConfig{User: "alice", HostKeyCallback: ssh.FixedHostKey(w.host.PublicKey())}); err == nil {
		t.Error("a client without any method logged in")
	}
}

// TestNoMethodsAtAll: with no callback set nobody gets in either.
func TestNoMethodsAtAll(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Authenticate = func(*Conn, *ssh.ServerConfig) error { return nil } })
	c := newRaw(t, w.serve())
	c.handshake()
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("none")))
	c.ended()
	if err := <-w.errs; err == nil {
		t.Error("ServeConn = nil, want an error")
	}
}

// TestQueryIsNotProof: CVE-2024-45337. Mallory asks whether the admin's key would
// do, which it would, and then proves her own.
func TestQueryIsNotProof(t *testing.T) {
	for name, order := range map[string]func(w *world, c *rawClient){
		"B then A": func(w *world, c *rawClient) {
			c.query("alice", w.admin.PublicKey())
			c.expect(msgAuthPKOK)
		},
		"A then B": func(w *world, c *rawClient) {
			c.query("alice", w.alice.PublicKey())
			c.expect(msgAuthPKOK)
			c.query("alice", w.admin.PublicKey())
			c.expect(msgAuthPKOK)
		},
		"A, B, stranger": func(w *world, c *rawClient) {
			c.query("alice", w.alice.PublicKey())
			c.expect(msgAuthPKOK)
			c.query("alice", w.admin.PublicKey())
			c.expect(msgAuthPKOK)
			c.query("alice", w.host.PublicKey())
			c.expect(msgAuthFailure)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			c.handshake()
			order(w, c)
			c.prove("alice", w.alice)
			c.expect(msgAuthSuccess)
			c.mustSend(cat(msgGlobalRequest, str("hello"), []byte{1}))
			c.expect(msgRequestSuccess)
			conns := w.conns()
			if len(conns) != 1 || conns[0].Identity.User != "alice" {
				t.Fatalf("the connection is of %+v, want alice", conns[0].Identity)
			}
		})
	}
}

// TestForgedSignature: a signature by another key than the one shown.
func TestForgedSignature(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	c.prove("alice", forger{w.alice, w.admin.PublicKey()})
	c.ended()
	if err := <-w.errs; err == nil || len(w.conns()) != 0 {
		t.Errorf("ServeConn = %v, want an error", err)
	}
}

type forger struct {
	ssh.Signer
	shown ssh.PublicKey
}

func (f forger) PublicKey() ssh.PublicKey { return f.shown }

// TestSuccessFromTheClient: CVE-2018-10933, a client that says it has
// authenticated, and goes on as if it had.
func TestSuccessFromTheClient(t *testing.T) {
	for _, first := range [][]byte{
		{msgAuthSuccess},
		cat(msgGlobalRequest, str("hello"), []byte{1}),
		cat(msgChannelOpen, str("echo"), u32(0), u32(1<<20), u32(32<<10)),
		cat(6, str("ssh-userauth")), // SERVICE_ACCEPT
		cat(msgPing, str("x")),      // CVE-2025-26466
	} {
		for name, prepare := range map[string]func(c *rawClient){
			"before the service": func(c *rawClient) {
				if err := c.kex(plainOffer); err != nil {
					t.Fatal(err)
				}
			},
			"before a key": func(c *rawClient) { c.handshake() },
		} {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			prepare(c)
			c.mustSend(first)
			c.send(cat(msgChannelOpen, str("echo"), u32(0), u32(1<<20), u32(32<<10)))
			for {
				p, err := c.recv()
				if err != nil {
					break
				}
				if p[0] == msgChannelConfirm || p[0] == msgRequestSuccess {
					t.Errorf("message %d %s: the server answers %d", first[0], name, p[0])
				}
			}
			if err := <-w.errs; err == nil || len(w.conns()) != 0 {
				t.Errorf("message %d %s: ServeConn = %v, want an error", first[0], name, err)
			}
		}
	}
}

func TestMaxAuthTries(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	for i := range maxAuthTries {
		c.query("alice", newSigner(t).PublicKey())
		p, err := c.recv()
		switch {
		case i < maxAuthTries-1 && (err != nil || p[0] != msgAuthFailure):
			t.Fatalf("try %d: %v, %v", i+1, p, err)
		case i == maxAuthTries-1 && (err != nil || p[0] != msgDisconnect):
			t.Fatalf("the last try: %v, %v, want a disconnect", p, err)
		}
	}
	c.ended()
	if err := <-w.errs; !fails[*ssh.ServerAuthError](err) {
		t.Errorf("ServeConn = %v, want an authentication error", err)
	}
}

func fails[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}

// TestQueriesAreBounded: queries that succeed are no failures, but x/crypto ends
// a connection at its 128th request.
func TestQueriesAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	n := 0
	for range 200 {
		c.query("alice", w.alice.PublicKey())
		p, err := c.recv()
		if err != nil || p[0] != msgAuthPKOK {
			break
		}
		n++
	}
	if n == 0 || n > 128 {
		t.Errorf("%d queries were answered, want at most 128", n)
	}
	c.ended()
	<-w.errs
}

// TestRefusalsTakeTheSameTime: THREATS 1.1, an unknown user, a wrong key and an
// expired certificate cannot be told apart by the clock, though they cost us
// different work.
func TestRefusalsTakeTheSameTime(t *testing.T) {
	work := map[string]time.Duration{"unknown": 0, "wrong": 2 * time.Millisecond, "expired": 12 * time.Millisecond}
	w := newWorld(t, func(c *Config) {
		c.Limits.FailureDelay = 25 * time.Millisecond
		c.Authenticate = func(_ *Conn, cfg *ssh.ServerConfig) error {
			cfg.PublicKeyCallback = func(m ssh.ConnMetadata, _ ssh.PublicKey) (*ssh.Permissions, error) {
				<-time.After(work[m.User()])
				return nil, errStranger
			}
			return nil
		}
	})
	var all []time.Duration
	medians := map[string]time.Duration{}
	for user := range work {
		var took []time.Duration
		for range 3 {
			c := newRaw(t, w.serve())
			c.handshake()
			for range maxAuthTries - 1 {
				start := time.Now()
				c.query(user, newSigner(t).PublicKey())
				c.expect(msgAuthFailure)
				took = append(took, time.Since(start))
			}
			c.conn.Close()
			<-w.errs
		}
		slices.Sort(took)
		medians[user] = took[len(took)/2]
		all = append(all, medians[user])
	}
	if spread := slices.Max(all) - slices.Min(all); spread > 10*time.Millisecond {
		t.Errorf("the medians %v are %v apart, want at most 10 ms", medians, spread)
	}
	if slices.Min(all) < 25*time.Millisecond {
		t.Errorf("the medians are %v, want at least 25 ms", medians)
	}
}

func TestUntilWhole(t *testing.T) {
	for elapsed, want := range map[time.Duration]time.Duration{0: 25, 1: 24, 24: 1, 25: 25, 26: 24, 99: 1} {
		if got := untilWhole(elapsed, 25); got != want {
			t.Errorf("untilWhole(%d, 25) = %d, want %d", elapsed, got, want)
		}
	}
}

// guardSpy is the listener's side.
type guardSpy struct {
	net.Conn
	mu       sync.Mutex
	calls    []string
	offences []listener.Offence
	full     bool
}

func (g *guardSpy) note(s string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, s)
}
func (g *guardSpy) KexDone()       { g.note("kex") }
func (g *guardSpy) Authenticated() { g.note("authenticated") }
func (g *guardSpy) Penalize(o listener.Offence) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.offences = append(g.offences, o)
}

func (g *guardSpy) Parked() error {
	g.note("parked")
	if g.full {
		return fault.New(fault.Unavailable, "full")
	}
	return nil
}

// wrapper hides a connection as TLS does.
type wrapper struct{ net.Conn }

func (w wrapper) NetConn() net.Conn { return w.Conn }

// signIn is the proxy's way: the key is proven first, then a person types.
func (w *world) signIn(c *Conn, cfg *ssh.ServerConfig) error {
	type secret struct{}
	cfg.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }
	cfg.VerifiedPublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
		if err := c.ProveKey(key); err != nil {
			return nil, err
		}
		return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{
			KeyboardInteractiveCallback: func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
				if err := c.Park(); err != nil {
					return nil, err
				}
				answers, err := ask("", "", []string{"Password: "}, []bool{false})
				if err != nil {
					return nil, err
				}
				if answers[0] != "right" {
					c.Penalize(listener.OffenceInvalidUser)
					return nil, errors.New("wrong")
				}
				return &ssh.Permissions{ExtraData: map[any]any{secret{}: 1}}, nil
			},
		}}
	}
	return nil
}

// answering returns a method that types the answers one after the other.
func answering(answers ...string) ssh.AuthMethod {
	return ssh.RetryableAuthMethod(ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
		if len(questions) == 0 {
			return nil, nil
		}
		if len(answers) == 0 {
			return nil, io.EOF
		}
		a := answers[0]
		answers = answers[1:]
		return []string{a}, nil
	}), 3)
}

func TestSignIn(t *testing.T) {
	w := newWorld(t, nil)
	w.server.cfg.Authenticate = w.signIn
	g := &guardSpy{}
	nc := w.serveWrapped(func(c net.Conn) net.Conn { g.Conn = c; return wrapper{g} })
	cfg := w.clientConfig("alice", w.alice)
	cfg.Auth = append(cfg.Auth, answering("wrong", "right"))
	c, err := w.dial(nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, err := c.SendRequest("hello", true, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	conn := w.conn()
	if conn.Identity != nil || ssh.FingerprintSHA256(conn.Joiner) != ssh.FingerprintSHA256(w.alice.PublicKey()) {
		t.Errorf("proven are %v and %v, want alice's key alone", conn.Identity, conn.Joiner)
	}
	if conn.Permissions == nil || len(conn.Permissions.ExtraData) != 1 {
		t.Errorf("Permissions = %+v, want those of the last callback", conn.Permissions)
	}
	c.Close()
	<-w.errs
	g.mu.Lock()
	defer g.mu.Unlock()
	if want := []string{"kex", "parked", "parked", "authenticated"}; !slices.Equal(g.calls, want) {
		t.Errorf("the guard was called %v, want %v", g.calls, want)
	}
	if want := []listener.Offence{listener.OffenceInvalidUser}; !slices.Equal(g.offences, want) {
		t.Errorf("offences = %v, want %v", g.offences, want)
	}
}

func TestTooManyParked(t *testing.T) {
	w := newWorld(t, nil)
	w.server.cfg.Authenticate = w.signIn
	g := &guardSpy{full: true}
	cfg := w.clientConfig("alice", w.alice)
	cfg.Auth = append(cfg.Auth, answering("right"))
	if _, err := w.dial(w.serveWrapped(func(c net.Conn) net.Conn { g.Conn = c; return g }), cfg); err == nil {
		t.Error("a sign-in went on though the places are taken")
	}
	<-w.errs
}

// TestOffences: how a connection ended that has not authenticated.
func TestOffences(t *testing.T) {
	for name, row := range map[string]struct {
		do   func(w *world, nc net.Conn)
		want listener.Offence
	}{
		"left at once":   {func(_ *world, nc net.Conn) { nc.Close() }, listener.OffenceNoAuth},
		"left after kex": {func(w *world, nc net.Conn) { newRaw(w.t, nc).handshake(); nc.Close() }, listener.OffenceNoAuth},
		"a wrong key": {func(w *world, nc net.Conn) {
			w.dial(nc, w.clientConfig("alice", newSigner(w.t)))
		}, listener.OffenceAuthFailed},
		"garbage": {func(_ *world, nc net.Conn) {
			io.WriteString(nc, "hello\r\n")
			io.Copy(io.Discard, nc)
		}, listener.OffenceProtocol},
		"garbage after the identification": {func(_ *world, nc net.Conn) {
			io.WriteString(nc, "SSH-2.0-x\r\n"+string(make([]byte, 100)))
			io.Copy(io.Discard, nc)
		}, listener.OffenceProtocol},
		"no common algorithm": {func(w *world, nc net.Conn) {
			o := plainOffer
			o.cipher = "3des-cbc"
			c := newRaw(w.t, nc)
			c.conn.Write(c.firstFlight(o))
			io.Copy(io.Discard, nc)
		}, listener.OffenceNoAuth},
		"silence": {func(_ *world, nc net.Conn) { io.Copy(io.Discard, nc) }, listener.OffenceGrace},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Limits.KexTimeout, c.Limits.LoginTimeout = 200*time.Millisecond, 5*time.Second })
			g := &guardSpy{}
			row.do(w, w.serveWrapped(func(c net.Conn) net.Conn { g.Conn = c; return g }))
			if err := <-w.errs; err == nil {
				t.Error("ServeConn = nil, want an error")
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if want := []listener.Offence{row.want}; !slices.Equal(g.offences, want) {
				t.Errorf("offences = %v, want %v", g.offences, want)
			}
		})
	}
}

// TestNoProofIsCut: callbacks that accept a peer without a proof let nobody in,
// neither do fields they set themselves.
func TestNoProofIsCut(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Authenticate = func(c *Conn, cfg *ssh.ServerConfig) error {
			cfg.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
				c.Identity = &sshca.Identity{User: "admin"}
				if err := c.Prove(&sshca.Identity{User: "admin"}); !errors.Is(err, errNotProving) {
					t.Errorf("Prove for an offered key = %v, want a refusal", err)
				}
				if err := c.ProveKey(key); !errors.Is(err, errNotProving) {
					t.Errorf("ProveKey for an offered key = %v, want a refusal", err)
				}
				return nil, nil
			}
			return nil
		}
	})
	c := newRaw(t, w.serve())
	c.handshake()
	c.prove("alice", w.alice)
	c.ended()
	if err := <-w.errs; !errors.Is(err, errNoProof) {
		t.Errorf("ServeConn = %v, want %v", err, errNoProof)
	}
	if len(w.conns()) != 0 {
		t.Error("Opened was called")
	}
}

func TestProve(t *testing.T) {
	c := &Conn{server: &Server{cfg: Config{Limits: Limits{FailureDelay: time.Nanosecond}}}, ctx: t.Context()}
	alice := &sshca.Identity{Kind: sshca.KindUser, User: "alice", Fingerprint: "a"}
	again := *alice
	admin := &sshca.Identity{Kind: sshca.KindUser, User: "admin", Fingerprint: "b"}
	node := &sshca.Identity{Kind: sshca.KindNode, Member: names.NewNodeID(), Fingerprint: "a"}
	key, other := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	try := func(result error, f func() error) (err error) {
		c.attempt(true, func() (*ssh.Permissions, error) { err = f(); return nil, result })
		return err
	}
	failed := errors.New("failed")
	if err := try(failed, func() error { return c.Prove(admin) }); err != nil || c.auth.identity != nil {
		t.Errorf("a proof of an attempt that failed: %v; kept %v", err, c.auth.identity)
	}
	if err := try(&ssh.PartialSuccessError{}, func() error { return c.Prove(alice) }); err != nil || c.auth.identity != alice {
		t.Errorf("a proof of a partial success: %v; kept %v", err, c.auth.identity)
	}
	for name, id := range map[string]*sshca.Identity{"another": admin, "a member": node, "none": nil} {
		if err := try(nil, func() error { return c.Prove(id) }); err == nil || c.auth.identity != alice {
			t.Errorf("proof of %s after alice: %v; kept %v", name, err, c.auth.identity)
		}
	}
	if err := try(nil, func() error { return c.Prove(&again) }); err != nil {
		t.Errorf("alice again: %v", err)
	}
	if err := try(nil, func() error { return c.ProveKey(key) }); err != nil {
		t.Errorf("ProveKey = %v", err)
	}
	if err := try(nil, func() error { return c.ProveKey(other) }); !fault.Is(err, fault.Denied) {
		t.Errorf("ProveKey of another key = %v, want denied", err)
	}
	if err := c.Prove(&again); !errors.Is(err, errNotProving) {
		t.Errorf("Prove outside of a callback = %v", err)
	}
}

// TestPanicInAuthentication: a bug in a callback ends this connection only.
func TestPanicInAuthentication(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		good := c.Authenticate
		c.Authenticate = func(c *Conn, cfg *ssh.ServerConfig) error {
			err := good(c, cfg)
			checked := cfg.PublicKeyCallback
			cfg.PublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
				if m.User() == "bug" {
					panic("a bug")
				}
				return checked(m, key)
			}
			return err
		}
	})
	alice := w.login()
	if _, err := w.dial(w.serve(), w.clientConfig("bug", w.alice)); err == nil {
		t.Error("the connection survived")
	}
	if err := <-w.errs; !errors.Is(err, errPanic) {
		t.Errorf("ServeConn = %v, want %v", err, errPanic)
	}
	if ok, _, err := alice.SendRequest("hello", true, nil); !ok || err != nil {
		t.Errorf("another connection: %v, %v", ok, err)
	}
}

// fakeRSA is a public key of a size; nobody has its private half.
func fakeRSA(t *testing.T, bits uint) ssh.PublicKey {
	t.Helper()
	n := new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1)
	key, err := ssh.NewPublicKey(&rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestHugeRSA: CVE-2026-39829, a 16384-bit key offered a hundred times with a
// signature costs little and opens nothing. Sizes in between are refused too.
func TestHugeRSA(t *testing.T) {
	asked := 0
	w := newWorld(t, func(c *Config) {
		c.Authenticate = func(_ *Conn, cfg *ssh.ServerConfig) error {
			cfg.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
				asked++
				return nil, errStranger
			}
			return nil
		}
	})
	start := time.Now()
	for _, bits := range []uint{1024, 2047, 4097, 16384} {
		key := fakeRSA(t, bits)
		for range 5 {
			c := newRaw(t, w.serve())
			c.handshake()
			for range maxAuthTries - 1 {
				c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("publickey"), []byte{0}, str("rsa-sha2-256"), str(string(key.Marshal()))))
				c.expect(msgAuthFailure)
			}
			sig := str(string(append(str("rsa-sha2-256"), str(string(make([]byte, bits/8)))...)))
			c.send(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("publickey"), []byte{1}, str("rsa-sha2-256"), str(string(key.Marshal())), sig))
			c.ended()
			<-w.errs
		}
	}
	if asked != 0 {
		t.Errorf("the embedder was asked about %d of these keys, want none", asked)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("120 offers took %v", took)
	}
}

func TestKeySizes(t *testing.T) {
	for bits, ok := range map[uint]bool{1024: false, 2047: false, 2048: true, 4096: true, 4097: false} {
		key := fakeRSA(t, bits)
		for _, k := range []ssh.PublicKey{key, &ssh.Certificate{Key: key}} {
			if err := checkSize(k); (err == nil) != ok {
				t.Errorf("%d bits in a %T: %v", bits, k, err)
			}
		}
	}
}

// TestNestedCertificateBlob: x/crypto issue 80414, a blob of 1500 certificates
// one inside the other fails the attempt and nothing else.
func TestNestedCertificateBlob(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	const depth = 1500
	key := w.alice.PublicKey().Marshal()[4+len(ssh.KeyAlgoED25519):]
	head := append(cat(0, u32(0)[1:], u32(0), u32(1), str("id"), str(""), u32(0), u32(0), u32(0), u32(0), str(""), str(""), str("")), 0, 0, 0, 0)
	head = append(append(append(str(ssh.CertAlgoED25519v01), str("nonce")...), key...), head...)
	level, size := len(head)+4, 0
	blob := make([]byte, depth*level) // the heads of all, outermost first, then their empty signatures
	for i := range depth {
		at := blob[(depth-1-i)*len(head):]
		copy(at, head)
		binary.BigEndian.PutUint32(at[len(head)-4:], uint32(size))
		size += level
	}
	if len(blob) < 200<<10 {
		t.Fatalf("the blob has %d bytes", len(blob))
	}
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("publickey"), []byte{0}, str(ssh.CertAlgoED25519v01), str(string(blob))))
	c.expect(msgAuthFailure)
	c.prove("alice", w.alice)
	c.expect(msgAuthSuccess)
}

// TestUnofferedMethods: GSSAPI (CVE-2025-58181) and host-based authentication get
// a plain failure.
func TestUnofferedMethods(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		inner := c.Authenticate
		c.Authenticate = func(c *Conn, cfg *ssh.ServerConfig) error {
			cfg.GSSAPIWithMICConfig = &ssh.GSSAPIWithMICConfig{} // not even if an embedder wants it
			return inner(c, cfg)
		}
	})
	c := newRaw(t, w.serve())
	c.handshake()
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("gssapi-with-mic"), u32(0xffffffff), str("x")))
	c.expect(msgAuthFailure)
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("hostbased"), str("ssh-ed25519")))
	c.expect(msgAuthFailure)
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("password"), []byte{0}, str("secret")))
	c.expect(msgAuthFailure)
}

// TestPreAuthBytes: F12, what an unauthenticated peer may send is bounded, also
// when it answers every question.
func TestPreAuthBytes(t *testing.T) {
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	c.handshake()
	sent := 0
	for sent < 4*maxPreAuth {
		big := make([]byte, 30<<10)
		if c.send(cat(msgIgnore, str(string(big)))) != nil {
			break
		}
		sent += len(big)
	}
	c.ended()
	if err := <-w.errs; !errors.Is(err, errPreAuthBytes) && !left(err) {
		t.Errorf("ServeConn = %v", err)
	}
}

// TestDeadlines: THREATS 1.1, F10. Times are exact, in a bubble.
func TestDeadlines(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*Config, *world)
		client func(w *world, nc net.Conn)
		want   time.Duration
	}{
		"silent": {client: func(_ *world, nc net.Conn) { io.Copy(io.Discard, nc) }, want: 10 * time.Second},
		"identification only": {client: func(_ *world, nc net.Conn) {
			go io.WriteString(nc, "SSH-2.0-x\r\n")
			io.Copy(io.Discard, nc)
		}, want: 10 * time.Second},
		"identification byte by byte": {client: func(_ *world, nc net.Conn) {
			drip(nc, []byte("SSH-2.0-a_very_slow_client\r\n"))
		}, want: 10 * time.Second},
		"KEXINIT byte by byte": {client: func(w *world, nc net.Conn) {
			c := newRaw(w.t, nc)
			drip(nc, c.firstFlight(plainOffer))
		}, want: 10 * time.Second},
		"no authentication": {client: func(w *world, nc net.Conn) {
			newRaw(w.t, nc).handshake()
			io.Copy(io.Discard, nc)
		}, want: 30 * time.Second},
		"authentication byte by byte": {client: func(w *world, nc net.Conn) {
			c := newRaw(w.t, nc)
			c.handshake()
			drip(nc, c.seal(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("publickey"), make([]byte, 200))))
		}, want: 30 * time.Second},
		"a person who types nothing": {
			change: func(c *Config, w *world) { c.Authenticate = w.signIn },
			client: func(w *world, nc net.Conn) {
				c := newRaw(w.t, nc)
				c.handshake()
				c.prove("alice", w.alice)
				c.expect(msgAuthFailure)
				c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("keyboard-interactive"), str(""), str("")))
				c.expect(60)
				io.Copy(io.Discard, nc)
			}, want: 5 * time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				if row.change != nil {
					row.change(&w.server.cfg, w)
				}
				client, server := memPair()
				start := time.Now()
				var got time.Duration
				go func() {
					err := w.server.ServeConn(t.Context(), server)
					got = time.Since(start)
					w.errs <- err
				}()
				row.client(w, client)
				if err := <-w.errs; got != row.want || !errors.Is(err, errTimeout) {
					t.Errorf("ServeConn = %v after %v, want %v after %v", err, got, errTimeout, row.want)
				}
				client.Close()
			})
		})
	}
}

// drip sends a byte a second until the peer has closed.
func drip(nc net.Conn, b []byte) {
	go io.Copy(io.Discard, nc)
	for i := 0; ; i++ {
		if _, err := nc.Write(b[i%len(b) : i%len(b)+1]); err != nil {
			return
		}
		<-time.After(time.Second)
	}
}

// TestDeadlineAtEveryStep: the class of CVE-2024-6387, the timeout races with the
// rest of the handshake. Whatever wins, nothing breaks: run with -race.
func TestDeadlineAtEveryStep(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 60 {
		d := time.Duration(i) * 150 * time.Microsecond
		w.server.cfg.Limits.KexTimeout, w.server.cfg.Limits.LoginTimeout = d+1, d+1
		c, err := w.dial(w.serve(), w.clientConfig("alice", w.alice))
		if err == nil {
			c.SendRequest("hello", true, nil)
			c.Close()
		}
		<-w.errs
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.opened) != len(w.closed) {
		t.Errorf("%d connections opened, %d closed", len(w.opened), len(w.closed))
	}
}
