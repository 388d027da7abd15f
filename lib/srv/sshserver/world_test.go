package sshserver

import (
	"bytes"
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

	"github.com/accessd/accessd/lib/names"
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
	some   *sync.Cond // signalled when a connection opens
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
	w.some = sync.NewCond(&w.mu)
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
			w.some.Broadcast()
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
		return p, c.Prove(&sshca.Identity{Kind: sshca.KindUser, User: names.UserName(w.name(key)), Fingerprint: ssh.FingerprintSHA256(key)})
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
	server = wrap(server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.errs <- w.server.ServeConn(ctx, server)
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

// conn returns the first connection that opened, or waits for it: a client knows
// that it has logged in before the server does anything about it.
func (w *world) conn() *Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.opened) == 0 {
		w.some.Wait()
	}
	return w.opened[0]
}

// memPair is a connection in memory, for bubbles: writes never block, which
// net.Pipe's do.
func memPair() (client, server net.Conn) {
	a, b := newHalf(), newHalf()
	return &memConn{r: a, w: b}, &memConn{r: b, w: a}
}

// half is one direction.
type half struct {
	mu     sync.Mutex
	some   *sync.Cond
	buf    bytes.Buffer
	closed bool
}

func newHalf() *half {
	h := &half{}
	h.some = sync.NewCond(&h.mu)
	return h
}

func (h *half) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.some.Broadcast()
}

type memConn struct {
	net.Conn // nil: nobody asks for deadlines
	r, w     *half
}

func (m *memConn) Read(p []byte) (int, error) {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	for m.r.buf.Len() == 0 && !m.r.closed {
		m.r.some.Wait()
	}
	if m.r.buf.Len() == 0 {
		return 0, io.EOF
	}
	return m.r.buf.Read(p)
}

func (m *memConn) Write(p []byte) (int, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.closed {
		return 0, io.ErrClosedPipe
	}
	m.w.some.Broadcast()
	return m.w.buf.Write(p)
}

func (m *memConn) Close() error {
	m.r.close()
	m.w.close()
	return nil
}

func (m *memConn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 3022} }

func (m *memConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 5000} }
