package integration

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// lockTime is how long what a lock is about may live after the lock was made, in
// the words; the rest is for the machine, which runs other scenarios, too.
const (
	lockTime = time.Second
	lockRest = 4 * time.Second
)

// locked makes a lock and returns its id.
func (f *fleet) locked(t *testing.T, flags ...string) string {
	t.Helper()
	return strings.TrimSpace(f.Admin(append([]string{"locks", "add"}, flags...)...))
}

// occupied starts a session on x that would last.
func (x target) occupied(t *testing.T) *harness.Terminal {
	t.Helper()
	mark := harness.Mark(t)
	k := harness.Sit(t, x.command([]string{"-tt"}, "touch "+mark+"; sleep 300"))
	harness.Eventually(t, "the command runs", func() bool { _, err := os.Stat(mark); return err == nil })
	return k
}

// endsWith waits until the person at k has read words and their client has ended.
func endsWith(t *testing.T, what string, k *harness.Terminal, words string) {
	t.Helper()
	r := k.Wait()
	if r.Code == 0 || !strings.Contains(r.Stderr, words) {
		t.Errorf("%s: exit %d, want a failure and %q on the screen:\n%s", what, r.Code, words, r.Stderr)
	}
}

// Somebody whose laptop was stolen is locked: all they have ends at once, wherever
// it runs, and no door lets them in, until the lock is gone.
func TestLocks(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	const why = "the laptop was stolen"
	at := func(kind, way string) target { return target{fleet: f, kind: kind, way: way, node: kinds[kind]} }

	t.Run("a person", func(t *testing.T) {
		live := map[string]*harness.Terminal{
			"jump":         at("accessd", "jump").occupied(t),
			"at":           at("accessd", "at").occupied(t),
			"sshd, jump":   at("sshd", "jump").occupied(t),
			"ssh -R, at":   at("ssh -R", "at").occupied(t),
			"menu":         harness.Sit(t, exec.Command("ssh", "-F", f.config, "-tt", "proxy")),
			"only forward": harness.Type(t, "ssh", "-F", f.config, "-N", "-o", "ExitOnForwardFailure=yes", "-L", filepath.Join(shortDir(t), "s")+":localhost:1", "n1-jump"),
		}
		live["menu"].Expect(`n1`)
		began := time.Now()
		lock := f.locked(t, "--user", "alice", "--message", why)
		for what, k := range live {
			if what == "only forward" { // it has no session in which to say why
				k.Wait()
				continue
			}
			endsWith(t, what, k, why)
		}
		t.Logf("all ended %v after the lock", time.Since(began))
		if took := time.Since(began); took > lockTime+lockRest {
			t.Errorf("they lived %v after the lock", took)
		}
		ends := f.Events("--event", "session.end", "--user", "alice")
		if len(ends) != 4 {
			t.Errorf("%d sessions have ended, want 4", len(ends))
		}
		for _, e := range ends {
			if e.Str("lock") != lock || !strings.Contains(e.Str("reason"), why) {
				t.Errorf("session.end = %v, want lock %s and the reason", e, lock)
			}
		}
		f.lockedOut(t, lock, why)
		f.Admin("locks", "rm", lock)
		harness.Eventually(t, "they are let in again", func() bool { return at("accessd", "jump").ssh(t, nil, "true").Code == 0 })
		wantEvent(t, f.Cluster, map[string]string{"lock": lock, "success": "true", "target": "user alice"}, "--event", "lock.deleted")
	})

	t.Run("a node", func(t *testing.T) {
		for _, kind := range []string{"accessd", "ssh -R"} {
			node := kinds[kind]
			k := at(kind, "jump").occupied(t)
			lock := f.locked(t, "--node", node, "--message", "under investigation")
			endsWith(t, kind, k, "under investigation")
			harness.Eventually(t, "its tunnel is down", func() bool { return !f.online(node) })
			wantEvent(t, f.Cluster, map[string]string{"node_name": node}, "--event", "tunnel.down")
			refused(t, at(kind, "jump").ssh(t, nil, "true"), "under investigation")
			if kind == "ssh -R" { // nobody dials for it again
				refused(t, f.asNode(t, node, "krl"), "under investigation")
			}
			wantEvent(t, f.Cluster, map[string]string{"lock": lock, "refusal": "locked"}, "--event", "auth.rejected")
			f.Admin("locks", "rm", lock)
			if kind == "ssh -R" {
				must(t, f.asNode(t, node, "krl"))
				continue
			}
			f.WaitOnline(node)
			must(t, at(kind, "jump").ssh(t, nil, "true"))
		}
	})

	t.Run("a revocation list", func(t *testing.T) {
		revokedAtSshd(t, f)
	})

	t.Run("for a while", func(t *testing.T) {
		f.locked(t, "--login", login, "--node", "n1", "--ttl", "2s")
		refused(t, at("accessd", "jump").ssh(t, nil, "true"), "locked (until ")
		must(t, at("sshd", "jump").ssh(t, nil, "true")) // it is about one node
		harness.Eventually(t, "it expires", func() bool { return at("accessd", "jump").ssh(t, nil, "true").Code == 0 })
	})
}

// revokedAtSshd has an sshd that trusts people's certificates itself read what is
// locked, which a node that has only an ssh client has fetched.
func revokedAtSshd(t *testing.T, f *fleet) {
	t.Helper()
	sshd := f.host.Sshd(t)
	ca, krl := filepath.Join(sshd.Dir, "user.pub"), filepath.Join(sshd.Dir, "krl")
	harness.WriteFile(t, ca, f.Admin("ca", "export", "--type", "user"))
	harness.WriteFile(t, krl, f.Admin("locks", "krl"))
	sshd.Configure(t, "TrustedUserCAKeys "+ca, "RevokedKeys "+krl)
	host, port, _ := net.SplitHostPort(sshd.Addr)
	direct := func() harness.Result {
		return harness.Run(t, nil, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", f.alice.Key,
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-p", port, login+"@"+host, "true")
	}
	must(t, direct())
	lock := f.locked(t, "--user", "alice")
	harness.WriteFile(t, krl, must(t, f.asNode(t, "n3", "krl")))
	refused(t, direct(), "Permission denied")
	if log := sshd.Log(); !strings.Contains(log, "revoked by file") {
		t.Errorf("sshd's log does not say that the certificate was revoked:\n%s", log)
	}
	f.Admin("locks", "rm", lock)
	harness.WriteFile(t, krl, must(t, f.asNode(t, "n3", "krl")))
	must(t, direct())
}

// lockedOut knocks at every door as alice, whom the lock keeps out.
func (f *fleet) lockedOut(t *testing.T, lock, why string) {
	t.Helper()
	for what, r := range map[string]harness.Result{
		"jump":         f.jump("accessd").ssh(t, nil, "true"),
		"at":           target{fleet: f, kind: "sshd", way: "at", node: "n2"}.ssh(t, nil, "true"),
		"verb":         f.atProxy(t, f.config, "ls"),
		"login":        f.atProxy(t, f.config, "login"),
		"enrolled key": target{fleet: f, kind: "accessd", way: "at", node: "n1"}.ssh(t, []string{"-o", "IdentityFile=none", "-i", f.plain, "-o", "CertificateFile=none"}, "true"),
	} {
		if r.Code == 0 || !strings.Contains(r.Stderr, why) {
			t.Errorf("%s: exit %d %q, want a refusal and %q", what, r.Code, r.Stderr, why)
		}
	}
	if r := f.Try("users", "sign", "alice", "--public-key", f.alice.Key+".pub", "--ttl", "1h", "--out", filepath.Join(f.Home, "x-cert.pub")); r.Code != 3 || !strings.Contains(r.Stderr, why) {
		t.Errorf("users sign = %d %q, want 3 and why", r.Code, r.Stderr)
	}
	wantEvent(t, f.Cluster, map[string]string{"lock": lock, "refusal": "locked", "success": "false"}, "--event", "auth.rejected")
	wantEvent(t, f.Cluster, map[string]string{"lock": lock, "success": "false", "user": "alice"}, "--event", "cert.create")
}

// asNode runs a command at the proxy as a node that has only an ssh client.
func (f *fleet) asNode(t *testing.T, node string, words ...string) harness.Result {
	t.Helper()
	_, port, _ := net.SplitHostPort(f.Addr)
	return harness.Run(t, nil, "ssh", append([]string{
		"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.Home, "bare-hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "IdentitiesOnly=yes",
		"-o", "IdentityAgent=none", "-i", filepath.Join(f.Home, "bare-"+node), "-p", port, "-o", "BatchMode=yes", node + "@127.0.0.1",
	}, words...)...)
}

// online reports whether a node's tunnel is up.
func (f *fleet) online(node string) bool {
	for _, n := range f.NodeList() {
		if n.Name == node {
			return n.Online
		}
	}
	return false
}
