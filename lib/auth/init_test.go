package auth

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// await waits for a change of the policy that makes ok true.
func await(t testing.TB, w *world, ok func() bool) {
	t.Helper()
	for {
		changed := w.policy.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("the policy never changed as it should")
		}
	}
}

func TestInitMakesACluster(t *testing.T) {
	w := newWorld(t, plan{})
	made := map[string]int{}
	for _, ev := range named(w.rec.take(), events.CACreate) {
		made[ev.Fields["ca_type"].(string)]++
		if !ev.Success || ev.ClusterName != "example" {
			t.Errorf("ca.create = %+v", ev)
		}
	}
	for _, ca := range []string{"user", "host", "node", "sshd", "audit"} {
		if made[ca] != 1 {
			t.Errorf("ca.create of %s: %d events, want 1", ca, made[ca])
		}
	}
	trust := w.cfg.Keys.Trust()
	seen := map[string]bool{}
	for _, keys := range [][]string{pins(trust.User), pins(trust.Host), pins(trust.Node), pins(trust.SSHD)} {
		if len(keys) != 1 || seen[keys[0]] {
			t.Errorf("the authorities' keys are not one each, all different: %v", keys)
		}
		seen[keys[0]] = true
	}
	for _, r := range services.BuiltinRoles() {
		if got, err := w.cfg.Store.Role(t.Context(), r.Name); err != nil || !got.Builtin {
			t.Errorf("built-in role %s = %+v, %v", r.Name, got, err)
		}
	}
}

func TestInitAgainChangesNothing(t *testing.T) {
	dir, id := t.TempDir(), names.NewNodeID()
	first := newWorld(t, plan{dir: dir, id: id})
	before, cluster := first.cfg.Keys.Trust(), first.cfg.Keys.ClusterID()
	audit := first.cfg.Keys.AuditVerifierKey()
	first.stop()
	second := newWorld(t, plan{dir: dir, id: id})
	if evs := second.rec.take(); len(evs) != 0 {
		t.Errorf("the second start recorded %+v", evs)
	}
	after := second.cfg.Keys
	if pins(after.Trust().User)[0] != pins(before.User)[0] || after.ClusterID() != cluster || after.AuditVerifierKey() != audit {
		t.Error("the second start has other keys")
	}
}

// TestInitRace: two authorities that start at once on one empty store end with
// the same cluster, and every event that took part in the race is true.
func TestInitRace(t *testing.T) {
	b, err := backend.Open(t.Context(), backend.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	key := filepath.Join(dir, "seal.key")
	newWorld(t, plan{sealKey: key}).stop() // makes the key file
	var wg sync.WaitGroup
	var worlds [4]*world
	for i := range worlds {
		wg.Go(func() {
			w, err := openWorld(t, plan{dir: t.TempDir(), backend: b, sealKey: key})
			if err != nil {
				t.Errorf("authority %d: %v", i, err)
				return
			}
			worlds[i] = w
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	created := map[string]int{}
	audit := map[string]bool{}
	for _, w := range worlds {
		defer w.stop()
		k := w.cfg.Keys
		if pins(k.Trust().Host)[0] != pins(worlds[0].cfg.Keys.Trust().Host)[0] || k.ClusterID() != worlds[0].cfg.Keys.ClusterID() {
			t.Error("two authorities have different clusters")
		}
		audit[k.AuditVerifierKey()] = true
		last := map[string]events.Event{} // a lost race takes its event back
		for _, ev := range named(w.rec.take(), events.CACreate) {
			last[ev.Fields["fingerprint"].(string)] = ev
		}
		for _, ev := range last {
			if ev.Success && ev.Fields["ca_type"] != "audit" {
				created[ev.Fields["ca_type"].(string)]++
			}
		}
	}
	for _, ca := range caTypes() {
		if created[string(ca)] != 1 {
			t.Errorf("%s CA: %d authorities say they made it", ca, created[string(ca)])
		}
	}
	if len(audit) != len(worlds) {
		t.Errorf("%d authorities have %d audit keys, want one each", len(worlds), len(audit))
	}
	rec, err := worlds[0].cfg.Store.CA(t.Context(), services.AuditCA)
	if err != nil || len(rec.Keys) != len(worlds) {
		t.Errorf("the audit record has %d keys, %v, want %d", len(rec.Keys), err, len(worlds))
	}
}

// TestWrongSealKeyFailsClosed: with another key nothing starts, nothing is
// changed, and the error says what to do (disk thief).
func TestWrongSealKeyFailsClosed(t *testing.T) {
	dir, id := t.TempDir(), names.NewNodeID()
	first := newWorld(t, plan{dir: dir, id: id})
	want := pins(first.cfg.Keys.Trust().User)[0]
	first.stop()
	_, err := openWorld(t, plan{dir: dir, id: id, sealKey: filepath.Join(t.TempDir(), "other.key")})
	if !fault.Is(err, fault.BadInput) || fault.Hint(err) == "" {
		t.Fatalf("start with another key = %v, want a bad input error with a hint", err)
	}
	again := newWorld(t, plan{dir: dir, id: id})
	if got := pins(again.cfg.Keys.Trust().User)[0]; got != want {
		t.Errorf("after the failed start the user CA is %s, want %s", got, want)
	}
}

// TestSwappedCARecordsAreRefused: whoever can write to the store cannot make
// one authority's key serve as another's.
func TestSwappedCARecordsAreRefused(t *testing.T) {
	dir, id := t.TempDir(), names.NewNodeID()
	w := newWorld(t, plan{dir: dir, id: id})
	user, err := w.cfg.Store.CA(t.Context(), sshca.TypeUser)
	if err != nil {
		t.Fatal(err)
	}
	sshd, err := w.cfg.Store.CA(t.Context(), sshca.TypeSSHD)
	if err != nil {
		t.Fatal(err)
	}
	user.Keys = sshd.Keys
	if _, err := w.cfg.Store.UpdateCA(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if _, err := openWorld(t, plan{dir: dir, id: id}); err == nil {
		t.Error("an authority starts with the sshd CA's key as its user CA")
	}
}

func TestInitRefusesBadNames(t *testing.T) {
	for _, name := range []string{"", "a b", "-x", "EXAMPLE", "10.0.0.1"} {
		if _, err := Init(t.Context(), InitConfig{ID: names.NewNodeID(), ClusterName: name}); !fault.Is(err, fault.BadInput) {
			t.Errorf("cluster name %q: %v, want a bad input error", name, err)
		}
	}
}
