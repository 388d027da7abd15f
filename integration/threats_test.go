package integration

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/names"
)

// A proxy needs no rights: as nobody, without a capability, it serves all that
// proxies do. It holds no key of an authority, and of what goes through it to a
// node of ours not a word. It survives that it may open no more files, and that
// everything stands still for a while.
func TestProxyWithoutRights(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--roles", "auth")
	dir := open(t)
	token := strings.TrimSpace(c.Admin("tokens", "add", "--role", "proxy", "--ttl", "1h", "--quiet"))
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	proxy := harness.StartAsNobody(t, dir, "start", "--data-dir", filepath.Join(dir, "data"), "--roles", "proxy", "--listen", "127.0.0.1:0", "--node-name", "p1",
		"--join", c.Addr, "--token", token, "--ca-pin", pin)
	authority := c.Addr
	c.Addr = proxy.Field("listen") // nodes dial the proxy
	node := c.Node("n1")
	c.Addr = authority
	alice := c.User("alice", "access").Configure()
	proxyAddr := proxy.Field("listen")

	t.Run("serves", func(t *testing.T) {
		want := map[string]string{"NoNewPrivs": "1", "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "Groups": ""}
		if os.Getuid() != 0 {
			want = map[string]string{"CapEff": "0000000000000000"}
		}
		for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/status", proxy.Pid()))) {
			key, value, _ := strings.Cut(line, ":")
			if w, ok := want[key]; ok && strings.TrimSpace(value) != w {
				t.Errorf("%s is %q, want %q", key, strings.TrimSpace(value), w)
			}
			if key == "Uid" && strings.Contains(value, "\t0\t") {
				t.Errorf("the proxy runs as root: %q", value)
			}
		}
		if r := alice.SSH("n1", "echo", "in"); r.Code != 0 || r.Stdout != "in\n" {
			t.Errorf("ssh n1 = %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		if r := alice.SSH("accessd-proxy", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, "n1") {
			t.Errorf("ssh proxy ls = %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		if r := visit(t, c, alice, proxyAddr, "echo", "in"); r.Code != 0 || r.Stdout != "in\n" {
			t.Errorf("ssh %s@n1@proxy = %d %q %q", c.Login, r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("holds no key of an authority", func(t *testing.T) {
		keys := map[string]ed25519.PublicKey{}
		for _, kind := range []string{"user", "host", "node", "sshd"} {
			keys[kind] = authorityKey(t, c.Admin("ca", "export", "--type", kind))
		}
		seeds := private(c.Main, keys)
		for kind := range keys {
			if seeds[kind] == nil {
				t.Errorf("the %s authority's key was not found where it is: this test looks for the wrong thing", kind)
			}
		}
		proxy.Readable(func(b []byte) {
			for kind, seed := range seeds {
				if bytes.Contains(b, seed) {
					t.Errorf("the proxy's memory holds the private key of the %s authority", kind)
				}
			}
		})
	})
	t.Run("reads nothing that goes to a node of ours", func(t *testing.T) {
		sealed, seen := string(names.NewSessionID()), string(names.NewSessionID())
		through := talk(t, exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "n1", "head -n1; : "+sealed+"; cat"))
		through.say(t, sealed+" typed")
		visitor := talk(t, visitor(c, alice, proxyAddr, "head -n1; : "+seen+"; cat"))
		visitor.say(t, seen+" typed")
		found := map[string]bool{}
		proxy.Readable(func(b []byte) {
			for _, text := range []string{sealed, seen} {
				found[text] = found[text] || bytes.Contains(b, []byte(text))
			}
		})
		if !found[seen] {
			t.Error("what the proxy itself serves was not found: this test looks in the wrong place")
		}
		if found[sealed] {
			t.Error("the proxy's memory holds what went through it to a node")
		}
		through.end(t)
		visitor.end(t)
	})
	live := talk(t, exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "n1", "cat"))
	live.say(t, "in")
	late := func() *running {
		return start(t, exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "n1", "echo late"))
	}
	t.Run("no more files", func(t *testing.T) {
		// Proxy and node in turn may open none while somebody comes. Who is in goes on.
		for name, p := range map[string]*harness.Process{"proxy": proxy, "node": node} {
			limit(t, p, "3")
			r := late()
			c.Eventually(name+" is out of files", func() bool { return strings.Contains(p.Log(), "too many open files") })
			live.say(t, "who is in goes on without files at the "+name)
			limit(t, p, "1024")
			if code := r.wait(t); code != 0 && name == "proxy" || code == 0 && r.out.String() != "late\n" {
				t.Errorf("%s: who came meanwhile: exit %d %q %q", name, code, r.out.String(), r.words.String())
			}
			if r := alice.SSH("n1", "echo", "again"); r.Code != 0 || r.Stdout != "again\n" {
				t.Errorf("%s, afterwards: ssh n1 = %d %q %q", name, r.Code, r.Stdout, r.Stderr)
			}
		}
	})
	t.Run("everything stands still", func(t *testing.T) {
		all := []*harness.Process{proxy, c.Main, node}
		for _, p := range all {
			p.Signal(syscall.SIGSTOP)
		}
		nc, err := net.Dial("tcp", proxyAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := nc.Read(make([]byte, 1)); err == nil {
			t.Errorf("a proxy that stands still says %d bytes", n)
		}
		late := late()
		for _, p := range all {
			p.Signal(syscall.SIGCONT)
		}
		live.say(t, "and goes on")
		if code := late.wait(t); code != 0 || late.out.String() != "late\n" {
			t.Errorf("who came meanwhile: exit %d %q %q", code, late.out.String(), late.words.String())
		}
	})
	t.Run("a terminal goes away", func(t *testing.T) {
		for _, p := range []*harness.Process{proxy, c.Main, node} {
			p.Signal(syscall.SIGHUP)
			p.Signal(syscall.SIGHUP)
		}
		live.say(t, "and goes on still")
	})
	t.Run("leads elsewhere", func(t *testing.T) {
		// A proxy that answers for n2 with the way to n1 does not deceive the client.
		r := alice.SSH("-o", "ProxyCommand=ssh -F "+alice.Config+" -W n1:22 accessd-proxy", "-l", c.Login, "n2", "echo", "in")
		refused(t, r, "Host key verification failed")
	})
	live.end(t)
	c.Eventually("every recording is complete", func() bool {
		return strings.TrimSpace(c.Admin("recordings", "ls", "--in-progress", "--format", "json")) == "[]"
	})
	c.Verify()
}

// limit bounds the files that a process may have open.
func limit(t *testing.T, p *harness.Process, soft string) {
	t.Helper()
	cmd := exec.Command("prlimit", "--pid", fmt.Sprint(p.Pid()), "--nofile="+soft+":")
	status := read(t, fmt.Sprintf("/proc/%d/status", p.Pid()))
	if os.Getuid() == 0 && strings.Contains(status, fmt.Sprintf("Uid:\t%d\t", harness.Nobody)) { // somebody else's limits are another right
		cmd = harness.AsNobody("prlimit", cmd.Args[1:]...)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("prlimit: %v %s", err, out)
	}
}

// visitor returns the stock client on its way to n1 without a jump: the proxy is
// the server.
func visitor(c *harness.Cluster, p *harness.Person, addr string, words ...string) *exec.Cmd {
	_, port, _ := net.SplitHostPort(addr)
	return exec.Command("ssh", append([]string{"-F", p.Config, "-o", "BatchMode=yes", "-p", port, "-l", c.Login + "@n1", "127.0.0.1"}, words...)...)
}

func visit(t *testing.T, c *harness.Cluster, p *harness.Person, addr string, words ...string) harness.Result {
	t.Helper()
	cmd := visitor(c, p, addr, words...)
	return harness.Run(t, nil, cmd.Args[0], cmd.Args[1:]...)
}

// authorityKey returns the Ed25519 key of an export.
func authorityKey(t *testing.T, line string) ed25519.PublicKey {
	t.Helper()
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	key, ok := pub.(ssh.CryptoPublicKey).CryptoPublicKey().(ed25519.PublicKey)
	if !ok {
		t.Fatalf("the authority's key is a %s", pub.Type())
	}
	return key
}

// private returns the seeds of keys that stand before them in a process's memory,
// as they do in Go's private keys.
func private(p *harness.Process, keys map[string]ed25519.PublicKey) map[string][]byte {
	seeds := map[string][]byte{}
	p.Readable(func(b []byte) {
		for kind, pub := range keys {
			for at := 0; seeds[kind] == nil; at++ {
				i := bytes.Index(b[at:], pub)
				if i < 0 {
					break
				}
				if at += i; at < ed25519.SeedSize {
					continue
				}
				seed := b[at-ed25519.SeedSize : at]
				if bytes.Equal(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:], pub) {
					seeds[kind] = bytes.Clone(seed)
				}
			}
		}
	})
	return seeds
}

// running is a stock client under way.
type running struct {
	cmd        *exec.Cmd
	out, words bytes.Buffer
	in         io.WriteCloser
	lines      *bufio.Reader
}

func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{cmd: cmd}
	cmd.Stdout, cmd.Stderr = &r.out, &r.words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return r
}

// talk starts a client whose command gives back what it is told.
func talk(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{cmd: cmd}
	cmd.Stderr = &r.words
	var err error
	if r.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.lines = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return r
}

// say sends a line and wants it back.
func (r *running) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { text, _ := r.lines.ReadString('\n'); got <- text }()
	select {
	case text := <-got:
		if text != line+"\n" {
			t.Fatalf("%q came back for %q", text, line)
		}
	case <-time.After(harness.Patience):
		t.Fatalf("%q did not come back", line)
	}
}

func (r *running) end(t *testing.T) {
	t.Helper()
	r.in.Close()
	if code := r.wait(t); code != 0 {
		t.Errorf("%q: exit %d %s", r.cmd.Args, code, r.words.String())
	}
}

func (r *running) wait(t *testing.T) int {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.cmd.Wait() }()
	select {
	case <-done:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(harness.Patience):
		t.Fatalf("%q is still running", r.cmd.Args)
		return 0
	}
}
