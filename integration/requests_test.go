package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// The roles of a team: developers may ask for dba, on one node or everywhere, and
// for vault, which takes two leads who sign.
const requestRoles = `
kind: role
name: developer
allow:
  - resources: {requests: [create]}
requests:
  - roles: [dba]
    max_ttl: 4h
    approvals: [{roles: [lead]}]
  - roles: [vault]
    max_ttl: 1h
    approvals: [{roles: [lead], count: 2}]
    require_signature: true
---
kind: role
name: dba
allow:
  - {nodes: "*", logins: ["{{user.logins}}"], actions: [exec, shell]}
---
kind: role
name: vault
allow:
  - {nodes: "*", logins: ["{{user.logins}}"], actions: [exec]}
---
kind: role
name: lead
review:
  - roles: [dba, vault]
`

// requestJSON is an access request as verbs print it.
type requestJSON struct {
	ID      string `json:"id"`
	User    string `json:"user"`
	State   string `json:"state"`
	Reviews []struct {
		Reviewer  string `json:"reviewer"`
		Proof     string `json:"proof"`
		PublicKey string `json:"public_key"`
	} `json:"reviews"`
}

// ask makes an access request and returns its id.
func ask(t *testing.T, p *harness.Person, words ...string) string {
	t.Helper()
	r := p.SSH(append([]string{"accessd-proxy", "requests", "create", "--format", "json", "--reason", "'restore of ticket 4711'"}, words...)...)
	var list []requestJSON
	if err := json.Unmarshal([]byte(r.Stdout), &list); err != nil || r.Code != 0 || len(list) != 1 || list[0].State != "pending" {
		t.Fatalf("requests create %q: exit %d, %v\n%s%s", words, r.Code, err, r.Stdout, r.Stderr)
	}
	return list[0].ID
}

// assume puts the certificate with what the request gives beside the person's
// key and returns a configuration that shows it alone.
func assume(t *testing.T, c *harness.Cluster, p *harness.Person, id string) string {
	t.Helper()
	r := p.SSH("accessd-proxy", "requests", "assume", id)
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
		t.Fatalf("requests assume: exit %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	key := filepath.Join(c.Home, "assumed-"+id)
	harness.WriteFile(t, key, read(t, p.Key))
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	return c.File("config-"+id, strings.ReplaceAll(read(t, p.Config), p.Key, key))
}

// A developer asks for a role, a lead approves, and the certificate of that
// opens a node until somebody says no; all with stock ssh.
func TestAccessRequests(t *testing.T) {
	t.Parallel()
	hook := newListener(t)
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, fmt.Sprintf("audit: {sinks: [{name: chat, type: webhook, url: %q, filter: {event: \"access_request.*\"}}]}\n", hook.URL))
	c := harness.New(t, "--config", config)
	c.Node("n1")
	c.Node("n2")
	c.Admin("roles", "apply", "-f", c.File("request-roles", requestRoles))
	alice, mallory := c.User("alice", "developer").Configure(), c.User("mallory", "developer")
	bob, carol := c.User("bob", "lead").Configure(), c.User("carol", "lead").Configure()
	on := func(config, node string) harness.Result {
		return harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "-l", c.Login, node, "echo", "in")
	}

	t.Run("from asking to the end", func(t *testing.T) {
		refused(t, on(alice.Config, "n1"), "")
		id := ask(t, alice, "--roles", "dba", "--ttl", "2h")
		for what, r := range map[string]harness.Result{
			"approving one's own":       alice.SSH("accessd-proxy", "requests", "approve", id),
			"assuming it already":       alice.SSH("accessd-proxy", "requests", "assume", id),
			"somebody else looking":     mallory.SSH("accessd-proxy", "requests", "show", id),
			"somebody else approving":   mallory.SSH("accessd-proxy", "requests", "approve", id),
			"more than there is to ask": alice.SSH("accessd-proxy", "requests", "create", "--roles", "admin", "--reason", "why-not"),
			"longer than the rules say": alice.SSH("accessd-proxy", "requests", "create", "--roles", "dba", "--reason", "why-not", "--ttl", "5h"),
			"at the admin socket":       c.Try("requests", "approve", id),
		} {
			if r.Code == 0 {
				t.Errorf("%s: exit 0\n%s", what, r.Stdout)
			}
		}
		if r := bob.SSH("accessd-proxy", "requests", "ls"); !strings.Contains(r.Stdout, id) || !strings.Contains(r.Stdout, "1 of lead") {
			t.Errorf("what bob may review: %q %q", r.Stdout, r.Stderr)
		}
		if r := bob.SSH("accessd-proxy", "requests", "approve", id); r.Code != 0 || !strings.Contains(r.Stdout, "approved") || !strings.Contains(r.Stderr, "not signed") {
			t.Fatalf("approve: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		wantEvent(t, c, map[string]string{"request": id, "user": "bob", "requester": "alice", "proof": "connection", "state": "approved"}, "--event", "access_request.review")

		elevated := assume(t, c, alice, id)
		e := wantEvent(t, c, map[string]string{"user": "alice", "method": "request"}, "--event", "cert.create")
		if fmt.Sprint(e["requests"]) != "["+id+"]" {
			t.Errorf("cert.create = %v, want the request", e)
		}
		if r := on(elevated, "n1"); r.Code != 0 || r.Stdout != "in\n" {
			t.Errorf("ssh n1 with the request: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		refused(t, on(alice.Config, "n1"), "") // the old certificate is what it was

		mark := harness.Mark(t)
		k := harness.Type(t, "ssh", "-F", elevated, "-o", "BatchMode=yes", "-l", c.Login, "n1", "touch "+mark+"; sleep 300")
		harness.Eventually(t, "the command runs", func() bool { _, err := os.Stat(mark); return err == nil })
		if r := carol.SSH("accessd-proxy", "requests", "deny", id, "--reason", "enough"); r.Code != 0 || !strings.Contains(r.Stdout, "denied") {
			t.Errorf("deny after the approval: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		if r := k.Wait(); r.Code == 0 {
			t.Errorf("the session went on after the request was denied")
		}
		refused(t, on(elevated, "n1"), "")
	})

	t.Run("signed", func(t *testing.T) { signedApprovals(t, c, alice, bob, carol) })

	t.Run("one node", func(t *testing.T) {
		watching := harness.Sit(t, exec.Command("ssh", "-F", carol.Config, "-o", "BatchMode=yes", "accessd-proxy", "requests", "watch", "--format", "json"))
		waiting := harness.Sit(t, exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "accessd-proxy", "requests", "create", "--roles", "dba", "--node", "n2", "--reason", "restore", "--wait"))
		id := waiting.Expect(`([0-9a-f-]{36})`)[1]
		watching.Expect(id + `".*"state":"pending"`)
		if r := carol.SSH("accessd-proxy", "requests", "approve", id); r.Code != 0 {
			t.Fatalf("approve: exit %d %q", r.Code, r.Stderr)
		}
		watching.Expect(id + `".*"state":"approved"`)
		watching.Interrupt()
		waiting.Expect(`approved until`)
		if r := waiting.Wait(); r.Code != 0 {
			t.Errorf("who waited: exit %d %q", r.Code, r.Stderr)
		}
		elevated := assume(t, c, alice, id)
		if r := on(elevated, "n2"); r.Code != 0 {
			t.Errorf("ssh n2: exit %d %q", r.Code, r.Stderr)
		}
		refused(t, on(elevated, "n1"), "")
		if r := alice.SSH("accessd-proxy", "requests", "drop", id); r.Code != 0 {
			t.Errorf("drop: exit %d %q", r.Code, r.Stderr)
		}
		harness.Eventually(t, "what was dropped gives nothing", func() bool { return on(elevated, "n2").Code != 0 })
	})

	t.Run("through a proxy elsewhere", func(t *testing.T) {
		away := harness.Start(t, "start", "--data-dir", t.TempDir(), "--roles", "proxy", "--listen", "127.0.0.1:0", "--node-name", "p1", "--join", c.Addr,
			"--token", strings.TrimSpace(c.Admin("tokens", "add", "--role", "proxy", "--quiet")), "--ca-pin", strings.TrimSpace(c.Admin("ca", "pin")))
		there := func(p *harness.Person) *harness.Person {
			q := *p
			q.Config = c.File(p.Name+"-away", c.Admin("ssh-config", "--identity", p.Key, "--proxy", away.Field("listen")))
			return &q
		}
		alice, bob := there(alice), there(bob)
		id := ask(t, alice, "--roles", "dba")
		text := must(t, bob.SSH("accessd-proxy", "requests", "approve", id, "--text"))
		signature := must(t, harness.Run(t, strings.NewReader(text), "ssh-keygen", "-Y", "sign", "-q", "-n", "accessd-request@"+cluster(t, text), "-f", bob.Key))
		must(t, bob.SSHIn(strings.NewReader(signature), "accessd-proxy", "requests", "approve", id, "--signature", "-"))
		wantEvent(t, c, map[string]string{"request": id, "user": "bob", "proof": "signature"}, "--event", "access_request.review")
		if r := on(assume(t, c, alice, id), "n1"); r.Code != 0 {
			t.Errorf("ssh n1: exit %d %q", r.Code, r.Stderr)
		}
	})

	t.Run("told by a webhook", func(t *testing.T) {
		if t.Failed() {
			return
		}
		harness.Eventually(t, "the webhook has all that happened", func() bool {
			text := hook.text()
			return strings.Contains(text, `"access_request.create"`) && strings.Contains(text, `"access_request.review"`) && strings.Contains(text, `"dropped"`)
		})
	})
	c.Verify()
}

// signedApprovals has two leads sign an approval that takes both: one with
// ssh-keygen, one with a forwarded agent. What the log has of it is enough to
// check it with ssh-keygen alone.
func signedApprovals(t *testing.T, c *harness.Cluster, alice, bob, carol *harness.Person) {
	t.Helper()
	id := ask(t, alice, "--roles", "vault")
	r := bob.SSH("accessd-proxy", "requests", "approve", id)
	if r.Code == 0 || !strings.Contains(r.Stderr, "must be signed") || !strings.Contains(r.Stderr, "request: "+id) {
		t.Errorf("without a signature: exit %d %q, want the text to sign", r.Code, r.Stderr)
	}
	text := must(t, bob.SSH("accessd-proxy", "requests", "approve", id, "--text"))
	namespace := "accessd-request@" + cluster(t, text)
	sign := func(text, namespace, key string) string {
		return must(t, harness.Run(t, strings.NewReader(text), "ssh-keygen", "-Y", "sign", "-q", "-n", namespace, "-f", key))
	}
	for what, signature := range map[string]string{
		"another text":      sign(strings.Replace(text, "alice", "malice", 1), namespace, bob.Key),
		"another namespace": sign(text, "file", bob.Key),
		"another's key":     sign(text, namespace, carol.Key),
		"no signature":      "yes",
	} {
		if r := bob.SSHIn(strings.NewReader(signature), "accessd-proxy", "requests", "approve", id, "--signature", "-"); r.Code == 0 {
			t.Errorf("%s: exit 0\n%s", what, r.Stdout)
		}
	}
	good := sign(text, namespace, bob.Key)
	if r := bob.SSHIn(strings.NewReader(good), "accessd-proxy", "requests", "approve", id, "--signature", "-"); r.Code != 0 || !strings.Contains(r.Stderr, "signed by key") || !strings.Contains(r.Stdout, "pending") {
		t.Fatalf("signed by ssh-keygen: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := bob.SSHIn(strings.NewReader(good), "accessd-proxy", "requests", "approve", id, "--signature", "-"); r.Code == 0 {
		t.Errorf("twice by one: exit 0\n%s", r.Stdout)
	}

	sock := filepath.Join(shortDir(t), "agent")
	harness.Type(t, "ssh-agent", "-D", "-a", sock)
	harness.Eventually(t, "the agent listens", func() bool { _, err := os.Stat(sock); return err == nil })
	must(t, harness.Run(t, nil, "env", "SSH_AUTH_SOCK="+sock, "ssh-add", "-q", carol.Key))
	r = harness.Run(t, nil, "env", "SSH_AUTH_SOCK="+sock, "ssh", "-A", "-F", carol.Config, "-o", "BatchMode=yes", "accessd-proxy", "requests", "approve", id, "--reason", "'as discussed'")
	if r.Code != 0 || !strings.Contains(r.Stderr, "signed by key") || !strings.Contains(r.Stdout, "approved") {
		t.Fatalf("signed by an agent: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}

	held := func() int {
		return strings.Count(must(t, harness.Run(t, nil, "env", "SSH_AUTH_SOCK="+sock, "ssh-add", "-L")), "\n")
	}
	with := func(words ...string) string {
		return must(t, harness.Run(t, nil, "env", append([]string{"SSH_AUTH_SOCK=" + sock, "ssh", "-A", "-F", alice.Config, "-o", "BatchMode=yes", "accessd-proxy", "requests", "assume", id}, words...)...))
	}
	before := held()
	printed := c.File("printed-cert.pub", with("--print"))
	if shown := must(t, harness.Run(t, nil, "ssh-keygen", "-L", "-f", printed)); held() != before || !strings.Contains(shown, strings.Fields(must(t, harness.Run(t, nil, "ssh-keygen", "-l", "-f", alice.Key)))[1]) {
		t.Errorf("with an agent, --print leaves %d keys there, want %d, and prints a certificate of\n%s", held(), before, shown)
	}
	if out := with(); out != "" || held() <= before {
		t.Errorf("with an agent: %q, %d keys there, want nothing and more than %d", out, held(), before)
	}

	for _, reviewer := range []string{"bob", "carol"} {
		e := wantEvent(t, c, map[string]string{"request": id, "user": reviewer, "proof": "signature", "success": "true"}, "--event", "access_request.review")
		signers := c.File("signers-"+reviewer, reviewer+" "+e.Str("public_key")+"\n")
		signature := c.File("signature-"+reviewer, e.Str("signature"))
		check := harness.Run(t, strings.NewReader(e.Str("statement")), "ssh-keygen", "-Y", "verify", "-f", signers, "-I", reviewer, "-n", namespace, "-s", signature)
		if check.Code != 0 {
			t.Errorf("%s's signature, from the log: exit %d %q %q", reviewer, check.Code, check.Stdout, check.Stderr)
		}
	}
}

// cluster returns the cluster's name from a statement.
func cluster(t *testing.T, statement string) string {
	t.Helper()
	for line := range strings.Lines(statement) {
		if name, ok := strings.CutPrefix(line, "cluster: "); ok {
			return strings.TrimSpace(name)
		}
	}
	t.Fatalf("no cluster in %q", statement)
	return ""
}

// listener is a webhook that keeps what it is sent.
type listener struct {
	*httptest.Server

	mu   sync.Mutex
	body bytes.Buffer
}

func newListener(t *testing.T) *listener {
	t.Helper()
	h := &listener{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		_, _ = io.Copy(&h.body, r.Body)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *listener) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.body.String()
}
