package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/sshca"
)

// hostCert returns a host certificate of ca for key.
func hostCert(t *testing.T, ca, key ssh.Signer, ends time.Time, principals ...string) ssh.Signer {
	t.Helper()
	cert, err := sshca.MintHost(ca, sshca.HostRequest{
		Key: key.PublicKey(), KeyID: "node", Principals: principals,
		ValidAfter: ends.Add(-2 * time.Hour), ValidBefore: ends,
	})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func line(k ssh.Signer) string { return string(ssh.MarshalAuthorizedKey(k.PublicKey())) }

// TestHostKey: which host keys are taken, and what is on record of those that
// are not.
func TestHostKey(t *testing.T) {
	_, key := sshca.Generate()
	_, other := sshca.Generate()
	_, stranger := sshca.Generate()
	soon := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		shows  func(r *rogue) ssh.Signer
		record func(n *services.Node)
		taken  bool
		pinned bool
	}{
		"on record":             {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys = []string{line(other), line(key)} }, true, false},
		"certificate, name":     {func(r *rogue) ssh.Signer { return hostCert(t, r.hostCA, key, soon, "db-1") }, nil, true, false},
		"certificate, id":       {func(r *rogue) ssh.Signer { return hostCert(t, r.hostCA, key, soon, string(r.node.ID), "x") }, nil, true, false},
		"other key":             {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys = []string{line(other)} }, false, false},
		"other node":            {func(r *rogue) ssh.Signer { return hostCert(t, r.hostCA, key, soon, "db-2", "localhost") }, nil, false, false},
		"expired":               {func(r *rogue) ssh.Signer { return hostCert(t, r.hostCA, key, time.Now().Add(-time.Minute), "db-1") }, nil, false, false},
		"stranger's":            {func(*rogue) ssh.Signer { return hostCert(t, stranger, key, soon, "db-1") }, nil, false, false},
		"user CA's":             {func(r *rogue) ssh.Signer { return hostCert(t, r.userCA, key, soon, "db-1") }, nil, false, false},
		"stranger's, on record": {func(*rogue) ssh.Signer { return hostCert(t, stranger, key, soon, "db-1") }, func(n *services.Node) { n.HostKeys = []string{line(key)} }, true, false},
		"none on record":        {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys = nil }, false, false},
		"first use":             {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys, n.Address = nil, "" }, true, true},
		"second use":            {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys, n.Address = []string{line(other)}, "" }, false, false},
		"malformed record":      {func(*rogue) ssh.Signer { return key }, func(n *services.Node) { n.HostKeys, n.Address = []string{"what"}, "" }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRogue(t)
			r.host = c.shows(r)
			if c.record != nil {
				c.record(&r.node)
			}
			r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
				begun(requests)
				ch.Close()
			})
			x := r.executor()
			p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
			if err == nil {
				p.Close()
			}
			x.Close()
			r.wg.Wait()
			list := r.recorded()
			if c.taken {
				if err != nil {
					t.Fatal(err)
				}
				if len(list) > 0 { // the authority records what it pins
					t.Errorf("recorded %v", list)
				}
				if c.pinned && !slices.Equal(r.node.HostKeys, []string{line(key)}) {
					t.Errorf("on record is %q", r.node.HostKeys)
				}
				return
			}
			want := `the host key of node "db-1" is not the one that is expected (it is ` + ssh.FingerprintSHA256(key.PublicKey()) + `); nobody logs in until that is settled`
			if fault.Public(err) != want || !fault.Is(err, fault.Denied) {
				t.Errorf("Start = %v, public %q, want %q", err, fault.Public(err), want)
			}
			if len(r.signed) > 0 {
				t.Error("the authority was asked for a certificate")
			}
			if len(list) != 1 {
				t.Fatalf("recorded %v, want one event", list)
			}
			e := list[0]
			if e.Name != events.NodeHostKey || e.Success || e.User != "alice" || e.Login != r.account || e.AddrRemote != "192.0.2.7:40000" ||
				e.Fields["node_id"] != r.node.ID || e.Fields["fingerprint"] != ssh.FingerprintSHA256(key.PublicKey()) || e.Fields["action"] != "refused" || e.Fields["reason"] == nil {
				t.Errorf("recorded %+v", e)
			}
		})
	}
}

// TestHostKeyUnrecorded: a refusal that cannot be recorded is one still.
func TestHostKeyUnrecorded(t *testing.T) {
	r := newRogue(t)
	r.node.HostKeys, r.deaf = nil, true
	x := r.executor()
	_, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
	if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(fault.Public(err), "the audit log cannot be written, and the host key") {
		t.Errorf("Start = %v", err)
	}
	x.Close()
	r.wg.Wait()
}

// TestPinRefused: a key that is pinned nowhere is not taken.
func TestPinRefused(t *testing.T) {
	for why, want := range map[error]string{
		fault.New(fault.Denied, "permission denied"): "the host key of node",
		errors.New("dial 10.0.0.1: refused"):         `the host key of node "db-1" cannot be put on record`,
	} {
		r := newRogue(t)
		r.node.HostKeys, r.node.Address, r.unpinnable = nil, "", why
		x := r.executor()
		_, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
		if !strings.HasPrefix(fault.Public(err), want) || len(r.signed) > 0 {
			t.Errorf("Start = %v, want %q", err, want)
		}
		if n := len(r.recorded()); fault.Is(why, fault.Denied) != (n == 1) {
			t.Errorf("%v: %d events", why, n)
		}
		x.Close()
		r.wg.Wait()
	}
}

// TestPinRace: two first sessions at once put the same key on record.
func TestPinRace(t *testing.T) {
	r := newRogue(t)
	r.node.HostKeys, r.node.Address = nil, ""
	r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		begun(requests)
		ch.Close()
	})
	x := r.executor()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
			if err != nil {
				t.Error(err)
				return
			}
			p.Close()
		})
	}
	wg.Wait()
	x.Close()
	r.wg.Wait()
}

// TestKeyOfManyOnRecord: an sshd with keys of several types shows the one that
// is on record, although others come first.
func TestKeyOfManyOnRecord(t *testing.T) {
	w := newWorld(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ecdsa")
	writeKey(t, file, key)
	w.sshd("HostKey " + file)
	w.node.HostKeys = []string{line(signer)}
	if r := w.run(w.executor(), w.command(srv.KindExec, "exit 4"), nil); r.exit != (srv.Exit{Code: 4}) {
		t.Errorf("exit = %+v", r.exit)
	}
}

// TestHostCertificate: OpenSSH shows its host certificate, and no key of it is on
// record.
func TestHostCertificate(t *testing.T) {
	w := newWorld(t)
	key, signer := sshca.Generate()
	file := filepath.Join(t.TempDir(), "key")
	writeKey(t, file, key)
	cert := hostCert(t, w.hostCA, signer, time.Now().Add(time.Hour), "db-1")
	if err := os.WriteFile(file+"-cert.pub", []byte(line(cert)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.sshd("HostKey "+file, "HostCertificate "+file+"-cert.pub")
	w.node.HostKeys = nil
	if r := w.run(w.executor(), w.command(srv.KindExec, "exit 4"), nil); r.exit != (srv.Exit{Code: 4}) {
		t.Errorf("exit = %+v", r.exit)
	}
}

// TestRefusals: what a person reads when no session comes about.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(r *rogue, cfg *Config)
		kind    fault.Kind
		want    string
	}{
		"node gone": {func(r *rogue, _ *Config) { r.gone = true }, fault.NotFound, "the node is no longer part of the cluster"},
		"node of accessd": {
			func(r *rogue, _ *Config) { r.node.Kind = services.NodeAccessd }, fault.Unavailable,
			`the node "db-1" has an SSH server of its own now; connect again`,
		},
		"no way there": {func(_ *rogue, cfg *Config) {
			cfg.Dial = func(context.Context, services.Node, netip.AddrPort) (net.Conn, error) {
				return nil, errors.New("dial 10.0.0.1: refused")
			}
		}, fault.Unavailable, `cannot connect to the SSH server of node "db-1"`},
		"no tunnel": {func(_ *rogue, cfg *Config) {
			cfg.Dial = func(context.Context, services.Node, netip.AddrPort) (net.Conn, error) {
				return nil, fault.New(fault.Unavailable, "the node has no tunnel to this proxy")
			}
		}, fault.Unavailable, "the node has no tunnel to this proxy"},
		"not SSH": {
			func(r *rogue, _ *Config) {
				r.raw = func(c net.Conn) { _, _ = io.WriteString(c, strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 2000)) }
			}, fault.Unavailable, `what answers for node "db-1" speaks no SSH that is understood`,
		},
		"algorithms": {
			func(r *rogue, _ *Config) {
				r.raw = func(c net.Conn) {
					cfg := &ssh.ServerConfig{NoClientAuth: true, Config: ssh.Config{KeyExchanges: []string{ssh.InsecureKeyExchangeDH14SHA1}}}
					cfg.AddHostKey(r.host)
					_, _, _, _ = ssh.NewServerConn(c, cfg)
				}
			}, fault.Unavailable, `the SSH server of node "db-1" has no algorithm that is good enough`,
		},
		"drops": {func(r *rogue, _ *Config) { r.raw = func(c net.Conn) {} }, fault.Unavailable, `the SSH server of node "db-1" drops connections`},
		"untrusted": {
			func(r *rogue, _ *Config) {
				r.raw = func(c net.Conn) {
					cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
						return nil, errors.New("no")
					}}
					cfg.AddHostKey(r.host)
					_, _, _, _ = ssh.NewServerConn(c, cfg)
				}
			}, fault.Denied, `the sshd of node "db-1" does not let "LOGIN" in: it does not trust the cluster's CA for this login (see "accessd nodes setup-sshd"), or the account is closed there`,
		},
		"no public keys": {
			func(r *rogue, _ *Config) {
				r.raw = func(c net.Conn) {
					cfg := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
						return nil, errors.New("no")
					}}
					cfg.AddHostKey(r.host)
					_, _, _, _ = ssh.NewServerConn(c, cfg)
				}
			}, fault.Denied, `the sshd of node "db-1" does not let "LOGIN" in: it does not trust the cluster's CA for this login (see "accessd nodes setup-sshd"), or the account is closed there`,
		},
		"open to all": {
			func(r *rogue, _ *Config) {
				r.raw = func(c net.Conn) {
					cfg := &ssh.ServerConfig{NoClientAuth: true}
					cfg.AddHostKey(r.host)
					if conn, _, _, err := ssh.NewServerConn(c, cfg); err == nil {
						_ = conn.Wait()
					}
				}
			}, fault.Denied, `the sshd of node "db-1" lets anybody in as "LOGIN": it asked for no certificate`,
		},
		"authority refuses": {func(r *rogue, _ *Config) { r.refuse = fault.New(fault.Denied, "the user is locked") }, fault.Denied, "the user is locked"},
		"authority away":    {func(r *rogue, _ *Config) { r.refuse = errors.New("dial 10.0.0.1: refused") }, fault.Unavailable, "the authority signs no certificate for the node now"},
		"no sessions": {
			func(r *rogue, _ *Config) {
				r.serve = func(_ *ssh.ServerConn, channels <-chan ssh.NewChannel, q <-chan *ssh.Request) {
					for nc := range channels {
						nc.Reject(ssh.Prohibited, "no\x1b]0;more\nsessions "+strings.Repeat("x", 1000))
					}
					ssh.DiscardRequests(q)
				}
			}, fault.Unavailable, `the sshd of node "db-1" refuses a session: no\x1b]0;more\x0asessions ` + strings.Repeat("x", maxReason-len("no\x1b]0;more\nsessions ")),
		},
		"no shell": {
			func(r *rogue, _ *Config) {
				r.serve = sessions(func(_ *ssh.ServerConn, _ ssh.Channel, q <-chan *ssh.Request) { ssh.DiscardRequests(q) })
			}, fault.Unavailable, `the sshd of node "db-1" refuses the shell`,
		},
		"gone meanwhile": {
			func(r *rogue, _ *Config) {
				r.serve = sessions(func(c *ssh.ServerConn, _ ssh.Channel, q <-chan *ssh.Request) { <-q; c.Close() })
			}, fault.Unavailable, `the sshd of node "db-1" ended the connection before the shell began`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRogue(t)
			x := r.executor(func(cfg *Config) { c.prepare(r, cfg) })
			_, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
			want := strings.ReplaceAll(c.want, "LOGIN", string(r.account))
			if fault.Public(err) != want || !fault.Is(err, c.kind) {
				t.Errorf("Start = %v, public %q, want %q (%v)", err, fault.Public(err), want, c.kind)
			}
			x.Close()
			r.wg.Wait()
		})
	}
}

// TestDroppedIsTriedAgain: OpenSSH drops connections at random when too many are
// not authenticated, with and without a word.
func TestDroppedIsTriedAgain(t *testing.T) {
	r := newRogue(t)
	var mu sync.Mutex
	left := []string{"", "Exceeded MaxStartups\r\n"}
	r.serve = sessions(func(_ *ssh.ServerConn, ch ssh.Channel, requests <-chan *ssh.Request) {
		begun(requests)
		ch.Close()
	})
	x := r.executor(func(c *Config) {
		inner := c.Dial
		c.Dial = func(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if len(left) == 0 {
				return inner(ctx, n, from)
			}
			near, far := memoryPipe()
			_, _ = io.WriteString(far, left[0])
			far.Close()
			left = left[1:]
			return near, nil
		}
	})
	p, err := x.Start(t.Context(), r.command(srv.KindShell, ""))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	x.Close()
	r.wg.Wait()
}

// TestCanceled: the end of the context ends a login, and what it made.
func TestCanceled(t *testing.T) {
	r := newRogue(t)
	reached := make(chan struct{})
	r.raw = func(c net.Conn) {
		close(reached)
		_, _ = io.Copy(io.Discard, c) // until it is cut
	}
	x := r.executor()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client is gone")
	go func() {
		<-reached
		cancel(gone)
	}()
	if _, err := x.Start(ctx, r.command(srv.KindShell, "")); !errors.Is(err, gone) {
		t.Errorf("Start = %v", err)
	}
	x.Close()
	r.wg.Wait()
}

// TestUntrustedCA: OpenSSH that trusts another authority, or this one for another
// login only.
func TestUntrustedCA(t *testing.T) {
	w := newWorld(t)
	w.sshd("TrustedUserCAKeys none")
	_, err := w.executor().Start(t.Context(), w.command(srv.KindShell, ""))
	if !fault.Is(err, fault.Denied) || !strings.Contains(fault.Public(err), `does not let "`+string(w.account)+`" in: it does not trust the cluster's CA`) {
		t.Errorf("Start = %v", err)
	}
	w.sshd("AuthorizedPrincipalsFile none", "DenyUsers *")
	_, err = w.executor().Start(t.Context(), w.command(srv.KindShell, ""))
	if !fault.Is(err, fault.Denied) {
		t.Errorf("Start = %v", err)
	}
	w.sshd()
	c := w.command(srv.KindShell, "")
	c.Login = "no-such-login"
	if _, err = w.executor().Start(t.Context(), c); !fault.Is(err, fault.Denied) {
		t.Errorf("Start as nobody = %v", err)
	}
}

// TestKilled: when the sshd dies in mid-session the session ends, and the person
// reads it after all that came before.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	d := w.sshd()
	x := w.executor()
	for _, terminal := range []bool{false, true} {
		c := w.command(srv.KindExec, "echo before; sleep 60")
		if terminal {
			c.Terminal = &srv.Terminal{Term: "xterm"}
		}
		p, err := x.Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len("before\n"))
		if _, err := io.ReadFull(p.Pipes().Stdout, first); err != nil {
			t.Fatal(err)
		}
		d.endSessions(t)
		r := finish(t, p, nil)
		if r.exit != (srv.Exit{Code: -1}) {
			t.Errorf("terminal %v: exit = %+v", terminal, r.exit)
		}
		got, want := strings.TrimLeft(string(r.stdout)+string(r.stderr), "\n"), "accessd: the connection to node \"db-1\" is lost\n"
		if terminal {
			want = strings.ReplaceAll(want, "\n", "\r\n")
		}
		if got != want {
			t.Errorf("terminal %v: %q, want %q", terminal, got, want)
		}
		p.Close()
	}
}

// TestOrderlyEndIsQuiet: a session that ends as sessions do says nothing of a
// connection.
func TestOrderlyEndIsQuiet(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	for range 10 {
		if r := w.run(x, w.command(srv.KindExec, "true"), nil); len(r.stdout)+len(r.stderr) > 0 {
			t.Errorf("%q, %q", r.stdout, r.stderr)
		}
	}
	// One that closes its outputs and goes on has not ended.
	p, err := x.Start(t.Context(), w.command(srv.KindExec, "exec >&- 2>&-; read a; exit 6"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if out, err := io.ReadAll(p.Pipes().Stderr); len(out) > 0 || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if r := finish(t, p, []byte("\n")); r.exit != (srv.Exit{Code: 6}) {
		t.Errorf("exit = %+v", r.exit)
	}
}

// TestNew: what is required, and that a closed executor starts nothing.
func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("New takes an empty Config")
	}
	for _, id := range []string{"x", "0123456789abcdeg", "0123456789ABCDEF", "0123456789abcdef0"} {
		if _, err := sessionOf(id); err == nil {
			t.Errorf("%q is taken for the id of a connection", id)
		}
	}
	w := newWorld(t)
	w.sshd()
	id := *w.id
	id.Certificate = nil
	if _, err := New(Config{
		Node: func() (services.Node, bool) { return w.node, true }, Identity: &id, ID: "0123456789abcdef", Dial: w.dial, Certs: w, Trust: w.trust, Events: w,
	}); err == nil {
		t.Error("New takes an identity without a certificate")
	}
	x := w.executor()
	if err := x.Check(t.Context(), srv.Account{Login: names.Login("any")}); err != nil || w.dials != 0 {
		t.Errorf("Check = %v after %d connections", err, w.dials)
	}
	x.Close()
	if _, err := x.Start(t.Context(), w.command(srv.KindShell, "")); err == nil {
		t.Error("a closed executor starts a session")
	}
}

// TestForcedCommand: the authority is told what a session begins with, and where it
// forces something the sshd itself runs that and nothing else.
func TestForcedCommand(t *testing.T) {
	w := newWorld(t)
	w.sshd()
	x := w.executor()
	for _, c := range []struct {
		name, force string
		kind        srv.Kind
		line        string
		want        string
	}{
		{"as asked", "echo one", srv.KindExec, "echo one", "one\n"},
		{"another line", "echo forced", srv.KindExec, "echo asked", "forced\n"},
		{"a shell", "echo forced", srv.KindShell, "", "forced\n"},
		{"a shell behind files", "internal-sftp", srv.KindShell, "", "This service allows sftp connections only.\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.mu.Lock()
			w.force, w.signed = c.force, nil
			w.mu.Unlock()
			if r := w.run(x, w.command(c.kind, c.line), nil); string(r.stdout) != c.want {
				t.Errorf("stdout = %q, want %q", r.stdout, c.want)
			}
			if s := w.signed[0].GetStart(); s.GetKind() != string(c.kind) || string(s.GetLine()) != c.line {
				t.Errorf("the authority was told %v", s)
			}
		})
	}
	w.mu.Lock()
	w.force = "internal-sftp"
	w.mu.Unlock()
	p, err := x.Start(t.Context(), w.command(srv.KindSubsystem, srv.SubsystemSFTP))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pipes := p.Pipes()
	answer := make([]byte, 9)
	if _, err := pipes.Stdin.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3}); err != nil { // SSH_FXP_INIT, version 3
		t.Fatal(err)
	}
	if _, err := io.ReadFull(pipes.Stdout, answer); err != nil || answer[4] != 2 {
		t.Errorf("the forced server answers % x, %v; want SSH_FXP_VERSION", answer, err)
	}
}
