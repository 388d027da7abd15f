package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// atProxy runs the stock client to the proxy itself.
func (f *fleet) atProxy(t *testing.T, config string, words ...string) harness.Result {
	t.Helper()
	return target{fleet: f}.run(t, nil, "ssh", append([]string{"-F", config, "proxy"}, words...)...)
}

// A person with a terminal picks a node, works there, comes back to the menu and
// leaves it.
func TestMenu(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	f.Admin("users", "add", "moe", "--roles", "access", "--logins", "root,"+login) // two logins: the menu has to ask
	p := f.Sign("moe", "1h")
	config := f.File("moe-config", strings.NewReplacer(f.alice.Key, p.Key, "User alice\n", "User moe\n").Replace(read(t, f.config)))
	menu := func(t *testing.T, term string) *harness.Terminal {
		t.Helper()
		cmd := exec.Command("ssh", "-F", config, "-tt", "proxy")
		cmd.Env = append(os.Environ(), "TERM="+term)
		return harness.Sit(t, cmd)
	}
	for _, kind := range f.kinds {
		node := kinds[kind]
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := menu(t, "xterm-256color")
			k.Expect(node)
			k.Press(node)
			k.Press("\r")
			k.Expect(`root`)
			k.Press(login)
			k.Press("\r")
			k.Expect(`\$ `)
			k.Send("stty size; echo in$((1+1))")
			k.Expect(`24 80`)
			k.Expect(`in2`)
			k.Send("exit 3")
			k.Expect(`status 3`)
			k.Press("\x03")
			if r := k.Wait(); r.Code != 0 {
				t.Errorf("exit %d after leaving the menu", r.Code)
			}
			wantEvent(t, f.Cluster, map[string]string{"user": "moe", "login": login, "node_name": node, "kind": "shell"}, "--event", "session.start")
		})
	}
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		k := menu(t, "dumb")
		node := kinds[f.kinds[0]]
		k.Expect(`quit\): `)
		k.Send(node)
		k.Expect(`login on ` + node + ` .*: `)
		k.Send(login)
		k.Expect(`\$ `)
		k.Send("echo in$((1+1))")
		k.Expect(`in2`)
		k.Send("exit")
		k.Expect(`quit\): `)
		k.Send("q")
		r := k.Wait()
		if r.Code != 0 || strings.Contains(strings.ReplaceAll(r.Stderr, "\x1b[?2004", ""), "\x1b[?1049h") {
			t.Errorf("exit %d, or the plain menu moved the cursor:\n%q", r.Code, r.Stderr)
		}
	})
	t.Run("80 by 24 in tmux", func(t *testing.T) {
		t.Parallel()
		menuInTmux(t, f)
	})
}

// menuInTmux looks at the menu as a terminal draws it.
func menuInTmux(t *testing.T, f *fleet) {
	t.Helper()
	sock := filepath.Join(shortDir(t), "tmux")
	tmux := func(args ...string) harness.Result {
		return harness.Run(t, nil, "tmux", append([]string{"-f", "/dev/null", "-S", sock}, args...)...)
	}
	must(t, tmux("new-session", "-d", "-x", "80", "-y", "24", "ssh -F "+f.config+" -tt proxy; echo left=$?; sleep 300"))
	t.Cleanup(func() { tmux("kill-server") })
	screen := func() string { return must(t, tmux("capture-pane", "-p")) }
	node := kinds[f.kinds[0]]
	harness.Eventually(t, "the menu is drawn", func() bool { return strings.Contains(screen(), node) })
	if rows := strings.Split(strings.TrimRight(screen(), "\n"), "\n"); len(rows) > 24 {
		t.Errorf("the menu has %d rows", len(rows))
	}
	must(t, tmux("send-keys", "no-such-node"))
	harness.Eventually(t, "the filter shows nothing", func() bool { return !strings.Contains(screen(), node+" ") })
	must(t, tmux("send-keys", "C-u"))
	harness.Eventually(t, "all nodes are shown again", func() bool { return strings.Contains(screen(), node) })
	must(t, tmux("send-keys", "C-c"))
	harness.Eventually(t, "the menu ends", func() bool { return strings.Contains(screen(), "left=0") })
}

// Verbs at the proxy run as their person: data on stdout, words on stderr, the
// exit codes of the command line, and nothing that the roles do not give.
func TestVerbsAtProxy(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	f.Admin("users", "add", "root-of-all", "--roles", "admin", "--logins", login)
	admin := filepath.Join(f.Home, "admin-config")
	p := f.Sign("root-of-all", "1h")
	harness.WriteFile(t, admin, strings.NewReplacer(f.alice.Key, p.Key, "User alice\n", "User root-of-all\n").Replace(read(t, f.config)))

	t.Run("ls as JSON", func(t *testing.T) {
		r := f.atProxy(t, f.config, "ls", "--format", "json")
		var nodes []map[string]any
		if err := json.Unmarshal([]byte(r.Stdout), &nodes); err != nil || r.Code != 0 || len(nodes) != 1 || nodes[0]["name"] != "n1" {
			t.Errorf("ls: exit %d, %v, %q %q", r.Code, err, r.Stdout, r.Stderr)
		}
	})
	t.Run("what roles do not give", func(t *testing.T) {
		for _, words := range []string{"users ls", "audit ls", "roles get admin", "tokens add", "sessions kill 00000000-0000-4000-8000-000000000000", "ca export --type sshd"} {
			r := f.atProxy(t, f.config, words)
			if words == "ca export --type sshd" { // public keys are for everybody
				continue
			}
			if r.Code != 3 || r.Stdout != "" || !strings.Contains(r.Stderr, "accessd: error: ") {
				t.Errorf("%s as alice: exit %d, stdout %q, stderr %q; want 3 and why", words, r.Code, r.Stdout, r.Stderr)
			}
		}
		wantEvent(t, f.Cluster, map[string]string{"user": "alice", "success": "false"}, "--event", "access.decision", "--user", "alice")
	})
	t.Run("what an administrator does", func(t *testing.T) {
		if r := f.atProxy(t, admin, "users add carol --roles access --logins "+login); r.Code != 0 || len(strings.Fields(r.Stdout)) != 1 {
			t.Errorf("users add: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		var users []map[string]any
		r := f.atProxy(t, admin, "users ls --format json")
		if err := json.Unmarshal([]byte(r.Stdout), &users); err != nil || len(users) != 3 {
			t.Errorf("users ls: %v %q %q", err, r.Stdout, r.Stderr)
		}
		if r := f.atProxy(t, admin, "audit ls --format json --event user.create"); r.Code != 0 || !strings.Contains(r.Stdout, `"carol"`) || !strings.Contains(r.Stdout, "root-of-all") {
			t.Errorf("audit ls: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		role := "kind: role\nname: piped\nallow:\n  - {nodes: {a: b}, logins: [x], actions: [exec]}\n"
		cmd := exec.Command("ssh", "-F", admin, "proxy", "roles apply -f -")
		cmd.Stdin = strings.NewReader(role)
		if r := harness.RunFor(t, long, cmd); r.Code != 0 {
			t.Errorf("roles apply -f -: exit %d %q", r.Code, r.Stderr)
		}
		if r := f.atProxy(t, admin, "roles get piped"); r.Code != 0 || !strings.Contains(r.Stdout, "name: piped") {
			t.Errorf("roles get: exit %d %q", r.Code, r.Stdout)
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		for words, code := range map[string]int{"frobnicate": 2, "ls --no-such-flag": 2, "nodes rm no-such-node": 4, "roles apply -f /etc/passwd": 2} {
			if r := f.atProxy(t, admin, words); r.Code != code || r.Stdout != "" || !strings.Contains(r.Stderr, "accessd: error: ") {
				t.Errorf("%s: exit %d, want %d; %q %q", words, r.Code, code, r.Stdout, r.Stderr)
			}
		}
	})
	t.Run("nothing, without a terminal", func(t *testing.T) {
		r := target{fleet: f}.start(t, nil, nil, "ssh", "-F", f.config, "-T", "proxy")
		if !strings.Contains(r.Stdout+r.Stderr, "ssh -J") {
			t.Errorf("exit %d, no help: %q %q", r.Code, r.Stdout, r.Stderr)
		}
	})
	f.Verify()
}

// A live session is watched, joined and ended; its person is told of each.
func TestSessionsWatchJoinKill(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	f.Admin("users", "add", "boss", "--roles", "admin", "--logins", login)
	f.Admin("users", "add", "nosy", "--roles", "auditor", "--logins", login)
	ended := map[string]bool{} // sessions of a subtest that is over; they may be listed for a moment yet
	configs := map[string]string{}
	for _, name := range []string{"boss", "nosy"} {
		p := f.Sign(name, "1h")
		configs[name] = f.File(name+"-config", strings.NewReplacer(f.alice.Key, p.Key, "User alice\n", "User "+name+"\n").Replace(read(t, f.config)))
	}
	for _, x := range f.targets() {
		if x.kind == stock || x.way == "command" {
			continue
		}
		t.Run(strings.ReplaceAll(x.kind, " ", "")+" "+x.way, func(t *testing.T) {
			k := harness.Sit(t, x.command([]string{"-tt"}))
			k.Expect(`\$ `)
			k.Send("PS1='ready> '")
			k.Expect(`2004hready> `)
			sid := f.session(t, x.node, ended)
			ended[sid] = true
			observe := func(name, verb string) *harness.Terminal {
				return harness.Sit(t, exec.Command("ssh", "-F", configs[name], "-tt", "proxy", "sessions", verb, sid))
			}

			w := observe("nosy", "watch")
			k.Expect(`nosy watches this session`)
			k.Send("echo seen-$((40+2))")
			k.Expect(`seen-42`)
			w.Expect(`seen-42`)
			w.Press("echo typed-by-watcher\r")

			j := observe("boss", "join")
			k.Expect(`boss has joined this session`)
			j.Press("echo joined-$((40+3))\r")
			k.Expect(`joined-43`)
			j.Expect(`joined-43`)
			w.Expect(`joined-43`)
			if refused := observe("nosy", "join").Wait(); refused.Code == 0 {
				t.Errorf("somebody without the right joined: %q", refused.Stderr)
			}
			for event, user := range map[string]string{"session.join": "nosy", "session.leave": ""} {
				if user != "" {
					wantEvent(t, f.Cluster, map[string]string{"sid": sid, "user": user}, "--event", event)
				}
			}

			if r := f.atProxy(t, configs["nosy"], "sessions", "kill", sid); r.Code == 0 {
				t.Error("somebody without the right killed the session")
			}
			must(t, f.atProxy(t, configs["boss"], "sessions kill "+sid+" --reason 'fire drill'"))
			k.Expect(`fire drill`)
			r := k.Wait()
			if r.Code == 0 || strings.Contains(r.Stderr, "typed-by-watcher") {
				t.Errorf("exit %d, or the watcher typed:\n%s", r.Code, r.Stderr)
			}
			w.Wait()
			j.Wait()
			wantEvent(t, f.Cluster, map[string]string{"sid": sid, "user": "alice", "by": "boss", "node_name": x.node}, "--event", "session.kill")
			wantEvent(t, f.Cluster, map[string]string{"sid": sid, "user": "boss"}, "--event", "session.leave")
			end := wantEvent(t, f.Cluster, map[string]string{"sid": sid}, "--event", "session.end", "--session", sid)
			if !strings.Contains(end.Str("reason"), "fire drill") {
				t.Errorf("session.end = %v", end)
			}
		})
	}
	f.Verify()
}

// session waits until a session of alice on a node is listed that is none of
// those that ended, and returns its id.
func (f *fleet) session(t *testing.T, node string, ended map[string]bool) (sid string) {
	t.Helper()
	harness.Eventually(t, "the session is listed", func() bool {
		var sessions []map[string]any
		if err := json.Unmarshal([]byte(f.Admin("sessions", "ls", "--format", "json")), &sessions); err != nil {
			t.Fatal(err)
		}
		for _, s := range sessions {
			if id := fmt.Sprint(s["id"]); s["user"] == "alice" && s["node_name"] == node && !ended[id] {
				sid = id
			}
		}
		return sid != ""
	})
	return sid
}

// The spellings of login@node@proxy, with each credential that opens it.
func TestLoginAtNode(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	f.Admin("users", "add", "dora", "--roles", "access", "--logins", login) // no role that takes plain keys
	bare := f.Key("dora-plain")
	f.enrol(t, "dora", bare)
	invite := strings.TrimSpace(f.Admin("users", "add", "tess", "--roles", "access", "--logins", login))
	app, r := enrol(t, f.Cluster, "tess", invite, f.Key("tess-key"))
	if r.Code != 0 {
		t.Fatalf("login = %d %s", r.Code, r.Stderr)
	}
	host, port, _ := strings.Cut(f.Addr, ":")
	common := []string{"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.Home, "fleet-hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-p", port}
	with := func(key, user string, words ...string) harness.Result {
		return harness.Run(t, nil, "ssh", append(append(common, "-o", "BatchMode=yes", "-i", key, "-l", user, host), words...)...)
	}
	for _, kind := range f.kinds {
		node := kinds[kind]
		id := f.nodeID(node)
		t.Run(kind, func(t *testing.T) {
			for _, user := range []string{login + "@" + node, login + ":" + node, login + "+" + node, login + "@" + id} {
				same(t, with(f.alice.Key, user, "echo cert"), 0, "cert\n", "")
				same(t, with(f.plain, user, "echo plain"), 0, "plain\n", "")
				fails(t, with(bare, user, "echo in"), "a plain key without a role for it")
			}
			fails(t, with(f.alice.Key, "nobody@"+node, "echo in"), "a login that alice has not")
			k := harness.Type(t, "ssh", append(common, "-o", "PubkeyAuthentication=no", "-l", login+"@"+node, host, "echo password")...)
			k.Expect(`User: `)
			k.Send("tess")
			k.Expect(`Password`)
			k.Send(password)
			k.Expect(`Code: `)
			k.Send(app.code(t))
			if r := k.Wait(); r.Code != 0 || r.Stdout != "password\n" {
				t.Errorf("with a password: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
			}
			wantEvent(t, f.Cluster, map[string]string{"user": "tess", "login": login, "node_name": node}, "--event", "session.start")
		})
	}
	t.Run("unknown node", func(t *testing.T) {
		fails(t, with(f.alice.Key, login+"@n9", "echo in"), "a node that is not there")
	})
	t.Run("a key that is removed", func(t *testing.T) {
		fingerprint := strings.Fields(must(t, harness.Run(t, nil, "ssh-keygen", "-lf", f.plain)))[1]
		f.Admin("users", "keys", "rm", "alice", fingerprint)
		harness.Eventually(t, "the key opens nothing", func() bool {
			return with(f.plain, login+"@"+kinds[f.kinds[0]], "true").Code == 255
		})
		wantEvent(t, f.Cluster, map[string]string{"name": "alice"}, "--event", "user.key.delete")
	})
	f.Verify()
}

// nodeID returns a node's id.
func (f *fleet) nodeID(name string) string {
	for _, n := range f.NodeList() {
		if n.Name == name {
			return n.ID
		}
	}
	f.T.Fatalf("no node %s", name)
	return ""
}

// A node is named by its id, its gateway port, and a label query that fits one.
func TestNamesOfNodes(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	for _, n := range f.NodeList() {
		t.Run(n.Name, func(t *testing.T) {
			to := func(args ...string) harness.Result {
				return target{fleet: f}.run(t, nil, "ssh", append(append([]string{"-F", f.config, "-J", "proxy", "-l", login}, args...), "echo $USER")...)
			}
			same(t, to(n.ID), 0, login+"\n", "")
			if n.GatewayPort == 0 {
				t.Fatal("no gateway port")
			}
			same(t, to("-p", fmt.Sprint(n.GatewayPort), "localhost"), 0, login+"\n", "")
			if kind := n.Labels["kind"]; kind != "" {
				same(t, target{fleet: f}.run(t, nil, "ssh", "-F", f.config, "-l", login+"@kind="+kind, "proxy", "echo $USER"), 0, login+"\n", "")
			}
		})
	}
	f.Node("twin", "--labels", "kind=accessd")
	r := target{fleet: f}.run(t, nil, "ssh", "-F", f.config, "-l", login+"@kind=accessd", "proxy", "true")
	fails(t, r, "a query that fits two")
	if !strings.Contains(r.Stderr, "n1") || !strings.Contains(r.Stderr, "twin") {
		t.Errorf("the person reads %q, want both nodes' names", r.Stderr)
	}
}

// A role may let a node make the account that it lacks.
func TestAccountCreation(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	// Numbers that no other host of this run gives out: an account that goes takes
	// every process of its number along.
	f.host.Must("useradd", "--no-create-home", "--uid", "51000", "highest")
	f.Admin("roles", "apply", "-f", f.File("guest.yaml", `kind: role
name: guest
allow:
  - {nodes: {"*": "*"}, logins: [visitor], actions: [shell, exec]}
options:
  create_account: {groups: [games], sudoers: ["ALL=(ALL) NOPASSWD: /usr/bin/true"], shell: /bin/bash}
---
kind: role
name: settler
allow:
  - {nodes: {"*": "*"}, logins: [settler], actions: [shell, exec]}
options:
  create_account: {keep: true}
`))
	for name, role := range map[string]string{"gail": "guest", "seth": "settler"} {
		f.Admin("users", "add", name, "--roles", role, "--logins", "visitor,settler")
	}
	as := func(name string) target {
		p := f.Sign(name, "1h")
		g := *f
		g.config = f.File(name+"-config", strings.NewReplacer(f.alice.Key, p.Key, "User alice\n", "User "+name+"\n").Replace(read(t, f.config)))
		return target{fleet: &g, kind: "accessd", way: "jump", node: "n1"}
	}
	passwd := func() string { return read(t, f.host.Etc("passwd")) }

	gail := as("gail")
	gail.as = "visitor"
	k := harness.Sit(t, gail.command([]string{"-tt"}, `id -Gn; echo "$HOME $SHELL"; pwd; stat -c '%U %a' .; read line`))
	k.Expect(`games`)
	k.Expect(`/home/visitor /bin/bash\r\n/home/visitor\r\nvisitor 7\d\d\r\n`)
	fragments := f.host.Must("sh", "-c", "cat /etc/sudoers.d/* 2>/dev/null | grep visitor; true")
	if !strings.Contains(fragments, "NOPASSWD: /usr/bin/true") {
		t.Errorf("sudoers fragments: %q", fragments)
	}
	same(t, gail.ssh(t, nil, "echo second"), 0, "second\n", "")
	if !strings.Contains(passwd(), "\nvisitor:") {
		t.Error("the account went with the second session while the first lives")
	}
	k.Send("")
	k.Wait()
	harness.Eventually(t, "the account is gone", func() bool {
		return !strings.Contains(passwd(), "\nvisitor:") && !strings.Contains(f.host.Must("sh", "-c", "cat /etc/sudoers.d/* 2>/dev/null; true"), "visitor")
	})
	wantEvent(t, f.Cluster, map[string]string{"login": "visitor"}, "--event", "account.create")
	wantEvent(t, f.Cluster, map[string]string{"login": "visitor"}, "--event", "account.delete")

	seth := as("seth")
	seth.as = "settler"
	same(t, seth.ssh(t, nil, "echo kept; echo x >file"), 0, "kept\n", "")
	same(t, seth.ssh(t, nil, "cat file"), 0, "x\n", "")
	if !strings.Contains(passwd(), "\nsettler:") {
		t.Error("an account that is kept is gone")
	}
	seth.as = "visitor"
	fails(t, seth.ssh(t, nil, "true"), "an account that the role does not name")
	f.Verify()
}

// A tunnel of stock ssh that dies is replaced by the next at once, and a second
// identity cannot take the name.
func TestBareNodeReconnects(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "ssh -R")
	x := target{fleet: f, kind: "ssh -R", way: "at", node: kinds["ssh -R"]}
	same(t, x.ssh(t, nil, "echo one"), 0, "one\n", "")
	before := f.NodeList()[0]
	addr := ""
	for a := range f.sshds {
		addr = a
	}
	f.tunnel(t, x.node, addr) // the first still lives; the same identity takes over
	same(t, x.ssh(t, nil, "echo two"), 0, "two\n", "")
	after := f.NodeList()[0]
	if before.ID != after.ID || before.GatewayPort != after.GatewayPort || len(f.NodeList()) != 1 {
		t.Errorf("the node was %+v and is %+v", before, after)
	}
	began := time.Now()
	same(t, x.ssh(t, nil, "echo three"), 0, "three\n", "")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a session took %v after the tunnel was replaced", took)
	}
	wantEvent(t, f.Cluster, map[string]string{"node_name": x.node, "success": "true"}, "--event", "tunnel.up")
}
