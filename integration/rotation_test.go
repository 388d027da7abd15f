package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// authorityView is an authority as "ca status --format json" shows it.
type authorityView struct {
	Type  string `json:"type"`
	Phase string `json:"phase"`
	Gate  string `json:"gate"`
	Keys  []struct {
		Fingerprint string `json:"fingerprint"`
		Signs       bool   `json:"signs"`
	} `json:"keys"`
	Behind []struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
		Why  string `json:"why"`
	} `json:"behind"`
	Total int `json:"behind_total"`
}

// names returns who is behind, as "node web-1".
func (a authorityView) names() []string {
	var out []string
	for _, b := range a.Behind {
		out = append(out, b.Kind+" "+b.Name)
	}
	return out
}

// rotation is a fleet whose authorities are rotated.
type rotation struct{ *fleet }

// status returns how far an authority is.
func (r rotation) status(t *testing.T, kind string) authorityView {
	t.Helper()
	var all []authorityView
	if err := json.Unmarshal([]byte(r.Admin("ca", "status", "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(a authorityView) bool { return a.Type == kind })
	if i < 0 {
		t.Fatalf("ca status tells nothing of %s", kind)
	}
	return all[i]
}

// settled waits until nobody is behind but those named.
func (r rotation) settled(t *testing.T, kind string, but ...string) {
	t.Helper()
	deadline := time.After(harness.Patience)
	for tick := time.Tick(pace); ; {
		behind := r.status(t, kind).names()
		if slices.Equal(behind, but) {
			return
		}
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("in the rotation of the %s CA %q are behind, want %q", kind, behind, but)
		}
	}
}

// pace is how often something is tried again that costs a process: members take up
// to a second to follow.
const pace = 250 * time.Millisecond

// rotate takes an authority to a phase.
func (r rotation) rotate(t *testing.T, kind, phase string, extra ...string) {
	t.Helper()
	r.Admin(append([]string{"ca", "rotate", "--type", kind, "--phase", phase}, extra...)...)
}

// refused tries to take an authority to a phase and wants a refusal that says
// what.
func (r rotation) refused(t *testing.T, kind, phase string, what ...string) {
	t.Helper()
	res := r.Try("ca", "rotate", "--type", kind, "--phase", phase)
	for _, w := range what {
		if res.Code == 0 || !strings.Contains(res.Stderr, w) {
			t.Fatalf("ca rotate --type %s --phase %s = %d %q, want a refusal with %q", kind, phase, res.Code, res.Stderr, w)
		}
	}
}

// known writes a known_hosts file with the host CA's keys as they are now.
func (r rotation) known(name string) string {
	return r.File(name, r.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
}

// with returns the target for a client that has a key, and no other, and believes
// what is in a known_hosts file, on every hop.
func (x target) with(t *testing.T, key, known string) target {
	t.Helper()
	f := *x.fleet
	text := regexp.MustCompile(`IdentityFile \S+`).ReplaceAllLiteralString(read(t, f.config), "IdentityFile "+key)
	text = regexp.MustCompile(`UserKnownHostsFile \S+`).ReplaceAllLiteralString(text, "UserKnownHostsFile "+known)
	f.config = f.File(fmt.Sprintf("config-%x", sha256.Sum256([]byte(text))), text)
	x.fleet = &f
	return x
}

// works wants a stock client to get to a target.
func works(t *testing.T, what string, x target) {
	t.Helper()
	if res := x.ssh(t, nil, "echo", "here"); res.Code != 0 || res.Stdout != "here\n" {
		t.Errorf("%s: ssh %s = %d %q\n%s", what, x.alias(), res.Code, res.Stdout, res.Stderr)
	}
}

// staysOut wants a stock client not to get to a target, for a reason that it says.
func staysOut(t *testing.T, what, reason string, x target) {
	t.Helper()
	if res := x.ssh(t, nil, "echo", "here"); res.Code != 255 || !strings.Contains(res.Stderr, reason) {
		t.Errorf("%s: ssh %s = %d %q, want %q\n%s", what, x.alias(), res.Code, res.Stdout, reason, res.Stderr)
	}
}

// living is a session that stays open while authorities are rotated.
type living struct {
	x target
	k *harness.Terminal
}

// live opens a session that says back what it is told.
func (r rotation) live(t *testing.T, x target) *living {
	t.Helper()
	k := harness.Sit(t, x.command([]string{"-tt"}, "cat"))
	l := &living{x: x, k: k}
	l.says(t, "at first")
	return l
}

func (l *living) says(t *testing.T, word string) {
	t.Helper()
	l.k.Send(word)
	l.k.Expect(word + `\s+` + word)
}

// load runs short sessions on a target, one after another, until stop is called,
// which returns how many there were. One that fails is a failure of the test.
func load(t *testing.T, x target) (stop func() int) {
	done, ended, n := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(ended)
		for tick := time.Tick(pace); ; n++ {
			select {
			case <-done:
				return
			case <-tick:
			}
			works(t, "under load", x)
		}
	}()
	return sync.OnceValue(func() int {
		close(done)
		<-ended
		return n
	})
}

// TestRotation takes every authority through its phases, one of them back as well,
// while sessions live and others begin.
func TestRotation(t *testing.T) {
	r := rotation{newFleet(t)}
	args := r.NodeArgs("away", t.TempDir())
	away := harness.Start(t, args...)
	all := map[string]target{}
	var lives []*living
	for _, kind := range r.kinds {
		all[kind] = r.jump(kind)
		lives = append(lives, r.live(t, all[kind]))
	}
	known := r.known("load-hosts")
	stop := load(t, target{fleet: r.fleet, kind: "accessd", way: "at", node: kinds["accessd"]}.with(t, r.plain, known))
	defer stop()
	t.Run("user", func(t *testing.T) { r.users(t, all["accessd"]) })
	t.Run("node", func(t *testing.T) { r.members(t) })
	t.Run("sshd", func(t *testing.T) { r.sshd(t, all["sshd"], all["ssh -R"]) })
	t.Run("host", func(t *testing.T) { away = r.answering(t, all, known, away) })
	for _, l := range lives {
		l.says(t, "at last")
	}
	if n := stop(); n < 5 {
		t.Errorf("only %d sessions began meanwhile", n)
	}
	t.Run("a node misses all of it", func(t *testing.T) { r.missed(t, away, args) })
	r.Verify()
}

// users takes the user CA through a whole rotation.
func (r rotation) users(t *testing.T, x target) {
	before := r.status(t, "user").Keys[0].Fingerprint
	r.refused(t, "user", "clients", "in phase standby: it goes to init")
	r.rotate(t, "user", "init")
	r.settled(t, "user")
	r.rotate(t, "user", "clients")
	fresh := r.Sign("alice", "1h")
	after := r.status(t, "user").Keys[0].Fingerprint
	cert := must(t, harness.Run(t, nil, "ssh-keygen", "-L", "-f", fresh.Key+"-cert.pub"))
	if before == after || !strings.Contains(cert, after) {
		t.Errorf("the new certificate is not of key %s:\n%s", after, cert)
	}
	works(t, "clients, an old certificate", x)
	works(t, "clients, a new certificate", x.with(t, fresh.Key, r.known("hosts")))
	r.rotate(t, "user", "servers")
	r.refused(t, "user", "standby", "user alice: has a certificate of the key that goes", "--force")
	r.rotate(t, "user", "standby", "--force")
	staysOut(t, "standby", "Permission denied", x)
	r.alice = fresh
	r.configure(t)
	works(t, "standby", x)
	ev := r.WaitEvent("the end of the rotation", func(e harness.Event) bool { return e.Str("phase") == "standby" && e["success"] == true }, "--event", "ca.rotate")
	if !strings.Contains(ev.Str("before"), "trusts="+after+","+before) || !strings.HasSuffix(ev.Str("after"), "trusts="+after) {
		t.Errorf("the event says before %q and after %q", ev.Str("before"), ev.Str("after"))
	}
}

// asks runs a command at the proxy as the node that has only an ssh client, with a
// certificate of its key.
func (r rotation) asks(t *testing.T, cert, verb string) harness.Result {
	t.Helper()
	name := kinds["ssh -R"]
	_, port, _ := strings.Cut(r.Addr, ":")
	return harness.Run(t, nil, "ssh", "-F", "none", "-o", "UserKnownHostsFile="+filepath.Join(r.Home, "bare-hosts"), "-o", "GlobalKnownHostsFile=none",
		"-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
		"-i", filepath.Join(r.Home, "bare-"+name), "-o", "CertificateFile="+cert, "-p", port, name+"@127.0.0.1", verb)
}

// members takes the node CA through a whole rotation: members follow by
// themselves, and a machine with a stock ssh when it renews its certificate.
func (r rotation) members(t *testing.T) {
	cert := filepath.Join(r.Home, "bare-"+kinds["ssh -R"]+"-cert.pub")
	old := r.File("old-cert.pub", read(t, cert))
	r.rotate(t, "node", "init")
	r.settled(t, "node")
	r.rotate(t, "node", "clients")
	r.settled(t, "node", "sshd "+kinds["ssh -R"])
	harness.WriteFile(t, cert, must(t, r.asks(t, cert, "join")))
	r.settled(t, "node")
	r.rotate(t, "node", "servers")
	must(t, r.asks(t, old, "host-ca"))
	r.rotate(t, "node", "standby")
	must(t, r.asks(t, cert, "host-ca"))
	if res := r.asks(t, old, "host-ca"); res.Code != 255 || !strings.Contains(res.Stderr, "Permission denied") {
		t.Errorf("a node's certificate of the old key = %d %q", res.Code, res.Stderr)
	}
}

// sshd takes the CA of plain sshd nodes through a whole rotation: one fetches its
// keys, for the other somebody does.
func (r rotation) sshd(t *testing.T, dialled, bare target) {
	var files [2]string // of their TrustedUserCAKeys
	for addr, s := range r.sshds {
		i := 1
		if strings.Contains(r.Admin("nodes", "ls", "--format", "json"), `"`+addr+`"`) {
			i = 0
		}
		files[i] = filepath.Join(s.Dir, "ca.pub")
	}
	cert := filepath.Join(r.Home, "bare-"+bare.node+"-cert.pub")
	r.rotate(t, "sshd", "init")
	r.refused(t, "sshd", "clients", "sshd "+dialled.node+": has not fetched", "sshd "+bare.node+": has not fetched")
	harness.WriteFile(t, files[1], must(t, r.asks(t, cert, "sshd-ca")))
	r.settled(t, "sshd", "sshd "+dialled.node)
	r.rotate(t, "sshd", "clients", "--force")
	works(t, "clients, with both keys", bare)
	staysOut(t, "clients, with the old key", "", dialled)
	r.rotate(t, "sshd", "rollback")
	works(t, "rollback, with the old key", dialled)
	r.rotate(t, "sshd", "standby")
	works(t, "standby", bare)
}

// answering takes the host CA through a rotation and back, and then to its end.
// A node that is away meanwhile is waited for.
func (r rotation) answering(t *testing.T, all map[string]target, load string, away *harness.Process) *harness.Process {
	before, bare := r.known("hosts-before"), kinds["ssh -R"]
	cert, hosts := filepath.Join(r.Home, "bare-"+bare+"-cert.pub"), filepath.Join(r.Home, "bare-hosts")
	away.Stop()
	r.rotate(t, "host", "init")
	both := r.known("hosts-both")
	harness.WriteFile(t, load, read(t, both))
	r.rotate(t, "host", "clients")
	works(t, "clients, with the old key", all["accessd"].with(t, r.alice.Key, before))
	r.settled(t, "host", "node away", "sshd "+bare)
	r.refused(t, "host", "servers", "node away: does not trust the key that signs next", "sshd "+bare+": has not fetched")
	harness.WriteFile(t, hosts, must(t, r.asks(t, cert, "host-ca")))
	if got := read(t, hosts); got != read(t, both) {
		t.Errorf("the node has fetched %q, want %q", got, read(t, both))
	}
	away = away.Again()
	r.settled(t, "host")
	r.rotate(t, "host", "servers")
	r.settled(t, "host")
	for _, x := range all {
		works(t, "servers, with both keys", x.with(t, r.alice.Key, both))
	}
	staysOut(t, "servers, with the old key", "Host key verification failed", all["accessd"].with(t, r.alice.Key, before))
	r.rotate(t, "host", "rollback")
	r.settled(t, "host")
	for _, kind := range []string{"accessd", "sshd"} {
		works(t, "rollback, with the old key", all[kind].with(t, r.alice.Key, before))
	}
	r.rotate(t, "host", "standby")
	return away
}

// missed rotates the host CA while a node is away. It is told what to do, and does
// it.
func (r rotation) missed(t *testing.T, away *harness.Process, args []string) {
	away.Stop()
	for _, phase := range []string{"init", "clients", "servers"} {
		r.rotate(t, "host", phase, "--force")
	}
	r.settled(t, "host", "node away", "sshd "+kinds["ssh -R"])
	r.refused(t, "host", "standby", "node away: does not trust the key that signs next")
	r.rotate(t, "host", "standby", "--force")
	lost, _ := harness.Launch(t, args...)
	r.Eventually("the node says what to do", func() bool {
		return strings.Contains(lost.Log(), "start it with a fresh token and the new pin")
	})
	lost.Kill()
	harness.Start(t, r.NodeArgs("away", away.DataDir())...)
	r.WaitOnline("away")
}
