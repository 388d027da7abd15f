package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cluster is an auth and proxy process, its nodes, and a directory for keys.
type Cluster struct {
	T     testing.TB
	Dir   string // data directory of auth and proxy
	Home  string // keys, certificates and ssh files of people
	Addr  string // the listener
	Login string // an operating-system account sessions can run as
	Main  *Process
	Nodes map[string]*Process

	at    *Place // where its processes and clients run; nil for this machine
	extra []string
}

// New starts a cluster of one auth and proxy process; extra are further
// arguments to "accessd start".
func New(t testing.TB, extra ...string) *Cluster {
	t.Helper()
	c := &Cluster{T: t, Dir: t.TempDir(), Home: t.TempDir(), Addr: "127.0.0.1:0", Login: account(t), Nodes: map[string]*Process{}, extra: extra}
	c.StartMain()
	return c
}

// NewIn starts a cluster whose auth, proxy and clients are in the centre of a
// network.
func NewIn(t testing.TB, n *Network, extra ...string) *Cluster {
	t.Helper()
	c := &Cluster{T: t, Dir: t.TempDir(), Home: t.TempDir(), Addr: n.Addr + ":0", Login: account(t), Nodes: map[string]*Process{}, at: n.Centre, extra: extra}
	c.StartMain()
	return c
}

// Command returns a command that will run where the cluster's clients do.
func (c *Cluster) Command(name string, args ...string) *exec.Cmd {
	return c.at.Command(name, args...)
}

// testAccount is the account of sessions where the tests run as root: one of its
// own, since start-up files of a person's may do anything, and be killed at it.
const testAccount = "accessd-it"

var makeAccount sync.Mutex

// account returns an account that sessions can run as.
func account(t testing.TB) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid != "0" {
		return me.Username
	}
	makeAccount.Lock()
	defer makeAccount.Unlock()
	if _, err := user.Lookup(testAccount); err != nil {
		if r := Run(t, nil, "useradd", "--create-home", "--password", "*", "--shell", "/bin/sh", testAccount); r.Code != 0 {
			t.Fatalf("useradd: %s", r.Stderr)
		}
	}
	return testAccount
}

// Mark returns a path at which a session's command can make a file.
func Mark(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "accessd-mark-") //nolint:usetesting // a test's directory is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "mark")
}

// StartMain starts auth and proxy, again on the same address after the first
// time.
func (c *Cluster) StartMain() {
	c.T.Helper()
	args := []string{"start", "--data-dir", c.Dir, "--listen", c.Addr}
	if !slices.Contains(c.extra, "--roles") {
		args = append(args, "--roles", "auth,proxy")
	}
	args = append(args, c.extra...)
	c.Main = StartAt(c.T, c.at, args...)
	c.Addr = c.Main.Field("listen")
}

// Try runs an administrative verb and returns how it ended.
func (c *Cluster) Try(args ...string) Result {
	c.T.Helper()
	return Run(c.T, nil, Binary(c.T), append([]string{"--data-dir", c.Dir}, args...)...)
}

// Admin runs an administrative verb that must succeed and returns its stdout.
func (c *Cluster) Admin(args ...string) string {
	c.T.Helper()
	r := c.Try(args...)
	if r.Code != 0 {
		c.T.Fatalf("accessd %q: exit %d\n%s", args, r.Code, r.Stderr)
	}
	printed(args, r.Stdout)
	return r.Stdout
}

// File writes text to a file in Home and returns its path.
func (c *Cluster) File(name, text string) string {
	c.T.Helper()
	path := filepath.Join(c.Home, name)
	WriteFile(c.T, path, text)
	return path
}

// WriteFile writes text to the file at path.
func WriteFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// NodeArgs returns the arguments that start a node with a fresh token.
func (c *Cluster) NodeArgs(name, dir string, extra ...string) []string {
	c.T.Helper()
	token := strings.TrimSpace(c.Admin("tokens", "add", "--role", "node", "--ttl", "1h", "--uses", "10", "--quiet"))
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	return append([]string{"start", "--data-dir", dir, "--roles", "node", "--join", c.Addr, "--token", token, "--ca-pin", pin, "--node-name", name}, extra...)
}

// Node joins and starts a node; it is connected when Node returns.
func (c *Cluster) Node(name string, extra ...string) *Process {
	c.T.Helper()
	p := Start(c.T, c.NodeArgs(name, c.T.TempDir(), extra...)...)
	c.Nodes[name] = p
	c.WaitOnline(name)
	return p
}

// NodeAt joins and starts a node at a place; it is connected when NodeAt returns.
func (c *Cluster) NodeAt(at *Place, name string, extra ...string) *Process {
	c.T.Helper()
	p := StartAt(c.T, at, c.NodeArgs(name, c.T.TempDir(), extra...)...)
	c.WaitOnline(name)
	return p
}

// NodeView is a node as "nodes ls --format json" shows it.
type NodeView struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	GatewayPort int               `json:"gateway_port"`
	Online      bool              `json:"online"`
	Proxies     []string          `json:"proxies"`
}

// NodeList returns all nodes.
func (c *Cluster) NodeList() []NodeView {
	c.T.Helper()
	var nodes []NodeView
	if err := json.Unmarshal([]byte(c.Admin("nodes", "ls", "--format", "json")), &nodes); err != nil {
		c.T.Fatal(err)
	}
	return nodes
}

// WaitOnline waits until the node's tunnel is up.
func (c *Cluster) WaitOnline(name string) NodeView {
	c.T.Helper()
	var found NodeView
	c.Eventually("node "+name+" is online", func() bool {
		for _, n := range c.NodeList() {
			if n.Name == name && n.Online {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// Eventually asks done again and again until it says true, at most for
// [Patience].
func (c *Cluster) Eventually(what string, done func() bool) {
	c.T.Helper()
	Eventually(c.T, what, done)
}

// Eventually asks done again and again until it says true, at most for
// [Patience]. It asks less often as time goes on: most of what is asked starts a
// process, and other scenarios want the cores.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.After(Patience)
	for pause := 20 * time.Millisecond; !done(); pause = min(pause*3/2, 250*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-deadline:
			t.Fatalf("%s: not within %v", what, Patience)
		}
	}
}

// Person is somebody with a key.
type Person struct {
	Name   string
	Key    string // private key file
	Config string // ssh_config file, once made
	c      *Cluster
}

// User adds a person who may be the given login everywhere, signs a fresh key
// and returns them.
func (c *Cluster) User(name string, roles string) *Person {
	c.T.Helper()
	c.Admin("users", "add", name, "--roles", roles, "--logins", c.Login)
	return c.Sign(name, "1h")
}

// Key makes a fresh Ed25519 key in Home.
func (c *Cluster) Key(name string) string {
	c.T.Helper()
	key := filepath.Join(c.Home, name)
	if r := Run(c.T, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key); r.Code != 0 {
		c.T.Fatalf("ssh-keygen: %s", r.Stderr)
	}
	privateKey(c.T, key)
	return key
}

// Sign makes a key and a certificate for a person who exists.
func (c *Cluster) Sign(name, ttl string) *Person {
	c.T.Helper()
	p := &Person{Name: name, c: c, Key: c.Key(fmt.Sprintf("%s-%d", name, time.Now().UnixNano()))}
	c.Admin("users", "sign", name, "--public-key", p.Key+".pub", "--ttl", ttl, "--out", p.Key+"-cert.pub")
	return p
}

// Configure writes an ssh_config that knows the nodes there are now.
func (p *Person) Configure() *Person {
	p.c.T.Helper()
	p.Config = p.c.File(filepath.Base(p.Key)+"-config", p.c.Admin("ssh-config", "--identity", p.Key))
	return p
}

// SSH runs the stock client with the person's ssh_config.
func (p *Person) SSH(args ...string) Result {
	p.c.T.Helper()
	return p.SSHIn(nil, args...)
}

// SSHIn runs the stock client with a standard input.
func (p *Person) SSHIn(stdin io.Reader, args ...string) Result {
	p.c.T.Helper()
	if p.Config == "" {
		p.Configure()
	}
	name, args := p.c.at.words("ssh", append([]string{"-F", p.Config, "-o", "BatchMode=yes"}, args...))
	return Run(p.c.T, stdin, name, args...)
}

// Event is an audit event as "audit ls --format json" prints it.
type Event map[string]any

// Str returns a field as text.
func (e Event) Str(key string) string {
	s, ok := e[key].(string)
	if !ok && e[key] != nil {
		return fmt.Sprint(e[key])
	}
	return s
}

// Events returns the events that the given filter flags select.
func (c *Cluster) Events(flags ...string) []Event {
	c.T.Helper()
	var events []Event
	out := c.Admin(append([]string{"audit", "ls", "--format", "json"}, flags...)...)
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		c.T.Fatalf("audit ls: %v\n%s", err, out)
	}
	return events
}

// WaitEvent waits until an event selected by flags satisfies match.
func (c *Cluster) WaitEvent(what string, match func(Event) bool, flags ...string) Event {
	c.T.Helper()
	var found Event
	c.Eventually("event "+what, func() bool {
		for _, e := range c.Events(flags...) {
			if match(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// Verify checks the audit log and fails the test when it does not hold.
func (c *Cluster) Verify() {
	c.T.Helper()
	if r := c.Try("audit", "verify"); r.Code != 0 {
		c.T.Errorf("audit verify: exit %d\n%s", r.Code, r.Stderr)
	}
}
