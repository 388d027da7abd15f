package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/child"
	"github.com/accessd/accessd/lib/sshca"
)

// accountEnv names the account that TestMain has made.
const accountEnv = "ACCESSD_TEST_ACCOUNT"

func TestMain(m *testing.M) {
	if code, ok := child.Run(os.Args); ok {
		os.Exit(code)
	}
	cleanup := addAccount()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		cleanup()
		os.Exit(code)
	}))
}

// addAccount makes an account to log in to when the tests run as root.
func addAccount() func() {
	if os.Geteuid() != 0 {
		return func() {}
	}
	login := "acn" + strconv.Itoa(os.Getpid())
	out, err := exec.Command("useradd", "--create-home", "--skel", "/nonexistent", "--shell", "/bin/bash", login).CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("useradd: %v\n%s", err, out))
	}
	_ = os.Setenv(accountEnv, login)
	return func() { _ = exec.Command("userdel", "--remove", "--force", login).Run() }
}

// me returns the account to log in to.
func me(t *testing.T) string {
	t.Helper()
	if login := os.Getenv(accountEnv); login != "" {
		return login
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// world is a node that everything of is real, on a listener that only the test
// has.
type world struct {
	t       *testing.T
	server  *Server
	cache   *services.Cache
	emitter *events.Emitter
	ledger  *events.OpenSessions
	dir     string
	now     time.Time // moved by the test before it connects
	addr    string
	cas     map[sshca.Type]ssh.Signer

	mu   sync.Mutex
	log  []events.Event
	wake chan struct{}

	stop func() // ends everything; may be called twice
}

const roleText = `
kind: role
name: developer
allow:
  - nodes: {env: dev}
    logins: ["{{user.logins}}"]
    actions: [shell, exec, sftp:read, forward:local, forward:remote]
---
kind: role
name: viewer
allow:
  - nodes: {env: prod}
    logins: ["{{user.logins}}"]
    actions: [shell]
---
kind: role
name: forwarder
allow:
  - nodes: {env: dev}
    logins: ["{{user.logins}}"]
    actions: [forward:local]
`

func newWorld(t *testing.T, settings ...func(*Config)) *world {
	t.Helper()
	w := &world{
		t: t, cache: services.NewCache(), dir: t.TempDir(), now: time.Now(), cas: map[sshca.Type]ssh.Signer{}, wake: make(chan struct{}),
	}
	roles, err := services.ParseRoles("test", []byte(roleText))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roles {
		w.put("role", string(r.Name), r)
	}
	w.putUser("developer")
	for _, typ := range []sshca.Type{sshca.TypeUser, sshca.TypeHost, sshca.TypeNode, sshca.TypeSSHD} {
		_, w.cas[typ] = sshca.Generate()
		key := services.CAKey{Public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(w.cas[typ].PublicKey()))), Created: w.now}
		ca := services.CA{Type: typ, Keys: []services.CAKey{key}}
		w.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{ca.Resource()}})
	}
	w.run(settings)
	return w
}

func (w *world) apply(u *accessdv1.PolicyUpdate) {
	w.t.Helper()
	if err := w.cache.Apply(u); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(kind, name string, v any) {
	w.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{{Key: &accessdv1.ResourceKey{Kind: kind, Name: name}, Json: data, Revision: 1}}})
}

// putUser gives alice these roles and no others.
func (w *world) putUser(roles ...names.RoleName) {
	w.put("user", "alice", services.User{Name: "alice", Roles: roles, Logins: []names.Login{names.Login(me(w.t)), "root", "nobody", "no-such-login"}})
}

// run starts the node.
func (w *world) run(settings []func(*Config)) {
	w.t.Helper()
	t := w.t
	var err error
	w.emitter, err = events.NewEmitter(events.EmitterConfig{Dir: filepath.Join(w.dir, "spool"), ServerID: "node", ServerHostname: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if w.ledger, err = events.NewOpenSessions(filepath.Join(w.dir, "ledger")); err != nil {
		t.Fatal(err)
	}
	engine, err := authz.New(authz.Config{Policy: w.cache})
	if err != nil {
		t.Fatal(err)
	}
	local, err := srv.NewLocal(srv.LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	_, host := sshca.Generate()
	cert, err := sshca.MintHost(w.cas[sshca.TypeHost], sshca.HostRequest{
		Key: host.PublicKey(), KeyID: "n1", Principals: []string{"n1"}, ValidAfter: w.now.Add(-time.Minute), ValidBefore: w.now.Add(time.Hour), Serial: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	hostCert, err := ssh.NewCertSigner(cert, host)
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := recording.New(recording.Config{Dir: t.TempDir() + "/recordings"})
	if err != nil {
		w.t.Fatal(err)
	}
	view := authz.NodeView{ID: "0b0c1f2e-0000-4000-8000-000000000001", Name: "n1", Labels: names.Labels{"env": "dev"}}
	cfg := Config{
		Host: &Host{
			Node:     func() authz.NodeView { return view },
			HostKeys: func() []ssh.Signer { return []ssh.Signer{hostCert, host} },
			Executor: func(Person) (srv.Executor, error) { return local, nil },
		},
		Trust: w.cache.Trust, Engine: engine, Changed: w.cache.Changed,
		Events: w.emitter, Ledger: w.ledger, Recorder: recorder, Now: func() time.Time { return w.now },
		Grace: 2 * time.Second, Log: zaptest.NewLogger(t, zaptest.Level(zap.FatalLevel)),
	}
	for _, s := range settings {
		s(&cfg)
	}
	if w.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	w.listen()
}

// listen begins to serve, which a node itself never does by listening.
func (w *world) listen() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	drain, stopDrain := context.WithCancel(context.Background())
	var serving, running sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _ = w.server.Serve(ctx, conn) })
		}
	})
	serving.Go(func() { _ = w.server.Run(ctx) })
	running.Go(func() { _ = w.emitter.Run(drain, w.collect) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		_ = ln.Close()
		serving.Wait()
		stopDrain()
		running.Wait()
		if err := errors.Join(w.emitter.Close(), w.ledger.Close()); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(w.stop)
}

func (w *world) collect(_ context.Context, batch [][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, data := range batch {
		e, err := events.ParseEvent(data)
		if err != nil {
			return err
		}
		w.log = append(w.log, e)
	}
	close(w.wake)
	w.wake = make(chan struct{})
	return nil
}

// await returns the first event that match takes, once there is one.
func (w *world) await(name events.Name, match func(events.Event) bool) events.Event {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		wake := w.wake
		i := slices.IndexFunc(w.log, func(e events.Event) bool { return e.Name == name && (match == nil || match(e)) })
		if i >= 0 {
			defer w.mu.Unlock()
			return w.log[i]
		}
		w.mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			w.t.Fatalf("no event %s", name)
		}
	}
}

func (w *world) count(name events.Name) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.log {
		if e.Name == name {
			n++
		}
	}
	return n
}

// credential is a key and what certifies it, as files for the stock client.
type credential struct {
	dir    string
	signer ssh.Signer
	cert   *ssh.Certificate // nil: the plain key
}

// request returns what a good certificate of alice's is made of.
func (w *world) request(key ssh.PublicKey) sshca.UserRequest {
	return sshca.UserRequest{
		Key: key, User: "alice", Roles: []names.RoleName{"developer", "viewer", "forwarder"},
		Logins:     []names.Login{names.Login(me(w.t)), "root", "nobody", "no-such-login"},
		ValidAfter: w.now.Add(-time.Minute), ValidBefore: w.now.Add(time.Hour), Serial: 4711,
	}
}

// credential makes a credential; change makes its certificate a bad one, and may
// return nil for none.
func (w *world) credential(change func(ssh.PublicKey) *ssh.Certificate) credential {
	w.t.Helper()
	c := credential{dir: w.t.TempDir()}
	private, signer := sshca.Generate()
	c.signer = signer
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		w.t.Fatal(err)
	}
	c.write(w.t, "id", pemBytes(block))
	if change == nil {
		change = w.mint
	}
	if c.cert = change(signer.PublicKey()); c.cert != nil {
		c.write(w.t, "id-cert.pub", ssh.MarshalAuthorizedKey(c.cert))
	}
	return c
}

// mint certifies key as alice's.
func (w *world) mint(key ssh.PublicKey) *ssh.Certificate {
	cert, err := sshca.MintUser(w.cas[sshca.TypeUser], w.request(key))
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func (c credential) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// result is what a person sees of one ssh.
type result struct {
	code           int
	stdout, stderr string
}

// command returns the stock client, which trusts the host authority and nothing
// else.
func (w *world) command(c credential, login string, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(w.addr)
	known := fmt.Sprintf("@cert-authority n1 %s", ssh.MarshalAuthorizedKey(w.cas[sshca.TypeHost].PublicKey()))
	c.write(w.t, "known_hosts", []byte(known))
	all := []string{
		"-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=n1",
		"-o", "UserKnownHostsFile=" + filepath.Join(c.dir, "known_hosts"), "-o", "IdentitiesOnly=yes", "-i", filepath.Join(c.dir, "id"),
		"-p", port, "-l", login,
	}
	flags := 0
	for flags < len(args) && strings.HasPrefix(args[flags], "-") {
		if slices.Contains([]string{"-o", "-W", "-R"}, args[flags]) {
			flags++
		}
		flags++
	}
	all = append(append(slices.Concat(args[:flags], all), host), args[flags:]...)
	cmd := exec.Command("ssh", all...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	return cmd
}

func (w *world) ssh(c credential, login string, args ...string) result {
	w.t.Helper()
	cmd := w.command(c, login, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		w.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// dial returns a client for what the stock one does not do.
func (w *world) dial(c credential, login string) (*ssh.Client, error) {
	signer := c.signer
	if c.cert != nil {
		var err error
		if signer, err = ssh.NewCertSigner(c.cert, c.signer); err != nil {
			w.t.Fatal(err)
		}
	}
	var banner string
	client, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
		User: login, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // the test's own
		BannerCallback: func(text string) error { banner = text; return nil },
	})
	if err != nil && banner != "" {
		err = fmt.Errorf("%w; banner %q", err, banner)
	}
	return client, err
}

// attested is a connection whose proxy says where the client is.
type attested struct {
	net.Conn
	remote netip.AddrPort
}

func (a attested) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(a.remote) }
