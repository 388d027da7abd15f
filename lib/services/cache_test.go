package services_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// resource returns v as a stream carries it.
func resource(t testing.TB, kind, name string, v any) *accessdv1.Resource {
	t.Helper()
	data, err := json.Marshal(v)
	check(t, err)
	return &accessdv1.Resource{Key: key(kind, name), Json: data, Revision: 5}
}

func key(kind, name string) *accessdv1.ResourceKey {
	return &accessdv1.ResourceKey{Kind: kind, Name: name}
}

func put(r ...*accessdv1.Resource) *accessdv1.PolicyUpdate {
	return &accessdv1.PolicyUpdate{Put: r}
}

func remove(k ...*accessdv1.ResourceKey) *accessdv1.PolicyUpdate {
	return &accessdv1.PolicyUpdate{Remove: k}
}

func newCA(t testing.TB, typ sshca.Type, seed byte) (services.CA, ssh.PublicKey) {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	pub, err := ssh.NewPublicKey(private.Public())
	check(t, err)
	return services.CA{Type: typ, Keys: []services.CAKey{{Public: string(ssh.MarshalAuthorizedKey(pub)), Sealed: []byte("x")}}}, pub
}

// closed reports whether a channel is closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Nobody decides by half a policy, in which the allow rule is there already and
// the deny rule not yet.
func TestCacheTakesAPolicyInWhole(t *testing.T) {
	c := services.NewCache()
	old := c.Revision()
	check(t, c.Apply(&accessdv1.PolicyUpdate{Reset_: true, Put: []*accessdv1.Resource{resource(t, "role", "allows", role("allows", "exec"))}}))
	changed := c.Changed()
	if _, ok := c.Role("allows"); ok || c.Revision() != old || closed(c.Synced()) {
		t.Error("a policy that is not complete shows")
	}
	check(t, c.Apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{resource(t, "role", "denies", role("denies", "exec"))}, Synced: true}))
	if len(c.Roles()) != 2 || c.Revision() == old || !closed(c.Synced()) || !closed(changed) {
		t.Error("a complete policy does not show")
	}
	// The stream breaks and begins anew: what was stays until all is there.
	check(t, c.Apply(&accessdv1.PolicyUpdate{Reset_: true}))
	check(t, c.Apply(remove(key("role", "denies"))))
	if len(c.Roles()) != 2 {
		t.Error("a new policy that is not complete shows")
	}
	check(t, c.Apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true}))
	if len(c.Roles()) != 0 {
		t.Error("what the new policy does not have is still there")
	}
}

func TestCacheAppliesAllOrNone(t *testing.T) {
	good := resource(t, "user", "alice", services.User{Name: "alice"})
	for name, bad := range map[string]*accessdv1.Resource{
		"no JSON":         {Key: key("user", "bob"), Json: []byte("{")},
		"another's name":  resource(t, "user", "root", services.User{Name: "bob"}),
		"another's id":    resource(t, "presence", "a/b", services.Presence{Proxy: "b", Node: "a"}),
		"bad expression":  {Key: key("role", "r"), Json: []byte(`{"name":"r","allow":[{"nodes":{"a":["~(~"]}}]}`)},
		"no key in a CA":  resource(t, "ca", "user", services.CA{Type: "user", Keys: []services.CAKey{{Public: "junk"}}}),
		"other CA's name": resource(t, "ca", "user", services.CA{Type: "host"}),
	} {
		t.Run(name, func(t *testing.T) {
			c := services.NewCache()
			err := c.Apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{good, bad}, Synced: true})
			wantKind(t, "Apply", err, fault.BadInput)
			if _, ok := c.User("alice"); ok || closed(c.Synced()) {
				t.Error("part of the update was applied")
			}
		})
	}
}

func TestCacheLookups(t *testing.T) {
	c := services.NewCache()
	a, b := node("a"), node("b")
	a.GatewayPort, b.GatewayPort = 20001, 20002
	p, q := names.NodeID("00000000-0000-4000-8000-000000000001"), names.NodeID("00000000-0000-4000-8000-000000000002")
	presence := func(proxy, node names.NodeID) *accessdv1.Resource {
		return resource(t, "presence", string(proxy)+"/"+string(node), services.Presence{Proxy: proxy, Node: node})
	}
	m := services.Member{ID: q, Name: "q", Kind: sshca.KindProxy, MemberKey: "key"}
	check(t, c.Apply(put(
		resource(t, "node", string(a.ID), a), resource(t, "node", string(b.ID), b),
		presence(q, a.ID), presence(p, a.ID), presence(p, a.ID),
		resource(t, "proxy", string(p), services.Proxy{ID: p, Addresses: []string{"p:1"}}),
		resource(t, "member", string(q), m),
		resource(t, "user", "alice", services.User{Name: "alice", Logins: []names.Login{"root"}}),
		resource(t, "hologram", "x", "from a later version"),
	)))
	if got, ok := c.Node(a.ID); !ok || got.Name != "a" || got.Revision != 5 {
		t.Errorf("Node = %+v, %v, want a", got, ok)
	}
	if got, ok := c.NodeByName("b"); !ok || got.ID != b.ID {
		t.Errorf("NodeByName = %+v, %v, want b", got, ok)
	}
	if got, ok := c.NodeByPort(20001); !ok || got.ID != a.ID {
		t.Errorf("NodeByPort = %+v, %v, want a", got, ok)
	}
	if got := c.Presence(a.ID); !slices.Equal(got, []names.NodeID{p, q}) {
		t.Errorf("Presence = %v, want both proxies, once", got)
	}
	if got, ok := c.Proxy(p); !ok || got.Addresses[0] != "p:1" || len(c.Proxies()) != 1 {
		t.Errorf("Proxy = %+v, %v, want p", got, ok)
	}
	if got, ok := c.Member(q); !ok || got.MemberKey != "key" {
		t.Errorf("Member = %+v, %v, want q", got, ok)
	}
	if got := c.Nodes(); len(got) != 2 || got[0].Name != "a" || len(c.Users()) != 1 {
		t.Errorf("Nodes = %+v, want a and b", got)
	}

	held := c.Presence(a.ID)
	b.Name, b.GatewayPort = "a2", 20001 // b gets another name, and the port that a loses
	a.GatewayPort = 0
	check(t, c.Apply(put(resource(t, "node", string(b.ID), b), resource(t, "node", string(a.ID), a))))
	check(t, c.Apply(remove(key("presence", string(p)+"/"+string(a.ID)), key("proxy", string(p)), key("member", string(q)), key("user", "alice"), key("hologram", "x"))))
	if got, ok := c.NodeByPort(20001); !ok || got.ID != b.ID {
		t.Errorf("NodeByPort = %+v, %v, want b, which has it now", got, ok)
	}
	if _, ok := c.NodeByPort(20002); ok {
		t.Error("b is still found by its old port")
	}
	if _, ok := c.NodeByName("b"); ok {
		t.Error("b is still found by its old name")
	}
	if got := c.Presence(a.ID); !slices.Equal(got, []names.NodeID{q}) || len(held) != 2 {
		t.Errorf("Presence = %v, want q; the list before is %v, want it untouched", got, held)
	}
	_, proxy := c.Proxy(p)
	_, isMember := c.Member(q)
	_, user := c.User("alice")
	if proxy || isMember || user {
		t.Error("what was removed is still there")
	}
	check(t, c.Apply(remove(key("node", string(a.ID)), key("presence", string(q)+"/"+string(a.ID)))))
	if _, ok := c.NodeByName("a"); ok || c.Presence(a.ID) != nil || len(c.Nodes()) != 1 {
		t.Error("a node that was removed is still found")
	}
	if _, ok := c.NodeByPort(0); ok {
		t.Error("a node without a port is found by port 0")
	}
}

// A cache whose every node comes and goes keeps the decisions made by it.
func TestCacheRevision(t *testing.T) {
	c := services.NewCache()
	n := node("a")
	ca, _ := newCA(t, sshca.TypeUser, 1)
	for _, step := range []struct {
		name     string
		update   *accessdv1.PolicyUpdate
		decisive bool
	}{
		{"role", put(resource(t, "role", "r", role("r", "exec"))), true},
		{"user", put(resource(t, "user", "u", services.User{Name: "u"})), true},
		{"ca", put(ca.Resource()), true},
		{"node", put(resource(t, "node", string(n.ID), n)), false},
		{"presence", put(resource(t, "presence", "p/n", services.Presence{Proxy: "p", Node: "n"})), false},
		{"no user", remove(key("user", "u")), true},
		{"no ca", remove(key("ca", "user")), true},
		{"no role", remove(key("role", "r")), true},
		{"no node", remove(key("node", string(n.ID))), false},
	} {
		before, changed := c.Revision(), c.Changed()
		check(t, c.Apply(step.update))
		if got := c.Revision() > before; got != step.decisive || !closed(changed) {
			t.Errorf("%s: the revision increased: %v, want %v; told: %v, want true", step.name, got, step.decisive, closed(changed))
		}
	}
}

func TestCacheTrust(t *testing.T) {
	c := services.NewCache()
	if got := c.Trust(); got.User != nil || got.Host != nil || got.Node != nil || got.SSHD != nil {
		t.Errorf("Trust of an empty cache = %+v, want nobody", got)
	}
	user, userKey := newCA(t, sshca.TypeUser, 1)
	older, olderKey := newCA(t, sshca.TypeUser, 2)
	user.Keys = append(user.Keys, older.Keys...)
	host, hostKey := newCA(t, sshca.TypeHost, 3)
	check(t, c.Apply(put(user.Resource(), host.Resource()))) // as a joiner does
	got := c.Trust()
	same := func(got []ssh.PublicKey, want ...ssh.PublicKey) bool {
		return slices.EqualFunc(got, want, func(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) })
	}
	if !same(got.User, userKey, olderKey) || !same(got.Host, hostKey) || got.Node != nil || got.SSHD != nil {
		t.Errorf("Trust = %+v, want each key under its type, the newest first", got)
	}
	if closed(c.Synced()) {
		t.Error("the cache says that it is complete")
	}
}

func TestCacheLookupsAllocateNothing(t *testing.T) {
	c := services.NewCache()
	n := node("a")
	check(t, c.Apply(put(resource(t, "role", "r", role("r", "exec")), resource(t, "user", "u", services.User{Name: "u"}), resource(t, "node", string(n.ID), n))))
	if got := testing.AllocsPerRun(100, func() {
		c.Role("r")
		c.User("u")
		c.Node(n.ID)
		c.NodeByName("a")
		c.Presence(n.ID)
		c.Trust()
		c.Revision()
	}); got != 0 {
		t.Errorf("look-ups allocate %v times, want 0", got)
	}
}

func wholePolicy(t testing.TB) *accessdv1.PolicyUpdate {
	t.Helper()
	n := node("a")
	ca, _ := newCA(t, sshca.TypeUser, 1)
	return &accessdv1.PolicyUpdate{Reset_: true, Synced: true, Put: []*accessdv1.Resource{
		resource(t, "role", "r", services.Role{Name: "r", Allow: []services.Rule{{Nodes: selector(t, map[string][]string{"env": {"~a|b~", "{{user.traits.x}}"}})}}}),
		resource(t, "user", "u", services.User{Name: "u", Traits: map[string][]string{"x": {"y"}}}),
		resource(t, "node", string(n.ID), n), ca.Resource(),
		resource(t, "member", "m", services.Member{ID: "m"}),
		resource(t, "proxy", "p", services.Proxy{ID: "p"}),
		resource(t, "presence", "p/n", services.Presence{Proxy: "p", Node: "n"}),
	}}
}

func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy")
	c := services.NewCache()
	wantKind(t, "Save of a policy that has not come in", c.Save(path), fault.Unavailable)
	if err := c.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of nothing = %v, want ErrNotExist", err)
	}
	check(t, c.Apply(wholePolicy(t)))
	check(t, c.Save(path))
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("the snapshot has mode %v, want 0600", info.Mode())
	}

	got := services.NewCache()
	check(t, got.Load(path))
	if !closed(got.Synced()) {
		t.Error("a loaded policy is not complete")
	}
	want(t, "Roles", got.Roles(), nil, c.Roles())
	want(t, "Users", got.Users(), nil, c.Users())
	want(t, "Nodes", got.Nodes(), nil, c.Nodes())
	want(t, "Trust", got.Trust(), nil, c.Trust())
	if _, ok := got.Member("m"); !ok || len(got.Proxies()) != 0 || got.Presence("n") != nil {
		t.Error("want the member, and no proxy or presence, in the snapshot")
	}

	// What does not belong into a snapshot makes none.
	check(t, os.Remove(path))
	check(t, c.Apply(remove(key("proxy", "p"))))
	check(t, c.Save(path))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat = %v, want that nothing was written", err)
	}
	check(t, c.Apply(remove(key("role", "r"))))
	check(t, c.Save(path))
	check(t, got.Load(path))
	if len(got.Roles()) != 0 {
		t.Error("the role is still in the snapshot")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("in the directory are %v, %v, want the snapshot only", entries, err)
	}
	if err := c.Save(filepath.Join(dir, "none", "policy")); err == nil {
		t.Error("Save into no directory = nil, want an error")
	}
}

// A snapshot that is damaged anywhere is refused and changes nothing.
func TestDamagedSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy")
	c := services.NewCache()
	check(t, c.Apply(wholePolicy(t)))
	check(t, c.Save(path))
	good, err := os.ReadFile(path)
	check(t, err)
	got := services.NewCache()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := services.ParseSnapshot(bad); err == nil {
			t.Errorf("a snapshot with byte %d changed is taken", i)
		}
		if _, err := services.ParseSnapshot(good[:i]); err == nil {
			t.Errorf("the first %d bytes of a snapshot are taken", i)
		}
	}
	check(t, os.WriteFile(path, good[:len(good)-1], 0o600))
	wantKind(t, "Load", got.Load(path), fault.BadInput)
	wantKind(t, "Load of a directory", got.Load(filepath.Dir(path)), fault.BadInput)
	if closed(got.Synced()) || len(got.Roles()) != 0 {
		t.Error("a damaged snapshot changed the cache")
	}
}

// Run asks a source again when its stream ends, with pauses that grow to 30 s
// and begin anew after a healthy minute, and stops with its context.
func TestCacheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c, whole := services.NewCache(), wholePolicy(t)
		var calls int
		var ended time.Time
		var pauses []time.Duration
		source := func(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error {
			calls++
			if !ended.IsZero() {
				pauses = append(pauses, time.Since(ended))
			}
			defer func() { ended = time.Now() }()
			switch {
			case calls <= 12:
				return errors.New("away")
			case calls == 13:
				check(t, fn(whole))
				<-time.After(2 * time.Minute) // the bubble's clock
				return nil
			case calls == 15:
				<-ctx.Done()
			}
			return ctx.Err()
		}
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx, source) }()
		<-c.Synced()
		<-time.After(3 * time.Minute) // the bubble's clock
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if len(pauses) != 14 {
			t.Fatalf("%d pauses, want 14", len(pauses))
		}
		between := func(i int, low, high time.Duration) {
			t.Helper()
			if pauses[i] < low || pauses[i] > high {
				t.Errorf("pause %d is %v, want between %v and %v", i, pauses[i], low, high)
			}
		}
		between(0, 50*time.Millisecond, 100*time.Millisecond)
		between(1, 100*time.Millisecond, 200*time.Millisecond)
		between(11, 15*time.Second, 30*time.Second)
		between(12, 50*time.Millisecond, 100*time.Millisecond)
		between(13, 100*time.Millisecond, 200*time.Millisecond)
	})
}

func FuzzApply(f *testing.F) {
	for _, r := range wholePolicy(f).GetPut() {
		f.Add(r.GetKey().GetKind(), r.GetKey().GetName(), r.GetJson())
	}
	f.Add("role", "", []byte(`{"name":"","allow":[{"nodes":{"*":["*"],"a":["~~"]}}]}`))
	f.Fuzz(func(t *testing.T, kind, name string, data []byte) {
		c := services.NewCache()
		if err := c.Apply(put(&accessdv1.Resource{Key: key(kind, name), Json: data})); err != nil {
			if !fault.Is(err, fault.BadInput) {
				t.Errorf("Apply = %v, want bad input", err)
			}
			return
		}
		check(t, c.Apply(&accessdv1.PolicyUpdate{Remove: []*accessdv1.ResourceKey{key(kind, name)}, Synced: true}))
		if all := len(c.Roles()) + len(c.Users()) + len(c.Nodes()) + len(c.Proxies()) + len(c.Trust().User); all != 0 {
			t.Errorf("%d resources are left after the only one was removed", all)
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	body, err := proto.Marshal(wholePolicy(f))
	check(f, err)
	f.Add(body)
	f.Add([]byte{0x12, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		u, err := services.ParseSnapshot(slices.Concat([]byte("accessd policy 1\n"), sum[:], body))
		if err != nil {
			return
		}
		if err := services.NewCache().Apply(u); err != nil && !fault.Is(err, fault.BadInput) {
			t.Errorf("Apply = %v, want bad input", err)
		}
		if _, err := services.ParseSnapshot(body); err == nil && !strings.HasPrefix(string(body), "accessd") {
			t.Error("what does not begin as a snapshot is taken for one")
		}
	})
}

func BenchmarkCacheLookup(b *testing.B) {
	c := services.NewCache()
	check(b, c.Apply(wholePolicy(b)))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.User("u")
		}
	})
}
