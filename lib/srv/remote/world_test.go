package remote

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for.
const patience = 30 * time.Second

// world is a cluster's authority and one node with a plain sshd, as the executor
// sees them.
type world struct {
	t       *testing.T
	sshdCA  ssh.Signer
	hostCA  ssh.Signer
	userCA  ssh.Signer
	id      *sshca.Identity
	account names.Login // who runs the tests, so that an sshd without root can serve it

	mu         sync.Mutex
	node       services.Node
	gone       bool
	addr       string // where the sshd listens
	events     []events.Event
	signed     []*accessdv1.SignSessionRequest
	dials      int
	refuse     error  // of SignSession
	force      string // a certificate's force-command
	deaf       bool   // the audit log cannot be written
	unpinnable error  // what PinHostKey answers
	wrap       func(net.Conn) net.Conn
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, node: services.Node{ID: names.NewNodeID(), Name: "db-1", Kind: services.NodeSSHD}}
	for _, ca := range []*ssh.Signer{&w.sshdCA, &w.hostCA, &w.userCA} {
		_, *ca = sshca.Generate()
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	w.account = names.Login(me.Username)
	_, key := sshca.Generate()
	now := time.Now()
	cert, err := sshca.MintUser(w.userCA, sshca.UserRequest{
		Key: key.PublicKey(), User: "alice", Roles: []names.RoleName{"ops"}, Logins: []names.Login{w.account},
		ValidAfter: now.Add(-time.Minute), ValidBefore: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.id, err = w.trust().CheckUser(cert, sshca.Peer{SSHUser: "alice", Now: now}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) trust() sshca.Trust {
	return sshca.Trust{
		User: []ssh.PublicKey{w.userCA.PublicKey()}, Host: []ssh.PublicKey{w.hostCA.PublicKey()}, SSHD: []ssh.PublicKey{w.sshdCA.PublicKey()},
	}
}

// executor returns one that is closed at the end of the test.
func (w *world) executor(settings ...func(*Config)) *Executor {
	w.t.Helper()
	cfg := Config{
		Node: func() (services.Node, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.node, !w.gone
		},
		Identity: w.id, Client: netip.MustParseAddrPort("192.0.2.7:40000"), ID: "0123456789abcdef",
		Dial: w.dial, Certs: w, Trust: w.trust, Events: w,
	}
	for _, set := range settings {
		set(&cfg)
	}
	x, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { x.Close() })
	return x
}

func (w *world) dial(ctx context.Context, n services.Node, from netip.AddrPort) (net.Conn, error) {
	if n.ID != w.node.ID || from.Addr() != netip.MustParseAddr("192.0.2.7") {
		return nil, fmt.Errorf("dial %v from %v", n, from)
	}
	w.mu.Lock()
	w.dials++
	addr, wrap := w.addr, w.wrap
	w.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil && wrap != nil {
		conn = wrap(conn)
	}
	return conn, err
}

// SignSession is the authority's.
func (w *world) SignSession(_ context.Context, r *connect.Request[accessdv1.SignSessionRequest]) (*connect.Response[accessdv1.SignSessionResponse], error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signed = append(w.signed, r.Msg)
	if w.refuse != nil {
		return nil, w.refuse
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Msg.GetPublicKey()))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.UserCert, KeyId: "alice session=" + r.Msg.GetSession(), ValidPrincipals: []string{r.Msg.GetLogin()},
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(5 * time.Minute).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{
			"permit-pty": "", "permit-agent-forwarding": "", "permit-port-forwarding": "", "permit-X11-forwarding": "", "permit-user-rc": "",
		}},
	}
	if w.force != "" {
		cert.CriticalOptions = map[string]string{"force-command": w.force}
	}
	if err := cert.SignCert(rand.Reader, w.sshdCA); err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignSessionResponse{Certificate: string(ssh.MarshalAuthorizedKey(cert))}), nil
}

// PinHostKey is the authority's.
func (w *world) PinHostKey(_ context.Context, r *connect.Request[accessdv1.PinHostKeyRequest]) (*connect.Response[accessdv1.PinHostKeyResponse], error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unpinnable != nil {
		return nil, w.unpinnable
	}
	if len(w.node.HostKeys) > 0 && w.node.HostKeys[0] != r.Msg.GetHostKey() {
		return nil, fault.New(fault.Conflict, "the node has another host key")
	}
	w.node.HostKeys = []string{r.Msg.GetHostKey()}
	return connect.NewResponse(&accessdv1.PinHostKeyResponse{}), nil
}

// Emit is the audit log's.
func (w *world) Emit(_ context.Context, e events.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		return errors.New("disk full")
	}
	w.events = append(w.events, e)
	return nil
}

// set changes the node.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// recorded returns the events so far.
func (w *world) recorded() []events.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// daemon is an OpenSSH server.
type daemon struct {
	*exec.Cmd

	dir  string
	host ssh.PublicKey
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// writeKey writes a private key in OpenSSH's form.
func writeKey(t *testing.T, path string, key crypto.PrivateKey) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sshd starts OpenSSH's server for the node, which trusts the sshd authority,
// and puts its host key on record. Settings come first in its configuration, so
// that they count.
func (w *world) sshd(settings ...string) *daemon {
	t := w.t
	t.Helper()
	d := &daemon{dir: t.TempDir(), log: &lockedBuffer{}}
	key, signer := sshca.Generate()
	d.host = signer.PublicKey()
	writeKey(t, filepath.Join(d.dir, "host"), key)
	if err := os.WriteFile(filepath.Join(d.dir, "ca.pub"), ssh.MarshalAuthorizedKey(w.sshdCA.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory
		t.Fatal(err)
	}
	w.set(func() {
		w.addr = freePort(t)
		w.node.Address = w.addr
		w.node.HostKeys = []string{string(ssh.MarshalAuthorizedKey(d.host))}
	})
	_, port, _ := net.SplitHostPort(w.addr)
	var config bytes.Buffer
	for _, s := range settings {
		fmt.Fprintln(&config, s)
	}
	fmt.Fprintf(&config, "ListenAddress 127.0.0.1\nPort %s\nHostKey %s/host\nTrustedUserCAKeys %s/ca.pub\nAuthorizedKeysFile none\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPrintMotd no\nPrintLastLog no\nAcceptEnv LANG LC_*\nPermitRootLogin yes\n"+
		"PasswordAuthentication no\nX11Forwarding yes\nStreamLocalBindUnlink yes\nSubsystem sftp internal-sftp\nLogLevel VERBOSE\n", port, d.dir, d.dir)
	if err := os.WriteFile(filepath.Join(d.dir, "config"), config.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	await(t, w.addr)
	return d
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	d.Cmd = exec.Command(path, "-D", "-e", "-f", filepath.Join(d.dir, "config"))
	d.Stderr = d.log
	if err := d.Start(); err != nil {
		t.Fatalf("OpenSSH's server is needed: %v", err)
	}
	cmd := d.Cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", d.log)
		}
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// await returns when addr answers.
func await(t *testing.T, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return
		}
		<-tick.C
	}
	t.Fatalf("%s does not answer", addr)
}

// command returns one for the world's account.
func (w *world) command(kind srv.Kind, line string) srv.Command {
	return srv.Command{
		Account: srv.Account{Login: w.account}, Session: names.NewSessionID(), Kind: kind, Line: line, Role: "ops",
	}
}

// result is all that came of a process.
type result struct {
	stdout, stderr []byte
	exit           srv.Exit
}

// run starts c, gives it stdin, and returns what came of it.
func (w *world) run(x *Executor, c srv.Command, stdin []byte) result {
	w.t.Helper()
	p, err := x.Start(w.t.Context(), c)
	if err != nil {
		w.t.Fatalf("start %q: %v", c.Line, err)
	}
	defer p.Close()
	return finish(w.t, p, stdin)
}

// finish gives p stdin and returns what came of it.
func finish(t *testing.T, p srv.Process, stdin []byte) result {
	t.Helper()
	var r result
	var wg sync.WaitGroup
	pipes := p.Pipes()
	wg.Go(func() {
		_, _ = pipes.Stdin.Write(stdin) // it may not read to the end
		_ = pipes.Stdin.Close()
	})
	wg.Go(func() { r.stdout, _ = io.ReadAll(pipes.Stdout) })
	if pipes.Stderr != nil {
		wg.Go(func() { r.stderr, _ = io.ReadAll(pipes.Stderr) })
	}
	select {
	case r.exit = <-p.Exited():
	case <-time.After(patience):
		t.Fatal("the process does not end")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the streams of the process do not end")
	}
	return r
}

// dialer returns one with a short keepalive.
func dialer(t *testing.T, k sshserver.Keepalive, l sshserver.Limits) *sshserver.Dialer {
	t.Helper()
	d, err := sshserver.NewDialer(sshserver.DialerConfig{Name: "test", Keepalive: k, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
