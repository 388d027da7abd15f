package auth

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

// cheap is a cost for tests, which are not about argon2.
var cheap = Argon2{Time: 1, MemoryKiB: 64, Threads: 1}

func TestPasswordVerify(t *testing.T) {
	h := newHasher(cheap, 1)
	hash, err := h.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if hash == other {
		t.Error("two hashes of one password are the same: there is no salt")
	}
	cases := []struct {
		name, password, hash string
		want                 bool
	}{
		{"right", "correct horse", hash, true},
		{"wrong", "correct horsf", hash, false},
		{"longer", "correct horse ", hash, false},
		{"empty", "", hash, false},
		{"no password set", "correct horse", "", false},
		{"no password set, none given", "", "", false},
		{"the decoy's own hash", "", h.dummy, false},
	}
	for _, c := range cases {
		got, err := h.verify(t.Context(), c.password, c.hash)
		if err != nil || got != c.want {
			t.Errorf("%s: verify = %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestPasswordCostIsConfigurable(t *testing.T) {
	old, err := newHasher(cheap, 1).hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	dearer := newHasher(Argon2{Time: 2, MemoryKiB: 128, Threads: 1}, 1)
	if ok, err := dearer.verify(t.Context(), "correct horse", old); !ok || err != nil {
		t.Errorf("verify at another cost = %v, %v, want true", ok, err)
	}
	if !dearer.stale(old) {
		t.Error("a hash of another cost is not stale")
	}
	fresh, err := dearer.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if dearer.stale(fresh) {
		t.Error("a fresh hash is stale")
	}
	if want := "$argon2id$v=19$m=128,t=2,p=1$"; !strings.HasPrefix(fresh, want) {
		t.Errorf("hash = %q, want it to begin with %q", fresh, want)
	}
}

func TestArgon2Check(t *testing.T) {
	if err := (Argon2{}).withDefaults().check(); err != nil {
		t.Errorf("default cost: %v", err)
	}
	for _, c := range []Argon2{
		{Time: 0, MemoryKiB: 64, Threads: 1},
		{Time: 65, MemoryKiB: 64, Threads: 1},
		{Time: 1, MemoryKiB: 7, Threads: 1},
		{Time: 1, MemoryKiB: 1 << 30, Threads: 1},
		{Time: 1, MemoryKiB: 64, Threads: 65},
	} {
		if err := c.check(); !fault.Is(err, fault.BadInput) {
			t.Errorf("%+v: check = %v, want a bad input error", c, err)
		}
	}
}

// TestHashingIsBounded: a flood of sign-ins waits for a few slots, and beyond a
// bound is sent away instead of queued.
func TestHashingIsBounded(t *testing.T) {
	h := newHasher(cheap, 1)
	h.slots <- struct{}{} // somebody is hashing and does not end
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	errs := make(chan error, maxHashWaiters+1)
	for range maxHashWaiters + 1 {
		wg.Go(func() {
			_, err := h.verify(ctx, "x", "")
			errs <- err
		})
	}
	if err := <-errs; !fault.Is(err, fault.Unavailable) || fault.Public(err) != "too many people are signing in" {
		t.Errorf("the waiter too many = %v, want to be sent away", err)
	}
	cancel()
	wg.Wait()
	<-h.slots
	if ok, err := h.verify(t.Context(), "x", ""); ok || err != nil {
		t.Errorf("verify after the flood = %v, %v, want false", ok, err)
	}
}

func TestCheckPassword(t *testing.T) {
	invite, _ := newInvite()
	cases := []struct {
		name, password string
		ok             bool
	}{
		{"short", "1234567", false},
		{"shortest", "12345678", true},
		{"longest", strings.Repeat("x", 256), true},
		{"long", strings.Repeat("x", 257), false},
		{"any characters", "ä \x00\t'\"🔑", true},
		{"an invite", invite, false},
	}
	for _, c := range cases {
		if err := checkPassword(c.password); (err == nil) != c.ok {
			t.Errorf("%s: checkPassword = %v, want ok %v", c.name, err, c.ok)
		}
	}
}

// FuzzPasswordHash: what is stored is refused or means what it says.
func FuzzPasswordHash(f *testing.F) {
	f.Add(newHasher(cheap, 1).dummy)
	f.Add("$argon2id$v=19$m=4294967295,t=99,p=99$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2i$v=19$m=64,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		cost, salt, sum, err := parsePHC(s)
		if err != nil {
			return
		}
		if err := cost.check(); err != nil {
			t.Errorf("cost %+v of %q: %v", cost, s, err)
		}
		if _, _, _, err := parsePHC(encodePHC(cost, salt, sum)); err != nil {
			t.Errorf("%q does not survive its own form: %v", s, err)
		}
	})
}

func BenchmarkPasswordDefaultCost(b *testing.B) {
	h := newHasher(Argon2{}.withDefaults(), 2)
	for b.Loop() {
		if _, err := h.verify(b.Context(), "correct horse", ""); err != nil {
			b.Fatal(err)
		}
	}
}
