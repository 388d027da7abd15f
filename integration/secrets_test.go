package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/integration/harness"
)

// Whatever a scenario keeps secret is searched for in the diagnostics and the
// data directories of all of its processes; see harness.Secret. Invites, tokens,
// TOTP secrets and keys are noted where they are made, passwords here.
func TestMain(m *testing.M) {
	harness.Secret("a password", password)
	os.Exit(m.Run())
}

// Passwords right and wrong, codes, invites, tokens and keys, used and misused
// while every process tells all it can: no event, no diagnostics, no recording's
// header and no file has one of them.
func TestSecretsAppearNowhere(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, "log: {level: debug}\nlimits: {no_penalties: true}\nauth: {argon2: {time: 1, memory_kib: 8192, threads: 1}}\n")
	c := harness.New(t, "--config", config)
	n := c.Node("n1", "--config", config)

	invite := strings.TrimSpace(c.Admin("users", "add", "alice", "--roles", "access", "--logins", c.Login))
	key := c.Key("alice-key")
	_, r := enrol(t, c, "alice", invite, key)
	must(t, r)
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	wrong := "not quite the horse, battery or staple"
	harness.Secret("a wrong password", wrong)
	for _, typed := range []string{wrong, invite} {
		k := signIn(t, c, "alice", c.Key(fmt.Sprintf("guess-%d", len(typed))), "-o", "NumberOfPasswordPrompts=1")
		k.Expect(`Password, invite or join token: `)
		k.Send(typed)
		k.Expect(`Code: `)
		k.Send("000000")
		refused(t, k.Wait(), "Permission denied")
	}

	// What is typed into the wrong field, with and without a key.
	misplaced := "Tr0ub4dor3-in-the-wrong-field"
	harness.Secret("a password typed as a user name", misplaced)
	k := signIn(t, c, misplaced, c.Key("misplaced"), "-o", "NumberOfPasswordPrompts=1")
	k.Expect(`Password, invite or join token: `)
	k.Send(wrong)
	k.Expect(`Code: `)
	k.Send("000000")
	refused(t, k.Wait(), "Permission denied")
	refused(t, harness.Run(t, nil, "ssh", "-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-p", c.Addr[strings.LastIndex(c.Addr, ":")+1:], misplaced+"@127.0.0.1", "nodes", "ls"), "Permission denied")
	if e := wantEvent(t, c, map[string]string{"success": "false", "error": "no such user"}, "--event", "user.login"); !strings.HasPrefix(e.Str("user"), "(unknown:") {
		t.Errorf("the user of %v is not veiled", e)
	}
	wantEvent(t, c, map[string]string{"success": "false", "refusal": "wrong_principal", "key_id": "alice"}, "--event", "auth.rejected")

	token := strings.TrimSpace(c.Admin("tokens", "add", "--role", "node", "--uses", "1", "--ttl", "1h", "--quiet"))
	id, secret, _ := strings.Cut(token, ".")
	twisted := id + "." + secret[1:] + secret[:1]
	harness.Secret("a wrong token", secret[1:]+secret[:1])
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	p, _ := harness.Launch(t, "start", "--data-dir", t.TempDir(), "--roles", "node", "--join", c.Addr, "--token", twisted, "--ca-pin", pin, "--node-name", "n2", "--config", config)
	if code := p.Wait(); code == 0 {
		t.Error("a node joined with a wrong token")
	}
	file := filepath.Join(t.TempDir(), "token")
	harness.WriteFile(t, file, token+"\n")
	withFile := filepath.Join(t.TempDir(), "node.yaml")
	harness.WriteFile(t, withFile, "log: {level: debug}\njoin: {token_file: "+file+"}\n")
	harness.Start(t, "start", "--data-dir", t.TempDir(), "--roles", "node", "--join", c.Addr, "--ca-pin", pin, "--node-name", "n3", "--config", withFile)
	c.WaitOnline("n3")

	sshConfig := c.File("alice-config", c.Admin("ssh-config", "--identity", key))
	for _, node := range []string{"n1", "n3"} {
		must(t, harness.Run(t, nil, "ssh", "-F", sshConfig, "-o", "BatchMode=yes", node, "echo", "in"))
	}
	c.Admin("users", "reset", "alice")
	wantEvent(t, c, map[string]string{"user": "alice", "server_hostname": "n3"}, "--event", "session.end")
	everything := c.Admin("audit", "ls", "--limit", "10000", "--format", "json") + c.Admin("users", "ls", "--format", "json") + c.Admin("tokens", "ls", "--format", "json")
	for _, leak := range harness.LeaksIn([]byte(everything + c.Main.Log() + n.Log())) {
		t.Errorf("an event, a list or the diagnostics show %s", leak)
	}
	if !strings.Contains(c.Main.Log(), "debug") {
		t.Error("the authority did not tell all it can")
	}
	// Its processes' diagnostics and files are searched when they have ended, too.
}

// The search above finds what is there.
func TestLeaksAreFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := "planted-" + filepath.Base(dir) + "-planted"
	harness.Secret("a planted secret", secret)
	harness.WriteFile(t, dir+"/clean", "nothing")
	if found := harness.Leaks(t, dir); len(found) != 0 {
		t.Fatalf("found %q in a clean directory", found)
	}
	harness.WriteFile(t, dir+"/wal", "record "+secret+strings.Repeat("\x00", 1<<20))
	frame, err := proto.Marshal(&accessdv1.Frame{What: &accessdv1.Frame_Start{Start: &accessdv1.FrameStart{Version: 1, Command: "mysql -p" + secret}}})
	if err != nil {
		t.Fatal(err)
	}
	compress := exec.Command("zstd", "-qc")
	compress.Stdin = bytes.NewReader(append(binary.AppendUvarint(nil, uint64(len(frame))), frame...))
	part, err := compress.Output()
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, dir+"/000001.part", string(part))
	found := harness.Leaks(t, dir)
	slices.Sort(found)
	if want := []string{"a planted secret in 000001.part", "a planted secret in wal"}; !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}
