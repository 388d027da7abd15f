package integration

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/client"
	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

// dialAPI connects p to the services behind the proxy at addr.
func dialAPI(t *testing.T, c *harness.Cluster, p *harness.Person, addr string) *client.Client {
	t.Helper()
	check, err := client.HostCA([]byte(c.Admin("ca", "export", "--type", "host")))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey([]byte(read(t, p.Key)))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _, _, err := ssh.ParseAuthorizedKey([]byte(read(t, p.Key+"-cert.pub")))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(line.(*ssh.Certificate), key)
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.Dial(t.Context(), client.Config{Address: addr, User: p.Name, Signer: signer, HostKey: check})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	return api
}

// can reports whether a call was let in, whatever else came of it.
func can[Q, A any](t *testing.T, call func(context.Context, *connect.Request[Q]) (*connect.Response[A], error)) bool {
	t.Helper()
	_, err := call(t.Context(), connect.NewRequest(new(Q)))
	switch {
	case fault.Is(err, fault.Denied):
		return false
	case fault.Is(err, fault.Unavailable):
		t.Errorf("a call: %v", err)
	}
	return true
}

// A program calls every service of people with the Go client, as far as its
// person's roles go, through a proxy that is the authority and through one that is
// not; and over the admin socket.
func TestAPI(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	proxy := harness.Start(t, "start", "--data-dir", t.TempDir(), "--roles", "proxy", "--listen", "127.0.0.1:0", "--node-name", "p1", "--join", c.Addr,
		"--token", strings.TrimSpace(c.Admin("tokens", "add", "--role", "proxy", "--ttl", "1h", "--quiet")), "--ca-pin", strings.TrimSpace(c.Admin("ca", "pin")))
	c.Node("n1")
	auditor := c.User("anna", "auditor")
	admin := c.User("alice", "access,admin").Configure()
	for _, addr := range []string{c.Addr, proxy.Field("listen")} {
		api := dialAPI(t, c, auditor, addr)
		for name, row := range map[string]struct{ got, want bool }{
			"nodes ls":      {can(t, api.Nodes().ListNodes), true},
			"sessions ls":   {can(t, api.Sessions().ListSessions), true},
			"recordings ls": {can(t, api.Recordings().ListRecordings), true},
			"audit ls":      {can(t, api.Audit().ListEvents), true},
			"requests ls":   {can(t, api.Requests().ListRequests), true},
			"ca export":     {can(t, accessdv1connect.NewCAServiceClient(api.HTTP(), rpc.BaseURL, rpc.ClientOptions()...).ExportCA), false},
			"users ls":      {can(t, api.Users().ListUsers), false},
			"roles ls":      {can(t, api.Roles().ListRoles), false},
			"tokens ls":     {can(t, api.Tokens().ListTokens), false},
			"locks add":     {can(t, api.Locks().AddLock), false},
		} {
			if row.got != row.want {
				t.Errorf("%s at %s: let in is %v, want %v", name, addr, row.got, row.want)
			}
		}
		ask := &accessdv1.ExplainRequest{User: "anna", Node: "n1", Login: c.Login, Action: "shell"}
		if res, err := api.Policy().Explain(t.Context(), connect.NewRequest(ask)); err != nil || res.Msg.GetAllow() || !strings.Contains(res.Msg.GetReason(), "no role of anna reaches") {
			t.Errorf("explain myself = %v, %v", res, err)
		}
		ask.User = "alice"
		if _, err := api.Policy().Explain(t.Context(), connect.NewRequest(ask)); !fault.Is(err, fault.Denied) {
			t.Errorf("explain another: %v, want denied", err)
		}
		if err := api.Close(); err != nil {
			t.Error(err)
		}
	}
	local := client.Local(c.Dir)
	defer local.Close()
	if res, err := local.Users().ListUsers(t.Context(), connect.NewRequest(&accessdv1.ListUsersRequest{})); err != nil || len(res.Msg.GetUsers()) != 2 {
		t.Errorf("users over the admin socket = %v, %v", res, err)
	}
	t.Run("watch", func(t *testing.T) { watchAPI(t, c, admin, proxy.Field("listen")) })
	t.Run("explain", func(t *testing.T) { explainRoles(t, c, admin) })
	t.Run("https", func(t *testing.T) { tokenAPI(t, c, auditor, proxy) })
}

// watchAPI follows users and sessions, until the watcher may not any more.
func watchAPI(t *testing.T, c *harness.Cluster, admin *harness.Person, addr string) {
	c.User("wanda", "auditor")
	c.Admin("roles", "apply", "-f", c.File("watcher.yaml", "kind: role\nname: watcher\nallow:\n- resources: {users: [read], sessions: [read]}\n"))
	c.User("walter", "watcher")
	walter := c.Sign("walter", "1h")
	api := dialAPI(t, c, walter, addr)
	for update, err := range api.Watch(t.Context(), "role") {
		if !fault.Is(err, fault.Denied) {
			t.Errorf("watch of roles = %v, %v; want denied", update, err)
		}
	}
	gate := harness.Mark(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stage, sid string
	var ended error
	var work sync.WaitGroup
	defer work.Wait()
	try := func(args ...string) {
		if r := c.Try(args...); r.Code != 0 {
			t.Errorf("%q: %d %s", args, r.Code, r.Stderr)
		}
	}
	for update, err := range api.Watch(ctx, "user", "session") {
		if ended = err; err != nil {
			break
		}
		for _, r := range update.GetPut() {
			switch key := r.GetKey(); {
			case stage == "" && key.GetKind() == "user" && key.GetName() == "wanda":
				stage = "told"
				work.Go(func() { try("users", "add", "newcomer", "--roles", "access") })
			case stage == "told" && key.GetName() == "newcomer":
				stage = "added"
				work.Go(func() { admin.SSH("n1", "while ! test -e "+gate+"; do sleep 0.1; done") })
			case stage == "added" && key.GetKind() == "session":
				stage, sid = "session", key.GetName()
				var l struct{ User string }
				if err := json.Unmarshal(r.GetJson(), &l); err != nil || l.User != "alice" {
					t.Errorf("the session is %s, %v", r.GetJson(), err)
				}
				harness.WriteFile(t, gate, "")
			}
		}
		if stage == "session" && slices.ContainsFunc(update.GetRemove(), func(k *accessdv1.ResourceKey) bool { return k.GetName() == sid }) {
			stage = "ended"
			less := c.File("less.yaml", "kind: role\nname: watcher\nallow:\n- resources: {sessions: [read]}\n")
			work.Go(func() {
				try("roles", "apply", "-f", less)
				try("users", "add", "unseen", "--roles", "access")
			})
		}
		if slices.ContainsFunc(update.GetPut(), func(r *accessdv1.Resource) bool { return r.GetKey().GetName() == "unseen" }) {
			t.Error("the watcher sees what it may not read any more")
		}
	}
	if stage != "ended" || !fault.Is(ended, fault.Denied) {
		t.Errorf("the watch came to %q and ended with %v; want ended, and denied", stage, ended)
	}
}

// explainRoles asks at a proxy with stock ssh why, and what a change would do.
func explainRoles(t *testing.T, c *harness.Cluster, admin *harness.Person) {
	const ops = "kind: role\nname: ops\nallow:\n- nodes: \"*\"\n  logins: [app]\n  actions: [shell, exec]\n"
	c.Admin("roles", "apply", "-f", c.File("ops.yaml", ops))
	c.Admin("users", "add", "oscar", "--roles", "ops")
	oscar := c.Sign("oscar", "1h")
	var d struct {
		Allow        bool
		Rule, Reason string
	}
	explain := func(args ...string) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.Admin(append([]string{"roles", "explain", "oscar", "--format", "json"}, args...)...)), &d); err != nil {
			t.Fatal(err)
		}
	}
	if explain("app@n1", "--action", "shell"); !d.Allow || d.Rule != "ops.allow[0]" {
		t.Errorf("explain = %+v, want allowed by ops.allow[0]", d)
	}
	if explain("root@n1"); d.Allow || d.Rule != "" || !strings.Contains(d.Reason, `allows login "root"`) {
		t.Errorf("explain = %+v, want refused for the login", d)
	}
	host, port, _ := net.SplitHostPort(c.Addr)
	r := oscar.SSH("-p", port, "oscar@"+host, "roles", "explain", "oscar", "root@n1")
	if !strings.HasPrefix(r.Stdout, "refused: ") || r.Code != 0 {
		t.Errorf("oscar reads %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := oscar.SSH("-p", port, "oscar@"+host, "roles", "explain", "alice", "root@n1"); r.Code != fault.Denied.ExitCode() {
		t.Errorf("oscar reads of alice: %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	file := strings.NewReader(strings.ReplaceAll(ops, "shell, exec", "exec") + "  commands: [uptime]\n")
	r = admin.SSHIn(file, "-p", port, "alice@"+host, "roles", "diff", "-f", "-", "--user", "oscar")
	if !strings.Contains(r.Stdout, "loses") || !strings.Contains(r.Stdout, "commands: uptime, was anything") || r.Code != 0 {
		t.Errorf("roles diff = %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}
