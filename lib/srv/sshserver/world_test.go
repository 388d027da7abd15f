package sshserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
)

// world is a server on loopback or in memory, that knows alice's key.
type world struct {
	t      *testing.T
	server *Server
	host   ssh.Signer
	alice  ssh.Signer // may log in
	admin  ssh.Signer // may log in too, as somebody else
	errs   chan error // what ServeConn returned

	mu     sync.Mutex
	opened []*Conn
	closed []error
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// echo answers a channel's bytes.
func echo(_ *Conn, nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	io.Copy(ch, ch)
	ch.CloseWrite()
}

// newWorld starts nothing; change alters the configuration.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, host: newSigner(t), alice: newSigner(t), admin: newSigner(t), errs: make(chan error, 64)}
	cfg := Config{
		Name:     "test",
		HostKeys: func() []ssh.Signer { return []ssh.Signer{w.host} },
		Channels: map[string]func(*Conn, ssh.NewChannel){"echo": echo},
		Requests: map[string]func(*Conn, *ssh.Request) (bool, []byte){
			"hello": func(_ *Conn, r *ssh.Request) (bool, []byte) { return true, r.Payload },
		},
		Opened: func(c *Conn) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.opened = append(w.opened, c)
			return nil
		},
		Closed: func(_ *Conn, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.closed = append(w.closed, err)
		},
		Limits: Limits{FailureDelay: time.Millisecond},
		Log:    zaptest.NewLogger(t),
	}
	cfg.Authenticate = w.authenticate
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

var errStranger = errors.New("not a key of ours")

// name returns who a key belongs to.
func (w *world) name(key ssh.PublicKey) string {
	for n, s := range map[string]ssh.Signer{"alice": w.alice, "admin": w.admin} {
		if string(s.PublicKey().Marshal()) == string(key.Marshal()) {
			return n
		}
	}
	return ""
}

func (w *world) authenticate(c *Conn, cfg *ssh.ServerConfig) error {
	cfg.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if w.name(key) == "" {
			return nil, errStranger
		}
		return nil, nil
	}
	cfg.VerifiedPublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
		return p, c.Prove(&sshca.Identity{Kind: sshca.KindUser, User: userName(w.name(key)), Fingerprint: ssh.FingerprintSHA256(key)})
	}
	return nil
}

// serve serves one end of a loopback connection and returns the other. The test
// ends only when the server has let go of it.
func (w *world) serve() net.Conn {
	w.t.Helper()
	return w.serveWrapped(func(c net.Conn) net.Conn { return c })
}

func (w *world) serveWrapped(wrap func(net.Conn) net.Conn) net.Conn {
	w.t.Helper()
	client, server := tcpPair(w.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.errs <- w.server.ServeConn(ctx, wrap(server))
	}()
	w.t.Cleanup(func() {
		client.Close()
		cancel()
		<-done
	})
	return client
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func (w *world) clientConfig(user string, keys ...ssh.Signer) *ssh.ClientConfig {
	return &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(keys...)},
		HostKeyCallback: ssh.FixedHostKey(w.host.PublicKey()),
	}
}

// login returns a client of alice's.
func (w *world) login() ssh.Conn {
	w.t.Helper()
	c, err := w.dial(w.serve(), w.clientConfig("alice", w.alice))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) dial(nc net.Conn, cfg *ssh.ClientConfig) (ssh.Conn, error) {
	c, chans, reqs, err := ssh.NewClientConn(nc, "", cfg)
	if err != nil {
		nc.Close()
		return nil, err
	}
	go ssh.DiscardRequests(reqs)
	go func() {
		for nc := range chans {
			nc.Reject(ssh.Prohibited, "")
		}
	}()
	return c, nil
}

func (w *world) conns() []*Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*Conn(nil), w.opened...)
}
