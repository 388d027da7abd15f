package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/integration/harness"
)

// roles of the attackers, each for one right.
const attackRoles = `kind: role
name: reader
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["sftp:read"]}
---
kind: role
name: writer
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["sftp:write"]}
---
kind: role
name: runner
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: [exec]}
---
kind: role
name: sheller
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: [shell]}
---
kind: role
name: tunneller
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["forward:local"]}
---
kind: role
name: narrow
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["forward:local"], forward_to: ["127.0.0.1:PORT"]}
---
kind: role
name: lister
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["*"]}
deny:
  - forward_to: ["169.254.0.0/16:*", "localhost:*", "[::1]:*", "unix:/run/secret/*"]
`

// stage is a fleet with the attackers and the service that narrow may reach.
type stage struct {
	*fleet

	service string // host:port
	people  map[string]string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{fleet: newFleet(t, only()...), service: echo(t), people: map[string]string{}}
	_, port, _ := net.SplitHostPort(s.service)
	s.Admin("roles", "apply", "-f", s.File("attack-roles.yaml", strings.ReplaceAll(attackRoles, "PORT", port)))
	for _, role := range []string{"reader", "writer", "runner", "sheller", "tunneller", "narrow", "lister"} {
		s.person(t, role, role)
	}
	return s
}

// person adds somebody with a role and writes their ssh_config.
func (s *stage) person(t *testing.T, name, role string) {
	t.Helper()
	s.Admin("users", "add", name, "--roles", role, "--logins", login+",root")
	p := s.Sign(name, "1h")
	config := strings.NewReplacer(s.alice.Key, p.Key, "User alice\n", "User "+name+"\n", s.config, s.config+"-"+name).Replace(read(t, s.config))
	harness.WriteFile(t, s.config+"-"+name, config)
	s.people[name] = p.Key
}

// person returns the target as another person goes there.
func (x target) person(name string) target {
	f := *x.fleet
	f.config += "-" + name
	x.fleet = &f
	return x
}

// nodes runs a test for every node by the ways that differ at the server.
func (s *stage) nodes(t *testing.T, attack func(t *testing.T, x target)) {
	t.Helper()
	for _, x := range s.targets() {
		if x.kind != stock && x.way != "command" {
			t.Run(strings.ReplaceAll(x.kind, " ", "")+" "+x.way, func(t *testing.T) {
				t.Parallel()
				attack(t, x)
			})
		}
	}
}

// fails wants a client to have failed with nothing on stdout and words on
// stderr.
func fails(t *testing.T, r harness.Result, what string) {
	t.Helper()
	if r.Code == 0 || r.Stdout != "" || strings.TrimSpace(r.Stderr) == "" {
		t.Errorf("%s: exit %d, stdout %.300q, stderr %.300q; want a refusal that says why", what, r.Code, r.Stdout, r.Stderr)
	}
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for name, attack := range map[string]func(t *testing.T, x target){
		"mallory forwards to the node's own sshd":       ownSSHD,
		"mallory forces a terminal on a command":        forcedTerminal,
		"mallory hides a command behind scp":            hiddenBehindSCP,
		"mallory writes where she may only read":        writesAsReader,
		"mallory reads where she may only write":        readsAsWriter,
		"mallory leads a path out of her rights":        hostilePaths,
		"mallory cancels another's remote forward":      cancelsAnothers,
		"mallory swaps the agent's socket":              swapsAgentSocket,
		"mallory opens channels that nobody asked for":  unknownChannels,
		"mallory uses a node as a pivot":                pivots,
		"mallory sends variables that loaders read":     loaderVariables,
		"mallory's names draw on an auditor's terminal": hostileNames,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.nodes(t, attack)
		})
	}
	t.Run("mallory takes the proxy for a node", func(t *testing.T) { t.Parallel(); proxyIsNoNode(t, s) })
	t.Run("mallory takes the proxy for a pivot", func(t *testing.T) { t.Parallel(); proxyIsNoPivot(t, s) })
	t.Cleanup(func() { s.Verify() })
}

// The node's own sshd trusts other things than our roles: a forward to it would
// be a session that nobody sees.
func ownSSHD(t *testing.T, x target) {
	own := []string{"127.0.0.1:22", "localhost:22", "[::1]:22", "0.0.0.0:22", "127.1:22", "2130706433:22", "[::ffff:127.0.0.1]:22", "LOCALHOST:22", "localhost.:22"}
	if x.kind == "sshd" { // the proxy knows where it really is
		for _, n := range x.list(t) {
			if n.Name == x.node {
				own = append(own, n.Address)
			}
		}
	}
	for _, to := range own {
		r := x.person("tunneller").ssh(t, []string{"-W", to})
		fails(t, r, "-W "+to)
		if !strings.Contains(r.Stderr, "prohibited") && !strings.Contains(r.Stderr, "does not know the host") {
			t.Errorf("-W %s: %q, want a refusal and no attempt", to, r.Stderr)
		}
	}
}

// list returns the nodes as "nodes ls" shows them.
func (f *fleet) list(t *testing.T) []struct{ Name, Address string } {
	t.Helper()
	var nodes []struct{ Name, Address string }
	if err := json.Unmarshal([]byte(f.Admin("nodes", "ls", "--format", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	return nodes
}

// A terminal makes no shell of a command, and no command of a shell.
func forcedTerminal(t *testing.T, x target) {
	for _, options := range [][]string{{"-tt"}, {"-T"}} {
		r := x.person("sheller").ssh(t, options, "id")
		if r.Code == 0 || strings.Contains(r.Stdout, "uid=") {
			t.Errorf("%v: a command for somebody with shell only: exit %d %q", options, r.Code, r.Stdout)
		}
		r = x.person("runner").feed(t, strings.NewReader("id\n"), options)
		if r.Code == 0 || strings.Contains(r.Stdout, "uid=") {
			t.Errorf("%v: a shell for somebody with exec only: exit %d %q", options, r.Code, r.Stdout)
		}
	}
	if r := x.person("runner").ssh(t, []string{"-tt"}, "id -un"); r.Code != 0 || strings.TrimSpace(r.Stdout) != login {
		t.Errorf("a command with a terminal for somebody with exec: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
}

// Who may only move files has no shell, whatever stands behind "scp -t".
func hiddenBehindSCP(t *testing.T, x target) {
	mark := filepath.Join(x.scratch(t), "mark")
	for _, line := range []string{
		"scp -t x; touch MARK", "scp -t /tmp && touch MARK", "scp -t $(touch MARK)", "scp -t `touch MARK`", "scp -t x | touch MARK", "scp -t x\ntouch MARK",
		"scp -t x & touch MARK", "scp -S 'touch MARK' a b:c", "scp -o ProxyCommand='touch MARK' a b:c", "scp -t -- ; touch MARK", "FOO=1 touch MARK; scp -t x", "bash -c 'touch MARK' scp -t x",
		"scp -t x > MARK", "sh -c 'scp -t x; touch MARK'", "/bin/sh", "sftp-server; touch MARK", "/usr/lib/openssh/sftp-server; touch MARK", "scp  -t 'x'\\;touch MARK;touch MARK",
		"rsync --server -e 'touch MARK' . .", "touch MARK # scp -t x", "scp -D 'touch MARK' -t x", "scp -t ${IFS}x;touch${IFS}MARK",
	} {
		for _, name := range []string{"writer", "reader"} {
			// With stdin at its end a real "scp -t" says that it is ready and leaves.
			r := x.person(name).ssh(t, nil, strings.ReplaceAll(line, "MARK", mark))
			if _, err := os.Stat(mark); err == nil {
				t.Errorf("%s ran %q: exit %d %q", name, line, r.Code, r.Stderr)
				_ = os.Remove(mark)
			}
			if r.Code == 0 {
				t.Errorf("%s: %q: exit 0, %q", name, line, r.Stdout)
			}
		}
	}
	dir := x.scratch(t)
	want := blob(t, filepath.Join(dir, "a"), 100_000)
	as := func(name string) string { return x.person(name).config }
	must(t, x.run(t, nil, "scp", "-q", "-O", "-F", as("writer"), dir+"/a", x.alias()+":"+dir+"/b"))
	sameFile(t, dir+"/b", want)
	must(t, x.run(t, nil, "scp", "-q", "-O", "-F", as("reader"), x.alias()+":"+dir+"/b", dir+"/c"))
	sameFile(t, dir+"/c", want)
	fails(t, x.run(t, nil, "scp", "-q", "-O", "-F", as("reader"), dir+"/a", x.alias()+":"+dir+"/d"), "scp -O up as reader")
	fails(t, x.run(t, nil, "scp", "-q", "-O", "-F", as("writer"), x.alias()+":"+dir+"/b", dir+"/d"), "scp -O down as writer")
}

// mine makes a directory of the login's with a file in it.
func mine(t *testing.T, x target) (dir string) {
	t.Helper()
	dir = x.scratch(t)
	harness.WriteFile(t, dir+"/file", "before")
	for _, path := range []string{dir, dir + "/file"} {
		if err := os.Chown(path, 4801, 4801); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writesAsReader(t *testing.T, x target) {
	dir := mine(t, x)
	reader := x.person("reader")
	for _, line := range []string{
		"put /etc/hostname DIR/new", "rm DIR/file", "rename DIR/file DIR/other", "mkdir DIR/d", "rmdir DIR/sub", "chmod 777 DIR/file", "chown 4801 DIR/file", "chgrp 4801 DIR/file",
		"symlink DIR/file DIR/link", "ln DIR/file DIR/hard", "cp DIR/file DIR/copy", "reput /etc/passwd DIR/file", "rename -l DIR/file DIR/other",
	} {
		r := reader.sftp(t, strings.ReplaceAll(line, "DIR", dir)+"\n")
		if r.Code == 0 {
			t.Errorf("%q as reader: exit 0 %q %q", line, r.Stdout, r.Stderr)
		}
	}
	if r := reader.sftp(t, "ls "+dir+"\nget "+dir+"/file "+t.TempDir()+"/\n"); r.Code != 0 {
		t.Errorf("what a reader may: exit %d %q", r.Code, r.Stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || read(t, dir+"/file") != "before" {
		t.Errorf("a reader changed something: %v %v", left, err)
	}
}

func readsAsWriter(t *testing.T, x target) {
	dir, near := mine(t, x), t.TempDir()
	writer := x.person("writer")
	for _, line := range []string{"get DIR/file NEAR/got", "reget DIR/file NEAR/got", "cp DIR/file DIR/copy", "ls DIR"} {
		r := writer.sftp(t, strings.NewReplacer("DIR", dir, "NEAR", near).Replace(line)+"\n")
		if r.Code == 0 && line != "ls DIR" {
			t.Errorf("%q as writer: exit 0 %q", line, r.Stdout)
		}
	}
	if text, _ := os.ReadFile(near + "/got"); len(text) > 0 {
		t.Errorf("a writer got %q", text)
	}
	want := blob(t, near+"/up", 1000)
	if r := writer.sftp(t, "put "+near+"/up "+dir+"/up\n"); r.Code != 0 {
		t.Errorf("what a writer may: exit %d %q", r.Code, r.Stderr)
	}
	sameFile(t, dir+"/up", want)
}

// F33: the kernel's rights of the login decide, whatever the path looks like,
// and never those of the process that serves.
func hostilePaths(t *testing.T, x target) {
	dir, near := mine(t, x), t.TempDir()
	secret := filepath.Join(filepath.Dir(dir), "secret-"+filepath.Base(dir))
	harness.WriteFile(t, secret, "secret") // root's, 0600
	t.Cleanup(func() { _ = os.Remove(secret) })
	must(t, x.ssh(t, nil, fmt.Sprintf("cd %s && ln -s %s link && ln -s / all && mkdir up && ln -s .. up/out", dir, secret)))
	for _, path := range []string{
		secret, dir + "/../" + filepath.Base(secret), dir + "/link", dir + "/all" + secret, dir + "/up/out/../" + filepath.Base(secret), "/proc/self/root" + secret, "/proc/self/cwd/../.." + secret,
		"/etc/shadow", "/proc/1/environ", "/proc/1/root/etc/shadow", "/dev/mem", strings.Repeat("../", 60) + secret,
	} {
		got := near + "/got"
		r := x.sftp(t, fmt.Sprintf("get %q %q\n", path, got))
		if text, _ := os.ReadFile(got); r.Code == 0 || len(text) > 0 {
			t.Errorf("get %s: exit %d, %d bytes", path, r.Code, len(text))
		}
		_ = os.Remove(got)
		r = x.sftp(t, fmt.Sprintf("put /etc/hostname %q\n", path))
		if r.Code == 0 && !strings.Contains(path, "/up/out/") { // which a server may take for a name below up
			t.Errorf("put %s: exit 0", path)
		}
	}
	if read(t, secret) != "secret" {
		t.Errorf("the secret is now %q", read(t, secret))
	}
	for _, line := range []string{
		"ln " + secret + " " + dir + "/hard",                        // protected_hardlinks, or no right to read it
		"put /etc/hostname " + dir + "/" + strings.Repeat("n", 300), // longer than a name can be
		"put /etc/hostname " + dir + strings.Repeat("/n", 2500),     // longer than a path can be
		"chown 0 " + dir + "/file",
	} {
		if r := x.sftp(t, line+"\n"); r.Code == 0 {
			t.Errorf("%.80q: exit 0", line)
		}
	}
	if r := x.sftp(t, "chmod 4755 "+dir+"/file\n"); r.Code == 0 { // the login's own affair, as by chmod(1)
		if fi, err := os.Stat(dir + "/file"); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 4801 {
			t.Errorf("a set-user-ID file of somebody else: %v %v", fi, err)
		}
	}
	symlinkRace(t, x, dir, secret)
}

// symlinkRace fetches a path whose parent turns into a symlink and back.
func symlinkRace(t *testing.T, x target, dir, secret string) {
	t.Helper()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Remove(dir + "/flip")
			if i%2 == 0 {
				_ = os.Symlink(secret, dir+"/flip")
			} else {
				_ = os.WriteFile(dir+"/flip", []byte("plain"), 0o644)
			}
		}
	}()
	got := filepath.Join(t.TempDir(), "got")
	x.sftp(t, strings.Repeat(fmt.Sprintf("-get %s/flip %s\n", dir, got), 50))
	close(stop)
	<-done
	if text, _ := os.ReadFile(got); bytes.Contains(text, []byte("secret")) {
		t.Errorf("the race gave away %q", text)
	}
}

// rawClient is a client that says whatever a test wants, signed in as a person.
func rawClient(t *testing.T, x target, key, name string) *ssh.Client {
	t.Helper()
	signer := certified(t, key)
	config := func(user string) *ssh.ClientConfig {
		return &ssh.ClientConfig{
			User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: long,
			HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // the attacker's own risk
		}
	}
	first := name
	if x.way == "at" {
		first = login + "@" + x.node
	}
	c, err := ssh.Dial("tcp", x.Addr, config(first))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if x.way == "at" || x.node == "" {
		return c
	}
	conn, err := c.Dial("tcp", x.node+":22")
	if err != nil {
		t.Fatal(err)
	}
	inner, chans, reqs, err := ssh.NewClientConn(conn, x.node, config(login))
	if err != nil {
		t.Fatal(err)
	}
	n := ssh.NewClient(inner, chans, reqs)
	t.Cleanup(func() { n.Close() })
	return n
}

// certified returns the signer of a key with its certificate.
func certified(t *testing.T, key string) ssh.Signer {
	t.Helper()
	plain, err := ssh.ParsePrivateKey([]byte(read(t, key)))
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(read(t, key+"-cert.pub")))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(pub.(*ssh.Certificate), plain)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// A forward belongs to the connection that asked for it.
func cancelsAnothers(t *testing.T, x target) {
	at := "127.0.0.1:" + port(t)
	b := x.background(t, x.command([]string{"-N", "-o", "ExitOnForwardFailure=yes", "-R", at + ":" + echo(t)}))
	b.throughEcho(t, "tcp", at, 1000)
	number, _ := strconv.Atoi(at[strings.LastIndex(at, ":")+1:])
	c := rawClient(t, x, x.people()["lister"], "lister")
	payload := ssh.Marshal(struct {
		Addr string
		Port uint32
	}{"127.0.0.1", uint32(number)})
	if ok, _, err := c.SendRequest("cancel-tcpip-forward", true, payload); err != nil || ok {
		t.Errorf("cancel-tcpip-forward of another's = %v, %v", ok, err)
	}
	if ok, _, err := c.SendRequest("tcpip-forward", true, payload); err != nil || ok {
		t.Errorf("tcpip-forward of another's port = %v, %v", ok, err)
	}
	b.throughEcho(t, "tcp", at, 1000)
	sock := filepath.Join(x.scratch(t), "sock")
	near := filepath.Join(shortDir(t), "near")
	echoSocket(t, near)
	u := x.background(t, x.command([]string{"-N", "-o", "ExitOnForwardFailure=yes", "-R", sock + ":" + near}))
	u.exists(t, sock)
	if ok, _, err := c.SendRequest("cancel-streamlocal-forward@openssh.com", true, ssh.Marshal(struct{ Path string }{sock})); err != nil || ok {
		t.Errorf("cancel-streamlocal-forward of another's = %v, %v", ok, err)
	}
	u.throughEcho(t, "unix", sock, 1000)
}

// people returns the private key of everybody by the name of their ssh_config.
func (x target) people() map[string]string {
	out := map[string]string{}
	for _, name := range []string{"lister", "tunneller", "narrow", "runner"} {
		for line := range strings.Lines(readOr(x.config + "-" + name)) {
			if _, key, ok := strings.Cut(strings.TrimSpace(line), "IdentityFile "); ok {
				out[name] = key
			}
		}
	}
	return out
}

func readOr(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

// What a session leaves behind where its agent's socket was is not removed with
// another's rights.
func swapsAgentSocket(t *testing.T, x target) {
	sock, _ := agent(t)
	victim := x.scratch(t)
	if err := os.Chmod(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	r := x.ssh(t, []string{"-A", "-o", "IdentityAgent=" + sock}, `echo "$SSH_AUTH_SOCK"`)
	path := strings.TrimSpace(r.Stdout)
	if path == "" {
		t.Fatalf("no agent: exit %d %q", r.Code, r.Stderr)
	}
	// The name may be the same from session to session, or not: both are planted.
	for _, name := range []string{filepath.Base(path), "agent"} {
		harness.WriteFile(t, filepath.Join(victim, name), "root's")
	}
	cmd := x.command([]string{"-A", "-o", "IdentityAgent=" + sock}, `echo "$SSH_AUTH_SOCK"; d=$(dirname "$SSH_AUTH_SOCK"); rm -rf "$d"; ln -s `+victim+` "$d" && echo swapped`)
	r = harness.RunFor(t, long, cmd)
	lines := strings.Split(r.Stdout, "\n")
	harness.WriteFile(t, filepath.Join(victim, "after"), "root's")
	for _, name := range []string{filepath.Base(path), "agent", "after"} {
		if text := readOr(filepath.Join(victim, name)); text != "root's" {
			t.Errorf("after %q the victim's %s is %q", r.Stdout, name, text)
		}
	}
	if len(lines) > 1 && lines[1] == "swapped" {
		_ = os.Remove(filepath.Dir(lines[0]))
	}
}

// Only known channel types and requests are taken, and an unknown one ends
// nothing.
func unknownChannels(t *testing.T, x target) {
	c := rawClient(t, x, x.people()["lister"], "lister")
	for _, kind := range []string{"evil@example.com", "tun@openssh.com", "x11", "forwarded-tcpip", "forwarded-streamlocal@openssh.com", "auth-agent@openssh.com", "accessd-api", "accessd-authority", "accessd-data", "", strings.Repeat("s", 5000)} {
		if ch, _, err := c.OpenChannel(kind, nil); err == nil {
			ch.Close()
			t.Errorf("a channel %.40q was opened", kind)
		}
	}
	for _, name := range []string{"evil@example.com", "hostkeys-00@openssh.com", "tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", ""} {
		if ok, _, err := c.SendRequest(name, true, []byte{1, 2, 3}); err != nil || ok {
			t.Errorf("global request %q = %v, %v", name, ok, err)
		}
	}
	session, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	for _, name := range []string{"evil@example.com", "pty-req", "env", "x11-req", "subsystem", "signal", "window-change", "exec", "accessd"} {
		if ok, err := session.SendRequest(name, true, []byte{0, 0, 0, 9, 1}); err != nil || ok {
			t.Errorf("session request %q with a broken payload = %v, %v", name, ok, err)
		}
	}
	session.Close()
	for _, subsystem := range []string{"shell", "evil", "netconf", "../../bin/sh", "sftp; id"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		s.Stdin = strings.NewReader("id\n")
		var out bytes.Buffer
		s.Stdout = &out
		if err := s.RequestSubsystem(subsystem); err == nil { // and then words and an exit status, as for every refusal
			err = s.Wait()
			if err == nil || out.Len() > 0 {
				t.Errorf("subsystem %q: %v, %q", subsystem, err, out.String())
			}
		}
		s.Close()
	}
	last, err := c.NewSession()
	if err != nil {
		t.Fatalf("after all that: %v", err)
	}
	if out, err := last.Output("echo alive"); err != nil || string(out) != "alive\n" {
		t.Errorf("after all that: %q, %v", out, err)
	}
}

// Forwards go where the rules list and nowhere else, however it is written.
func pivots(t *testing.T, x target) {
	narrow, lister := x.person("narrow"), x.person("lister")
	elsewhere := echo(t)
	_, other, _ := net.SplitHostPort(elsewhere)
	sock := filepath.Join(x.scratch(t), "sock")
	echoSocket(t, sock)
	for _, to := range []string{
		elsewhere, "localhost:" + other, "[::1]:" + other, "127.1:" + other, "2130706433:" + other, "0x7f.1:" + other, "[::ffff:127.0.0.1]:" + other,
		"169.254.169.254:80", "metadata.google.internal:80", "10.0.0.1:22", "n1:22", "n2:22", "n3:22", "0.0.0.0:" + other, x.Addr, sock,
	} {
		b := forwardTo(t, narrow, to)
		if b {
			t.Errorf("narrow came through to %s", to)
		}
	}
	for _, to := range []string{elsewhere, "localhost:" + other, "127.1:" + other, "2130706433:" + other, "017700000001:" + other, "0x7f000001:" + other, "[::ffff:127.0.0.1]:" + other, "0.0.0.0:" + other, "169.254.169.254:80"} {
		if forwardTo(t, lister, to) {
			t.Errorf("lister came through to %s, which is denied", to)
		}
	}
}

// forwardTo opens a channel to a destination with a stock client and reports
// whether an echo came back.
func forwardTo(t *testing.T, x target, to string) bool {
	t.Helper()
	near := filepath.Join(shortDir(t), "near")
	b := x.background(t, x.command([]string{"-N", "-L", near + ":" + to}))
	b.exists(t, near)
	defer b.stop()
	var c net.Conn
	b.eventually(t, "ssh listens", func() (ok bool) {
		var err error
		c, err = net.Dial("unix", near)
		return err == nil
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = c.Write([]byte("hello"))
	got := make([]byte, 5)
	_, err := io.ReadFull(c, got)
	return err == nil
}

func loaderVariables(t *testing.T, x target) {
	c := rawClient(t, x, x.people()["lister"], "lister")
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PATH", "IFS", "SHELLOPTS", "PYTHONSTARTUP", "HOME", "USER", "SSH_AUTH_SOCK", "SSH_ORIGINAL_COMMAND", "LC_X\nLD_PRELOAD", "LC_X=1\x00LD_PRELOAD", "LANGX", "lang", "GLIBC_TUNABLES", "BASH_FUNC_id%%", "LC_"} {
		_ = s.Setenv(name, "/tmp/evil")
	}
	out, err := s.Output("env")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "/tmp/evil") && !strings.HasPrefix(line, "LC_") {
			t.Errorf("the command has %q", line)
		}
	}
	if strings.Contains(string(out), "LD_PRELOAD") {
		t.Errorf("the command has LD_PRELOAD:\n%s", out)
	}
}

// hostile is text that draws on a terminal, ends lines and forges records.
const hostile = "x\n{\"event\":\"user.login\"}\r\x1b[2J\x1b]52;c;ZXZpbA==\x07\x1b]8;;http://evil\x07\u009b31m\u202eAccepted publickey for root from 1.2.3.4\xff\xfe"

// F31: what a person names reaches the log and the tables of the command line
// as text.
func hostileNames(t *testing.T, x target) {
	c := rawClient(t, x, x.people()["lister"], "lister")
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Setenv("LC_EVIL", hostile)
	_ = s.RequestPty("xterm\x1b[2J\nevil", 24, 80, ssh.TerminalModes{})
	_ = s.Run("true '" + strings.ReplaceAll(hostile, "'", "") + "'")
	x.sftp(t, "-put /etc/hostname \"/tmp/\x1b]52;c;ZXZpbA==\x07\u202ename\"\n-rm \"/tmp/\x1b]52;c;ZXZpbA==\x07\u202ename\"\n")
	_ = forwardTo(t, x.person("lister"), "evil\x1b[2J:80")
	if c, err := ssh.Dial("tcp", x.Addr, &ssh.ClientConfig{User: hostile, ClientVersion: "SSH-2.0-evil\x1b[2J", Auth: []ssh.AuthMethod{ssh.PublicKeys(certified(t, x.people()["lister"]))}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil { //nolint:forbidigo // the attacker's own risk
		c.Close()
		t.Error("a hostile name signed in")
	}
	x.WaitEvent("of the command", func(e harness.Event) bool { return strings.Contains(e.Str("command"), "Accepted publickey") })
	for _, args := range [][]string{{"audit", "ls"}, {"audit", "ls", "--format", "json"}, {"sessions", "ls"}, {"nodes", "ls"}, {"users", "ls"}} {
		for line := range strings.Lines(x.Admin(args...)) {
			for _, r := range strings.TrimSuffix(line, "\n") {
				if unicode.Is(unicode.C, r) {
					t.Errorf("%v prints %U in %q", args, r, line)
					break
				}
			}
		}
	}
	for _, e := range x.Events() {
		if e.Str("event") == "user.login" && e.Str("addr.remote") == "" {
			t.Errorf("a forged record: %v", e)
		}
	}
	if strings.Contains(x.Main.Log(), "\x1b") {
		t.Error("the proxy's diagnostics hold an escape character")
	}
}

// The proxy runs no shell, no command and no files of its own, and lends
// nothing.
func proxyIsNoNode(t *testing.T, s *stage) {
	x := target{fleet: s.fleet, kind: "proxy", way: "jump"}
	proxy := func(args ...string) harness.Result {
		return x.run(t, nil, "ssh", append([]string{"-F", s.config}, args...)...)
	}
	for _, words := range [][]string{{"proxy", "cat /etc/passwd"}, {"proxy", "sh -c id"}, {"-tt", "proxy", "bash"}, {"proxy", "ls; id"}, {"proxy", "ls $(id)"}, {"proxy", "scp -t /tmp"}, {"-s", "proxy", "sftp"}, {"proxy", "start --data-dir /tmp/x"}, {"proxy", "quickstart"}} {
		r := proxy(words...)
		if r.Code == 0 || strings.Contains(r.Stdout, "root:") || strings.Contains(r.Stdout, "uid=") {
			t.Errorf("%q at the proxy: exit %d %q", words, r.Code, r.Stdout)
		}
	}
	file := filepath.Join(t.TempDir(), "batch")
	harness.WriteFile(t, file, "ls\n")
	if r := x.run(t, nil, "sftp", "-q", "-F", s.config, "-b", file, "proxy"); r.Code == 0 {
		t.Errorf("sftp at the proxy: exit 0 %q", r.Stdout)
	}
	for _, forward := range [][]string{{"-R", "0:127.0.0.1:9"}, {"-R", "/tmp/evil.sock:127.0.0.1:9"}} {
		r := proxy(append(append([]string{"-N", "-o", "ExitOnForwardFailure=yes"}, forward...), "proxy")...)
		fails(t, r, fmt.Sprint(forward))
	}
	c := rawClient(t, target{fleet: s.fleet, way: "jump"}, s.people["lister"], "lister")
	session, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	for name, payload := range map[string][]byte{
		"env": ssh.Marshal(struct{ K, V string }{"LD_PRELOAD", "/tmp/evil"}),
		"x11-req": ssh.Marshal(struct {
			Single        bool
			Proto, Cookie string
			Screen        uint32
		}{false, "MIT-MAGIC-COOKIE-1", strings.Repeat("ab", 16), 0}),
	} {
		if ok, err := session.SendRequest(name, true, payload); err != nil || ok {
			t.Errorf("%s at the proxy = %v, %v", name, ok, err)
		}
	}
}

// Through the proxy one gets to nodes and nowhere else.
func proxyIsNoPivot(t *testing.T, s *stage) {
	x := target{fleet: s.fleet}
	targets := []string{s.service, "localhost:22", "169.254.169.254:80", "[::1]:22", s.Addr, "10.0.0.1:22", "0.0.0.0:22", "example.com:22", "n1:23", "n1:0", "n2:80", "N1.evil:22", s.base.Addr}
	for _, n := range s.list(t) {
		if n.Address != "" {
			targets = append(targets, n.Address)
		}
	}
	for _, to := range targets {
		r := x.run(t, nil, "ssh", "-F", s.config, "-W", to, "proxy")
		fails(t, r, "-W "+to)
		if strings.Contains(r.Stderr, "Connection refused") || strings.Contains(r.Stderr, "timed out") {
			t.Errorf("-W %s: %q looks like a dialled connection", to, r.Stderr)
		}
	}
	sock := filepath.Join(shortDir(t), "sock")
	echoSocket(t, sock)
	if forwardTo(t, target{fleet: s.fleet, node: "proxy", way: ""}.named("proxy"), sock) {
		t.Error("a unix socket of the proxy's machine was reached")
	}
}

// named returns a target of the ssh_config's Host of that name.
func (x target) named(host string) target {
	x.kind, x.node = named, host
	return x
}

// named is the kind of a target that is a Host of the ssh_config and no node.
const named = "named"

// A node that answers for another's name is not believed.
func TestImpostorNode(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "sshd", "ssh -R")
	sshd := target{fleet: f, kind: "sshd", way: "jump", node: kinds["sshd"]}
	same(t, sshd.ssh(t, nil, "echo mine"), 0, "mine\n", "")

	t.Run("another host key at a plain sshd's address", func(t *testing.T) {
		addr := f.list(t)[0].Address
		for _, n := range f.list(t) {
			if n.Address != "" {
				addr = n.Address
			}
		}
		f.sshds[addr].NewHostKey(t)
		for _, way := range []string{"jump", "at"} {
			sshd.way = way
			fails(t, sshd.ssh(t, nil, "echo theirs"), "a changed host key, by "+way)
		}
		wantEvent(t, f.Cluster, map[string]string{"success": "false", "node_name": kinds["sshd"]}, "--event", "node.hostkey")
	})
	t.Run("another node's tunnel", func(t *testing.T) {
		key := filepath.Join(f.Home, "bare-"+kinds["ssh -R"])
		_, port, _ := net.SplitHostPort(f.Addr)
		r := harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile="+filepath.Join(f.Home, "bare-hosts"), "-o", "GlobalKnownHostsFile=none",
			"-o", "IdentitiesOnly=yes", "-i", key, "-p", port, "-o", "ExitOnForwardFailure=yes", "-N", "-R", "22:127.0.0.1:9", kinds["sshd"]+"@127.0.0.1")
		fails(t, r, "a tunnel in another node's name")
	})
	t.Run("a joined node is no person", func(t *testing.T) {
		key := filepath.Join(f.Home, "bare-"+kinds["ssh -R"])
		_, port, _ := net.SplitHostPort(f.Addr)
		for _, args := range [][]string{{"-W", kinds["sshd"] + ":22"}, {"-R", "23:127.0.0.1:9", "-o", "ExitOnForwardFailure=yes", "-N"}, {"-L", "127.0.0.1:0:127.0.0.1:9", "-W", "127.0.0.1:9"}} {
			args = append([]string{"-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + filepath.Join(f.Home, "bare-hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "IdentitiesOnly=yes", "-i", key, "-p", port}, args...)
			fails(t, harness.Run(t, nil, "ssh", append(args, kinds["ssh -R"]+"@127.0.0.1")...), fmt.Sprint(args))
		}
	})
}

// rss returns the resident bytes of a process.
func rss(t *testing.T, p *harness.Process) int {
	t.Helper()
	for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/status", p.Pid()))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// F16: whoever stops reading makes the sender wait; nothing is piled up in
// between.
func TestStoppedPeersHoldNoMemory(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	processes := map[string]*harness.Process{"proxy": f.Main}
	maps.Copy(processes, f.Nodes)
	// Windows are 2 MB a channel, on up to two connections; the rest is the
	// collector's.
	const most = 64 << 20
	flat := func(t *testing.T, during func()) {
		t.Helper()
		before := map[string]int{}
		for name, p := range processes {
			before[name] = rss(t, p)
		}
		during()
		for name, p := range processes {
			if grown := rss(t, p) - before[name]; grown > most {
				t.Errorf("%s grew by %d MB", name, grown>>20)
			}
		}
	}
	for _, x := range f.targets() {
		if x.kind == stock || x.way == "command" {
			continue
		}
		t.Run(strings.ReplaceAll(x.kind, " ", "")+" "+x.way, func(t *testing.T) {
			same(t, x.ssh(t, nil, "true"), 0, "", "") // what is allocated once
			t.Run("a client that does not read", func(t *testing.T) {
				flat(t, func() {
					dir := x.scratch(t)
					r, w, err := os.Pipe()
					if err != nil {
						t.Fatal(err)
					}
					defer r.Close()
					cmd := x.command(nil, fmt.Sprintf("head -c 500000000 /dev/zero | tee >(wc -c >%[1]s/sent) ; echo >%[1]s/end", dir))
					cmd.Stdout = w
					b := x.background(t, cmd)
					w.Close()
					stalled(t, func() int64 { return written(t, cmd.Process.Pid, "wchar") })
					_ = cmd.Process.Signal(syscall.SIGSTOP)
					if _, err := os.Stat(dir + "/end"); err == nil {
						t.Error("500 MB went to a client that read none")
					}
					b.stop()
				})
			})
			t.Run("a command that does not read", func(t *testing.T) {
				flat(t, func() {
					cmd := x.command(nil, "sleep 300")
					in, err := os.Open("/dev/zero")
					if err != nil {
						t.Fatal(err)
					}
					defer in.Close()
					cmd.Stdin = in
					b := x.background(t, cmd)
					stalled(t, func() int64 { return written(t, cmd.Process.Pid, "rchar") })
					b.stop()
				})
			})
			if node := f.Nodes[x.node]; node != nil {
				t.Run("a node that does not read", func(t *testing.T) {
					flat(t, func() {
						cmd := x.command(nil, "cat >/dev/null")
						in, err := os.Open("/dev/zero")
						if err != nil {
							t.Fatal(err)
						}
						defer in.Close()
						cmd.Stdin = in
						b := x.background(t, cmd)
						sent := func() int64 { return written(t, cmd.Process.Pid, "rchar") }
						b.eventually(t, "bytes flow", func() bool { return sent() > 1<<20 })
						node.Signal(syscall.SIGSTOP)
						defer node.Signal(syscall.SIGCONT)
						before := sent()
						stalled(t, func() int64 { return max(1, sent()-before) })
						b.stop()
					})
				})
			}
		})
	}
}

// written returns a counter of /proc/PID/io.
func written(t *testing.T, pid int, key string) int64 {
	t.Helper()
	for line := range strings.Lines(readOr(fmt.Sprintf("/proc/%d/io", pid))) {
		if v, ok := strings.CutPrefix(line, key+": "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

// stalled waits until a counter has moved and then stands still for a second.
func stalled(t *testing.T, count func() int64) {
	t.Helper()
	last, since := int64(-1), time.Now()
	harness.Eventually(t, "nothing moves any more", func() bool {
		if n := count(); n != last {
			last, since = n, time.Now()
			if n > 400_000_000 {
				t.Fatalf("%d bytes went to somebody who takes none", n)
			}
		}
		return last > 0 && time.Since(since) > time.Second
	})
}
