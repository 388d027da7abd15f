package integration

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// live is a session whose person reads the screen.
func live(t *testing.T, c *harness.Cluster, p *harness.Person, node string) (k *harness.Terminal, sid string) {
	t.Helper()
	if p.Config == "" {
		p.Configure()
	}
	mark := harness.Mark(t)
	k = harness.Type(t, "ssh", "-F", p.Config, "-o", "BatchMode=yes", node, "touch "+mark+"; sleep 300")
	harness.Eventually(t, "the command runs", func() bool { _, err := os.Stat(mark); return err == nil })
	harness.Eventually(t, "the session is listed", func() bool {
		rows := strings.Split(strings.TrimSpace(c.Admin("sessions", "ls")), "\n")
		last := strings.Fields(rows[len(rows)-1])
		sid = last[0]
		return len(rows) > 1 && last[1] == p.Name
	})
	return k, sid
}

// An administrator ends a session; its person reads who did it and why.
func TestKillSession(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	k, sid := live(t, c, c.User("alice", "access"), "n1")
	c.Admin("sessions", "kill", sid, "--reason", "maintenance")
	k.Expect(`maintenance`)
	if r := k.Wait(); r.Code == 0 {
		t.Errorf("the client exited 0 after its session was killed\n%s", r.Stderr)
	}
	wantEvent(t, c, map[string]string{"sid": sid}, "--event", "session.kill")
	e := wantEvent(t, c, map[string]string{"sid": sid}, "--event", "session.end", "--session", sid)
	if !strings.Contains(e.Str("reason"), "maintenance") {
		t.Errorf("session.end = %v, want the reason", e)
	}
	harness.Eventually(t, "the session is no longer listed", func() bool { return !strings.Contains(c.Admin("sessions", "ls"), sid) })
	if r := c.Try("sessions", "kill", sid); r.Code != 4 {
		t.Errorf("killing it again = %d %q, want 4: not found", r.Code, r.Stderr)
	}
}

// A change of policy ends what it no longer allows, within about a second, and
// says so.
func TestPolicyChangeEndsSessions(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	c.Admin("roles", "apply", "-f", c.File("temp.yaml", "kind: role\nname: temp\nallow:\n  - nodes: {\"*\": \"*\"}\n    logins: [\"{{user.logins}}\"]\n    actions: [shell, exec]\n"))
	k, sid := live(t, c, c.User("alice", "temp"), "n1")
	began := time.Now()
	c.Admin("roles", "rm", "temp")
	if r := k.Wait(); r.Code == 0 {
		t.Errorf("the client exited 0\n%s", r.Stderr)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the session lived %v after its role was gone", took)
	}
	wantEvent(t, c, map[string]string{"sid": sid}, "--event", "session.end", "--session", sid)
}

// Limits of a role: lifetime, idleness and number of sessions.
func TestRoleLimits(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	role := "kind: role\nname: %s\nallow:\n  - nodes: {\"*\": \"*\"}\n    logins: [\"{{user.logins}}\"]\n    actions: [exec]\noptions: {%s}\n"
	for name, option := range map[string]string{"brief": "session_ttl: 1s", "idle": "idle_timeout: 1s", "one": "max_sessions: 1"} {
		c.Admin("roles", "apply", "-f", c.File(name+".yaml", strings.NewReplacer("%s\nallow", name+"\nallow", "{%s}", "{"+option+"}").Replace(role)))
	}
	if r := c.User("brenda", "brief").SSH("n1", "sleep 60"); r.Code == 0 {
		t.Errorf("a session of 60 s under session_ttl: 1s exited 0\n%s", r.Stderr)
	}
	if r := c.User("ida", "idle").SSH("n1", "sleep 60"); r.Code == 0 {
		t.Errorf("an idle session of 60 s under idle_timeout: 1s exited 0\n%s", r.Stderr)
	}
	oscar := c.User("oscar", "one")
	k, _ := live(t, c, oscar, "n1")
	refused(t, oscar.SSH("n1", "true"), "at most 1")
	k.Interrupt()
	k.Wait()
}

// The HTTPS side of the listener.
func TestHealthOverHTTPS(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: harness.Patience}
	for path, want := range map[string]string{"/healthz": "", "/readyz": "", "/metrics": "go_goroutines"} {
		res, err := client.Get("https://" + c.Addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("GET %s = %d, %v", path, res.StatusCode, err)
		}
	}
}
