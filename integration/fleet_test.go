package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// login is the account of sessions in a fleet.
const login = "iris"

// fleet is a cluster with a node of each kind, all on one host, and a stock sshd
// beside it that has nothing to do with the cluster: what accessd is held
// against. alice may do everything everywhere, with her certificate and with a
// key that is enrolled for her.
type fleet struct {
	*harness.Cluster

	host   *harness.Host
	base   *harness.Sshd
	dir    string // open to every account
	config string // ssh_config with a Host for each target
	kinds  []string
	sshds  map[string]*harness.Sshd // of plain nodes, by address
	screen *sync.Once
	xenv   []string
	alice  *harness.Person
	user   string // whom the ssh_config goes to the proxy as
	plain  string // the key that is enrolled for alice; no certificate lies beside it
	ecdsa  string // another, for clients that know no Ed25519 certificates
}

// kinds of node, and the node of each.
var kinds = map[string]string{"accessd": "n1", "sshd": "n2", "ssh -R": "n3"}

// ways in, as the words after a node's name in the fleet's ssh_config.
var ways = []string{"jump", "command", "at"}

// target is one node by one way.
type target struct {
	*fleet

	kind string // of kinds, or stock for the sshd beside the cluster, or named
	way  string // of ways, or "" for stock
	node string
	as   string // the account; "" means login
}

// alias is the target's Host in the fleet's ssh_config.
func (x target) alias() string {
	switch x.kind {
	case stock:
		return stock
	case named:
		return x.node
	}
	return x.node + "-" + x.way
}

const stock = "stock"

// everyAction is the role of somebody who may do everything, also with a client
// that knows no certificates.
const everyAction = `kind: role
name: every-action
allow:
  - nodes: {"*": "*"}
    logins: ["{{user.logins}}"]
    actions: ["*"]
options: {plain_keys: true}
`

// newFleet builds a fleet. only names the kinds of node to have, all by default.
func newFleet(t *testing.T, only ...string) *fleet {
	t.Helper()
	return newFleetWith(t, noPenalties(t), only...)
}

// newFleetWith builds a fleet whose authority and proxy have a configuration.
func newFleetWith(t *testing.T, config string, only ...string) *fleet {
	t.Helper()
	f := &fleet{host: harness.NewHost(t), dir: open(t), user: "alice", screen: &sync.Once{}, sshds: map[string]*harness.Sshd{}}
	f.host.Account(login, "--shell", "/bin/bash", "--uid", "4801")
	f.Cluster = harness.New(t, "--config", config)
	f.base = f.host.Sshd(t)
	if f.kinds = only; only == nil {
		f.kinds = []string{"accessd", "sshd", "ssh -R"}
	}
	for _, kind := range f.kinds {
		f.join(t, kind)
	}
	f.Admin("roles", "apply", "-f", f.File("every-action.yaml", everyAction))
	f.Admin("users", "add", "alice", "--roles", "access,every-action", "--logins", login)
	f.alice = f.Sign("alice", "1h")
	f.plain = f.Key("alice-plain")
	f.ecdsa = filepath.Join(f.Home, "alice-ecdsa")
	must(t, harness.Run(t, nil, "ssh-keygen", "-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-C", "", "-f", f.ecdsa))
	f.enrol(t, "alice", f.plain)
	f.enrol(t, "alice", f.ecdsa)
	f.authorize(t, login)
	f.configure(t)
	return f
}

// open returns a directory that every account may write to.
func open(t testing.TB) string {
	t.Helper()
	dir := filepath.Dir(harness.Mark(t))
	return dir
}

func must(t testing.TB, r harness.Result) string {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("exit %d\nstdout: %.2000s\nstderr: %.4000s", r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// enrol enrols a public key for a user.
func (f *fleet) enrol(t *testing.T, user, key string) {
	t.Helper()
	f.Admin("users", "keys", "add", user, key+".pub")
}

// authorize lets alice's keys in at the stock sshd.
func (f *fleet) authorize(t *testing.T, account string) {
	t.Helper()
	var keys []string
	for _, path := range []string{f.alice.Key, f.plain, f.ecdsa} {
		keys = append(keys, read(t, path+".pub"))
	}
	f.base.Authorize(t, account, strings.Join(keys, ""))
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// join makes a node of a kind, which is connected when join returns.
func (f *fleet) join(t *testing.T, kind string) {
	t.Helper()
	name := kinds[kind]
	switch kind {
	case "accessd":
		f.NodeOn(f.host, name, "--labels", "kind=accessd")
	case "sshd":
		sshd := f.trusting(t)
		f.Admin("nodes", "add", name, "--address", sshd.Addr, "--labels", "kind=sshd")
	default:
		sshd := f.trusting(t)
		f.bare(t, name, sshd.Addr)
	}
}

// trusting starts a plain sshd that trusts the cluster's CA for such nodes.
func (f *fleet) trusting(t *testing.T) *harness.Sshd {
	t.Helper()
	sshd := f.host.Sshd(t)
	ca := filepath.Join(sshd.Dir, "ca.pub")
	harness.WriteFile(t, ca, f.Admin("ca", "export", "--type", "sshd"))
	sshd.Configure(t, "TrustedUserCAKeys "+ca)
	f.sshds[sshd.Addr] = sshd
	return sshd
}

// bare joins a node that has only an ssh client and an sshd, and opens its
// tunnel.
func (f *fleet) bare(t *testing.T, name, addr string) *harness.Terminal {
	t.Helper()
	f.joinBare(t, name)
	return f.tunnel(t, name, addr)
}

// joinBare gets the certificate of such a node.
func (f *fleet) joinBare(t *testing.T, name string) {
	t.Helper()
	key := f.Key("bare-" + name)
	token := strings.TrimSpace(f.Admin("tokens", "add", "--role", "node", "--ttl", "1h", "--quiet"))
	hosts := f.File("bare-hosts", f.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
	_, port, _ := strings.Cut(f.Addr, ":")
	common := []string{
		"-F", "none", "-o", "UserKnownHostsFile=" + hosts, "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes",
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", key, "-p", port,
	}
	k := harness.Type(t, "ssh", append(common, name+"@127.0.0.1", "join")...)
	k.Expect(`(?i)token: `)
	k.Send(token)
	r := k.Wait()
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
		t.Fatalf("join = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
}

// tunnel runs the stock client that makes a bare node reachable.
func (f *fleet) tunnel(t *testing.T, name, addr string) *harness.Terminal {
	t.Helper()
	k := harness.Type(t, "ssh", f.dial(name, addr)...)
	f.WaitOnline(name)
	return k
}

// dial returns the arguments of that client.
func (f *fleet) dial(name, addr string) []string {
	_, port, _ := net.SplitHostPort(f.Addr)
	return []string{
		"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.Home, "bare-hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes",
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", filepath.Join(f.Home, "bare-"+name), "-p", port,
		"-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-N", "-R", "22:" + addr, name + "@127.0.0.1",
	}
}

// configure writes the ssh_config with every target.
func (f *fleet) configure(t *testing.T) {
	t.Helper()
	var b strings.Builder
	host, port, _ := net.SplitHostPort(f.Addr)
	baseHost, basePort, _ := net.SplitHostPort(f.base.Addr)
	fmt.Fprintf(&b, "Host %s\n  HostName %s\n  Port %s\n  User %s\n  HostKeyAlias %[1]s\n", stock, baseHost, basePort, login)
	fmt.Fprintf(&b, "Host proxy\n  HostName %s\n  Port %s\n  User alice\n", host, port)
	for _, node := range kinds {
		f.hosts(&b, node)
	}
	known := f.File("fleet-hosts", f.Admin("ca", "export", "--type", "host", "--format", "known-hosts")+stock+" "+f.base.HostKey+"\n")
	fmt.Fprintf(&b, "Host *\n  IdentityFile %s\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  BatchMode yes\n",
		f.alice.Key, known)
	f.config = f.File("fleet-config", b.String())
}

// addHost puts another node into the ssh_config, by each way.
func (f *fleet) addHost(t *testing.T, node string) {
	t.Helper()
	var b strings.Builder
	f.hosts(&b, node)
	harness.WriteFile(t, f.config, b.String()+read(t, f.config))
}

// hosts writes a node's Hosts of the ssh_config.
func (f *fleet) hosts(b *strings.Builder, node string) {
	host, port, _ := net.SplitHostPort(f.Addr)
	fmt.Fprintf(b, "Host %s-jump\n  HostName %[1]s\n  User %s\n  ProxyJump proxy\n", node, login)
	fmt.Fprintf(b, "Host %s-command\n  HostName %[1]s\n  User %s\n  ProxyCommand ssh -F %s -W %%h:%%p proxy\n", node, login, filepath.Join(f.Home, "fleet-config"))
	fmt.Fprintf(b, "Host %s-at\n  HostName %s\n  Port %s\n  User %s@%[1]s\n", node, host, port, login)
}

// jump is a node of a kind by the stock way.
func (f *fleet) jump(kind string) target {
	return target{fleet: f, kind: kind, way: "jump", node: kinds[kind]}
}

// long bounds a client's run, on a machine that other scenarios share.
const long = 2 * time.Minute

// command returns the stock client on its way to the target; options go before
// the host.
func (x target) command(options []string, words ...string) *exec.Cmd {
	args := append([]string{"-F", x.config}, options...)
	switch {
	case x.as == "":
	case x.way == "at":
		args = append(args, "-l", x.as+"@"+x.node)
	default:
		args = append(args, "-l", x.as)
	}
	return exec.Command("ssh", append(append(args, x.alias()), words...)...)
}

// ssh runs a command on the target with no input.
func (x target) ssh(t *testing.T, options []string, words ...string) harness.Result {
	t.Helper()
	return harness.RunFor(t, long, x.command(options, words...))
}

// feed runs a command on the target with an input.
func (x target) feed(t *testing.T, stdin io.Reader, options []string, words ...string) harness.Result {
	t.Helper()
	cmd := x.command(options, words...)
	cmd.Stdin = stdin
	return harness.RunFor(t, long, cmd)
}

// client returns a client of this machine; env goes in addition to the test's
// own.
func (x target) client(env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// run runs a client with no input.
func (x target) run(t *testing.T, env []string, name string, args ...string) harness.Result {
	t.Helper()
	return harness.RunFor(t, long, x.client(env, name, args...))
}

// start runs a client with an input.
func (x target) start(t *testing.T, stdin []byte, env []string, name string, args ...string) harness.Result {
	t.Helper()
	cmd := x.client(env, name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	return harness.RunFor(t, long, cmd)
}

// background starts a client that the test's end stops.
func (x target) background(t *testing.T, cmd *exec.Cmd) *background {
	t.Helper()
	b := &background{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &b.words
	cmd.WaitDelay = time.Second // an ssh that it jumps through holds stderr, too
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.done)
		_ = cmd.Wait()
	}()
	t.Cleanup(b.stop)
	return b
}

// background is a client that runs beside its test.
type background struct {
	cmd   *exec.Cmd
	words bytes.Buffer // read only once it has ended
	done  chan struct{}
}

func (b *background) stop() {
	_ = b.cmd.Process.Kill()
	<-b.done
}

// eventually asks done again and again until it says true or the client ends.
func (b *background) eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	harness.Eventually(t, what, func() bool {
		select {
		case <-b.done:
			t.Fatalf("%s: not before %q ended: %s", what, b.cmd.Args, b.words.String())
		default:
		}
		return done()
	})
}

// exists waits until something is at path.
func (b *background) exists(t *testing.T, path string) {
	t.Helper()
	b.eventually(t, path+" is there", func() bool { _, err := os.Lstat(path); return err == nil })
}

// wait waits for the client's own end.
func (b *background) wait(t *testing.T) harness.Result {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(long):
		t.Fatalf("%q: still running after %v", b.cmd.Args, long)
	}
	return harness.Result{Code: b.cmd.ProcessState.ExitCode(), Stderr: b.words.String()}
}

// scratch returns a directory of this subtest that the account on the node may
// write to.
func (x target) scratch(t *testing.T) string {
	t.Helper()
	return open(t)
}

// blob writes n bytes that do not compress to a file and returns their SHA-256.
func blob(t testing.TB, path string, n int) string {
	t.Helper()
	body := noise(n)
	if err := os.WriteFile(path, body, 0o644); err != nil {
		t.Fatal(err)
	}
	return digest(body)
}

// noise returns n bytes in which every value occurs and none is expected.
func noise(n int) []byte {
	body := make([]byte, 0, n+sha256.Size)
	sum := sha256.Sum256([]byte("noise"))
	for len(body) < n {
		sum = sha256.Sum256(sum[:])
		body = append(body, sum[:]...)
	}
	return body[:n]
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// sameFile fails unless the file holds what digest says.
func sameFile(t *testing.T, path, want string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if got := digest(body); got != want {
		t.Errorf("%s: %d bytes with SHA-256 %s, want %s", filepath.Base(path), len(body), got, want)
	}
}

// echo is a TCP service that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	serveEcho(ln)
	return ln.Addr().String()
}

func serveEcho(ln net.Listener) {
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				if half, ok := c.(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
			}()
		}
	}()
}

// port returns a port of the loopback address that was free a moment ago.
func port(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, p, _ := net.SplitHostPort(ln.Addr().String())
	return p
}

// throughEcho sends n bytes to the echo service that the client leads to, closes
// its half, and wants all of them back.
func (b *background) throughEcho(t *testing.T, network, addr string, n int) {
	t.Helper()
	var c net.Conn
	b.eventually(t, "somebody listens on "+addr, func() (ok bool) {
		var err error
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err == nil
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(long))
	body := noise(n)
	go func() {
		_, _ = c.Write(body)
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("through %s: %d of %d bytes came back, %v", addr, len(got), n, err)
	}
}
