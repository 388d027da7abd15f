package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// session is a stock client in the middle of a command on a node.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	sid string
	end chan int
}

// begin starts a command that says it has begun and then waits for its input to
// end.
func begin(t *testing.T, c *harness.Cluster, p *harness.Person, node string) *session {
	t.Helper()
	if p.Config == "" {
		p.Configure()
	}
	before := len(c.Events("--event", "session.start", "--node", node))
	mark := harness.Mark(t)
	s := &session{t: t, end: make(chan int, 1)}
	s.cmd = c.Command("ssh", "-F", p.Config, "-o", "BatchMode=yes", node, "touch "+mark+"; cat; touch "+mark+".after")
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		s.end <- s.cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() { in.Close(); _ = s.cmd.Process.Kill() })
	harness.Eventually(t, "the command runs", func() bool { _, err := os.Stat(mark); return err == nil })
	var all []harness.Event
	c.Eventually("session.start is logged", func() bool {
		all = c.Events("--event", "session.start", "--node", node)
		return len(all) > before
	})
	s.sid = all[len(all)-1].Str("sid")
	return s
}

// wait returns the client's exit code.
func (s *session) wait(within time.Duration) int {
	s.t.Helper()
	select {
	case code := <-s.end:
		return code
	case <-time.After(within):
		s.t.Fatalf("the client was still there after %v", within)
		return 0
	}
}

// endedOnce wants exactly one session.end of s, now and after everything has
// settled.
func (s *session) endedOnce(c *harness.Cluster) harness.Event {
	s.t.Helper()
	e := c.WaitEvent("session.end", func(harness.Event) bool { return true }, "--event", "session.end", "--session", s.sid)
	if n := len(c.Events("--event", "session.end", "--session", s.sid)); n != 1 {
		s.t.Errorf("%d session.end events of one session, want exactly 1", n)
	}
	return e
}

// F01: kill -9 of the proxy in the middle of a session.
func TestKillProxyMidSession(t *testing.T) {
	t.Parallel()
	eachPath(t, func(t *testing.T, c *harness.Cluster) {
		c.Node("n1")
		alice := c.User("alice", "access")
		s := begin(t, c, alice, "n1")
		c.Main.Kill()
		if code := s.wait(10 * time.Second); code != 255 {
			t.Errorf("the client exited %d, want 255", code)
		}
		began := time.Now()
		c.StartMain()
		c.WaitOnline("n1")
		t.Logf("the tunnel was back %v after the proxy", time.Since(began))
		if r := alice.SSH("n1", "echo", "again"); r.Code != 0 || r.Stdout != "again\n" {
			t.Errorf("after the restart: ssh = %d %q", r.Code, r.Stderr)
		}
		s.endedOnce(c)
		c.Verify()
	})
}

// F02: kill -9 of the node in the middle of a session; the next start ends it
// in the log, once.
func TestKillNodeMidSession(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	dir := t.TempDir()
	args := c.NodeArgs("n1", dir)
	n := harness.Start(t, args...)
	c.WaitOnline("n1")
	alice := c.User("alice", "access")
	s := begin(t, c, alice, "n1")
	n.Kill()
	if code := s.wait(15 * time.Second); code != 255 {
		t.Errorf("the client exited %d, want 255", code)
	}
	harness.Start(t, args...)
	c.WaitOnline("n1")
	if e := s.endedOnce(c); e.Str("recovered") != "true" {
		t.Errorf("session.end = %v, want it marked recovered", e)
	}
	if r := alice.SSH("n1", "true"); r.Code != 0 {
		t.Errorf("after the restart: ssh = %d %q", r.Code, r.Stderr)
	}
	c.Verify()
}

// F03: the authority away. Running sessions go on, the node decides by the
// policy it has, and its events arrive later, in order, none missing.
func TestAuthorityAway(t *testing.T) {
	t.Parallel()
	c := newSplit(t)
	alice := c.User("alice", "access").Configure()
	s := begin(t, c.Cluster, alice, "n1")
	c.Main.Kill()
	if r := alice.SSH("n1", "echo", "alone"); r.Code != 0 || r.Stdout != "alone\n" {
		t.Errorf("with the authority away: ssh = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	select {
	case code := <-s.end:
		t.Errorf("the running session ended with %d", code)
	default:
	}
	c.StartMain()
	c.WaitOnline("n1")
	wantEvent(t, c.Cluster, map[string]string{"user": "alice", "kind": "exec", "command": "echo alone"}, "--event", "session.start")
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	s.wait(10 * time.Second)
	s.endedOnce(c.Cluster)
	c.Verify()
}

// split is an authority, a proxy that holds no CA key, and a node, each a
// process of its own.
type split struct {
	*harness.Cluster
	Proxy    *harness.Process
	ProxyDir string
}

func newSplit(t *testing.T) *split {
	t.Helper()
	c := &split{Cluster: harness.New(t, "--roles", "auth"), ProxyDir: t.TempDir()}
	token := strings.TrimSpace(c.Admin("tokens", "add", "--role", "proxy", "--ttl", "1h", "--quiet"))
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	c.Proxy = harness.Start(t, "start", "--data-dir", c.ProxyDir, "--roles", "proxy", "--listen", "127.0.0.1:0", "--node-name", "p1",
		"--join", c.Addr, "--token", token, "--ca-pin", pin)
	authority := c.Addr
	c.Addr = c.Proxy.Field("listen") // nodes dial the proxy
	c.Node("n1")
	c.Addr = authority
	return c
}

// A proxy of its own joins with a token, as nodes do, and holds no CA key.
func TestProxyAlone(t *testing.T) {
	t.Parallel()
	c := newSplit(t)
	alice := c.User("alice", "access").Configure()
	if r := alice.SSH("n1", "echo", "hi"); r.Code != 0 || r.Stdout != "hi\n" {
		t.Fatalf("ssh = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c.Cluster, map[string]string{"user": "alice", "server_hostname": "p1"}, "--event", "access.decision")
	wantEvent(t, c.Cluster, map[string]string{"user": "alice", "server_hostname": "n1"}, "--event", "session.start")
	if _, err := os.Stat(filepath.Join(c.ProxyDir, "cluster")); err == nil {
		t.Error("the proxy has a cluster state of its own")
	}
	if _, err := os.Stat(filepath.Join(c.ProxyDir, "keys")); err == nil {
		t.Error("the proxy has a key directory")
	}
	if code := c.Proxy.Stop(); code != 0 {
		t.Errorf("the proxy ended with %d after SIGTERM, want 0", code)
	}
	c.Verify()
}

// A second process on the same data directory is refused and disturbs nothing.
func TestSecondProcessOnOneDirectory(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	r := harness.Run(t, nil, harness.Binary(t), "start", "--data-dir", c.Dir, "--listen", "127.0.0.1:0")
	if r.Code != 5 || !strings.Contains(r.Stderr, "in use by another accessd") || !strings.Contains(r.Stderr, c.Dir) {
		t.Errorf("second start = %d %q, want 5 and the directory named", r.Code, r.Stderr)
	}
	c.Admin("nodes", "ls")
}

// Everything that was there before a stop is there after it; and what was written an
// hour from now tells that the node's clock was set meanwhile.
func TestRestartKeepsTheCluster(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	dir := t.TempDir()
	args := c.NodeArgs("n1", dir)
	n := harness.Start(t, args...)
	before := c.WaitOnline("n1")
	alice := c.User("alice", "access").Configure()
	if code := c.Main.Stop(); code != 0 {
		t.Errorf("auth and proxy ended with %d, want 0", code)
	}
	if code := n.Stop(); code != 0 {
		t.Errorf("the node ended with %d, want 0", code)
	}
	left, err := filepath.Glob(filepath.Join(dir, "spool", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(left, filepath.Join(dir, "spool")) {
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	c.StartMain()
	harness.Start(t, "start", "--data-dir", dir, "--roles", "node", "--join", c.Addr, "--node-name", "n1")
	after := c.WaitOnline("n1")
	if before.ID != after.ID || before.GatewayPort != after.GatewayPort {
		t.Errorf("the node is %s port %d, was %s port %d", after.ID, after.GatewayPort, before.ID, before.GatewayPort)
	}
	if r := alice.SSH("n1", "true"); r.Code != 0 {
		t.Errorf("ssh = %d %q", r.Code, r.Stderr)
	}
	c.WaitEvent("the mark of the jump", func(e harness.Event) bool {
		return e.Str("server_hostname") == "n1" && strings.HasPrefix(e.Str("error"), "the clock went back by ")
	}, "--event", "clock.jump", "--failed")
	if marks := c.Events("--event", "clock.jump"); len(marks) != 1 {
		t.Errorf("jumps of clocks: %v, want one", marks)
	}
	c.Verify()
}

// SIGTERM lets a session finish its work and then ends with 0.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	n := c.Node("n1")
	alice := c.User("alice", "access").Configure()
	done := make(chan harness.Result, 1)
	mark := harness.Mark(t)
	go func() { done <- alice.SSH("n1", "touch "+mark+"; sleep 2; echo finished") }()
	harness.Eventually(t, "the command runs", func() bool { _, err := os.Stat(mark); return err == nil })
	if code := n.Stop(); code != 0 {
		t.Errorf("the node ended with %d, want 0", code)
	}
	if r := <-done; r.Code != 0 || r.Stdout != "finished\n" {
		t.Errorf("the session ended with %d %q %q, want it finished", r.Code, r.Stdout, r.Stderr)
	}
}
