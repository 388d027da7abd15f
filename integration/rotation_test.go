package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

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
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("behind were %q, want %q", last, but)
		}
	}()
	r.Eventually(fmt.Sprintf("nobody but %q is behind in the rotation of the %s CA", but, kind), func() bool {
		last = r.status(t, kind).names()
		return slices.Equal(last, but)
	})
}

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
// which returns how many there were. Each that fails fails the test.
func load(t *testing.T, x target) (stop func() int) {
	done, ended, n := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			works(t, "under load", x)
			n++
		}
	}()
	return sync.OnceValue(func() int {
		close(done)
		<-ended
		return n
	})
}

// TestRotation takes every authority through its phases and back, while sessions
// live and others begin.
func TestRotation(t *testing.T) {
	r := rotation{newFleet(t)}
	var all []target
	for _, kind := range r.kinds {
		all = append(all, r.jump(kind))
	}
	lives := make([]*living, len(all))
	for i, x := range all {
		lives[i] = r.live(t, x)
	}
	known := r.known("load-hosts")
	stop := load(t, target{fleet: r.fleet, kind: "accessd", way: "at", node: kinds["accessd"]}.with(t, r.plain, known))
	defer stop()
	t.Run("user", func(t *testing.T) { r.users(t, all, known) })
	t.Run("host", func(t *testing.T) { r.hostsTurn(t, all, known) })
	for _, l := range lives {
		l.says(t, "at last")
	}
	if n := stop(); n < 5 {
		t.Errorf("only %d sessions began meanwhile", n)
	}
	r.Verify()
}

// users takes the user CA through a whole rotation.
func (r rotation) users(t *testing.T, all []target, known string) {
	before := r.status(t, "user").Keys[0].Fingerprint
	r.refused(t, "user", "clients", "in phase standby: it goes to init")
	r.rotate(t, "user", "init")
	r.settled(t, "user")
	works(t, "init", all[0])
	r.rotate(t, "user", "clients")
	fresh := r.Sign("alice", "1h")
	after := r.status(t, "user").Keys[0].Fingerprint
	cert := must(t, harness.Run(t, nil, "ssh-keygen", "-L", "-f", fresh.Key+"-cert.pub"))
	if before == after || !strings.Contains(cert, after) {
		t.Errorf("the new certificate is not of key %s:\n%s", after, cert)
	}
	for _, x := range all {
		works(t, "clients, an old certificate", x)
		works(t, "clients, a new certificate", x.with(t, fresh.Key, known))
	}
	r.rotate(t, "user", "servers")
	r.refused(t, "user", "standby", "user alice: has a certificate of the key that goes", "--force")
	r.rotate(t, "user", "standby", "--force")
	r.Eventually("the old certificate is good no more", func() bool { return all[0].ssh(t, nil, "true").Code == 255 })
	staysOut(t, "standby", "Permission denied", all[0])
	r.alice = fresh
	r.configure(t)
	works(t, "standby", all[0])
	ev := r.WaitEvent("the end of the rotation", func(e harness.Event) bool { return e.Str("phase") == "standby" && e["success"] == true }, "--event", "ca.rotate")
	if !strings.Contains(ev.Str("before"), "trusts="+after+","+before) || !strings.HasSuffix(ev.Str("after"), "trusts="+after) {
		t.Errorf("the event says before %q and after %q", ev.Str("before"), ev.Str("after"))
	}
}

// hostsTurn takes the host CA through a rotation and back, and then to its end.
func (r rotation) hostsTurn(t *testing.T, all []target, load string) {
	before := r.known("hosts-before")
	r.rotate(t, "host", "init")
	both := r.known("hosts-both")
	harness.WriteFile(t, load, read(t, both))
	r.settled(t, "host", "sshd "+kinds["ssh -R"])
	r.rotate(t, "host", "clients")
	works(t, "clients", all[0].with(t, r.alice.Key, before))
	r.rotate(t, "host", "servers", "--force")
	r.settled(t, "host", "sshd "+kinds["ssh -R"])
	for _, x := range all {
		works(t, "servers, with both keys", x.with(t, r.alice.Key, both))
		staysOut(t, "servers, with the old key", "Host key verification failed", x.with(t, r.alice.Key, before))
	}
	r.rotate(t, "host", "rollback")
	r.settled(t, "host")
	for _, x := range all {
		works(t, "rollback, with the old key", x.with(t, r.alice.Key, before))
	}
	r.rotate(t, "host", "standby")
}
