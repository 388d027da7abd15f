package services_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// clock is a clock that tests turn.
type clock struct{ atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(0, c.Load()).UTC() }
func (c *clock) Advance(d time.Duration) { c.Add(int64(d)) }

func newStore(t testing.TB) (*services.Store, *clock) {
	t.Helper()
	c := newClock()
	return services.NewStore(backendtest.Open(t), c.Now), c
}

func wantKind(t testing.TB, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s = %v, want kind %v", what, err, want)
	}
}

func want[T any](t testing.TB, what string, got T, err error, want T) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s = %+v, %v, want %+v", what, got, err, want)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// race runs fn n times at once and returns how many did not fail; other
// failures than of the expected kind are errors.
func race(t testing.TB, n int, expected fault.Kind, fn func(i int) error) (won int) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			errs[i] = fn(i)
		})
	}
	close(begin)
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			won++
		} else if !fault.Is(err, expected) {
			t.Errorf("runner %d: %v, want kind %v", i, err, expected)
		}
	}
	return won
}

func TestUsers(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	u := services.User{Name: "alice", Roles: []names.RoleName{"access"}, Logins: []names.Login{"root"}, Traits: map[string][]string{"team": {"db"}}, Created: newClock().Now()}
	_, err := s.User(ctx, "alice")
	wantKind(t, "User before it is created", err, fault.NotFound)
	created, err := s.CreateUser(ctx, u, services.Credentials{InviteHash: "hash"})
	check(t, err)
	_, err = s.CreateUser(ctx, u, services.Credentials{})
	wantKind(t, "second CreateUser", err, fault.Conflict)

	got, err := s.User(ctx, "alice")
	want(t, "User", got, err, created)
	cred, err := s.Credentials(ctx, "alice")
	check(t, err)
	if cred.InviteHash != "hash" || cred.Revision == 0 {
		t.Errorf("Credentials = %q at %d, want those it was created with", cred.InviteHash, cred.Revision)
	}

	created.Logins = nil
	updated, err := s.UpdateUser(ctx, created)
	check(t, err)
	_, err = s.UpdateUser(ctx, created)
	wantKind(t, "UpdateUser at an old revision", err, fault.Conflict)
	_, err = s.CreateUser(ctx, services.User{Name: "alice2"}, services.Credentials{})
	check(t, err)
	users, err := s.Users(ctx)
	if err != nil || len(users) != 2 || !reflect.DeepEqual(users[0], updated) || users[1].Name != "alice2" {
		t.Errorf("Users = %+v, %v, want alice and alice2", users, err)
	}

	check(t, s.DeleteUser(ctx, "alice"))
	wantKind(t, "second DeleteUser", s.DeleteUser(ctx, "alice"), fault.NotFound)
	_, err = s.Credentials(ctx, "alice")
	wantKind(t, "Credentials of a user who is gone", err, fault.NotFound)
	_, err = s.UpdateCredentials(ctx, "alice", cred)
	wantKind(t, "UpdateCredentials of a user who is gone", err, fault.NotFound)
	_, err = s.UpdateUser(ctx, updated)
	wantKind(t, "UpdateUser of a user who is gone", err, fault.NotFound)
	if _, err := s.User(ctx, "alice2"); err != nil {
		t.Errorf("alice2 went with alice: %v", err)
	}
}

func TestUserCheck(t *testing.T) {
	many := make([]names.Login, 65)
	for i := range many {
		many[i] = names.Login(fmt.Sprintf("l%d", i))
	}
	for name, u := range map[string]services.User{
		"name":         {Name: "a,b"},
		"role":         {Name: "a", Roles: []names.RoleName{"p, admin, *"}},
		"role twice":   {Name: "a", Roles: []names.RoleName{"x", "x"}},
		"login":        {Name: "a", Logins: []names.Login{"*"}},
		"login twice":  {Name: "a", Logins: []names.Login{"x", "x"}},
		"many logins":  {Name: "a", Logins: many},
		"trait key":    {Name: "a", Traits: map[string][]string{"a b": {"x"}}},
		"trait value":  {Name: "a", Traits: map[string][]string{"a": {"~.*~"}}},
		"many values":  {Name: "a", Traits: map[string][]string{"a": make([]string, 65)}},
		"empty string": {Name: "a", Traits: map[string][]string{"a": {""}}},
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, "Check", u.Check(), fault.BadInput) })
	}
}

// F38: of sign-ins that show one code at once, one is let in.
func TestTOTPStepIsUsedOnceUnderRace(t *testing.T) {
	s, _ := newStore(t)
	_, err := s.CreateUser(t.Context(), services.User{Name: "alice"}, services.Credentials{})
	check(t, err)
	const step = 7
	won := race(t, 8, fault.Conflict, func(int) error {
		c, err := s.Credentials(t.Context(), "alice")
		if err != nil {
			return err
		}
		if c.TOTPLastStep >= step {
			return fault.New(fault.Conflict, "used")
		}
		c.TOTPLastStep = step
		_, err = s.UpdateCredentials(t.Context(), "alice", c)
		return err
	})
	if won != 1 {
		t.Errorf("%d sign-ins won, want 1", won)
	}
}

func TestCredentialsAreHidden(t *testing.T) {
	c := services.Credentials{PasswordHash: "marker", TOTPSecret: []byte("marker"), InviteHash: "marker"}
	asJSON, err := json.Marshal(map[string]any{"c": c, "p": &c})
	check(t, err)
	var logged strings.Builder
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&logged), zap.DebugLevel))
	log.Info("x", zap.Any("c", c), zap.Any("p", &c), zap.Reflect("r", c))
	for _, out := range []string{
		string(asJSON), logged.String(), fmt.Sprint(c), fmt.Sprintf("%+v %#v %s %q", c, c, c, c), fmt.Sprint(&c),
	} {
		if strings.Contains(out, "marker") || strings.Contains(out, "bWFya2Vy") {
			t.Errorf("the secret shows in %q", out)
		}
	}
}

func role(name names.RoleName, action string) services.Role {
	return services.Role{Name: name, Deny: []services.Rule{{Actions: []string{action}}}}
}

func TestApplyRolesAllOrNone(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	check(t, s.ApplyRoles(ctx, []services.Role{role("a", "exec"), role("b", "exec")}))
	a, err := s.Role(ctx, "a")
	check(t, err)
	a.Deny[0].Actions = []string{"shell"}
	wantKind(t, "ApplyRoles with b as if it were new", s.ApplyRoles(ctx, []services.Role{a, role("b", "x11"), role("c", "x11")}), fault.Conflict)
	roles, err := s.Roles(ctx)
	if err != nil || len(roles) != 2 || roles[0].Deny[0].Actions[0] != "exec" || roles[1].Deny[0].Actions[0] != "exec" {
		t.Errorf("Roles = %+v, %v, want a and b as they were", roles, err)
	}
	check(t, s.ApplyRoles(ctx, []services.Role{a, role("c", "x11")}))
	if got, err := s.Role(ctx, "a"); err != nil || got.Deny[0].Actions[0] != "shell" || got.Revision == a.Revision {
		t.Errorf("Role = %+v, %v, want the new one", got, err)
	}
	wantKind(t, "ApplyRoles with a bad name", s.ApplyRoles(ctx, []services.Role{role("../x", "x11")}), fault.BadInput)
}

// Threat: names that begin alike share nothing.
func TestNamesDoNotBleed(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	check(t, s.ApplyRoles(ctx, []services.Role{role("ops", "exec"), role("ops-admin", "shell"), role("ops.x", "shell")}))
	ops, err := s.Role(ctx, "ops")
	check(t, err)
	if len(ops.Deny) != 1 || ops.Deny[0].Actions[0] != "exec" {
		t.Errorf("Role(ops) = %+v, want its own rule", ops)
	}
	check(t, s.DeleteRole(ctx, "ops"))
	wantKind(t, "DeleteRole again", s.DeleteRole(ctx, "ops"), fault.NotFound)
	if roles, err := s.Roles(ctx); err != nil || len(roles) != 2 {
		t.Errorf("Roles = %+v, %v, want the two that remain", roles, err)
	}
}

func TestCAs(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	ca := services.CA{Type: sshca.TypeHost, Keys: []services.CAKey{{Public: "ssh-ed25519 AAAA", Sealed: []byte("sealed")}}}
	check(t, s.CreateCA(ctx, ca))
	wantKind(t, "second CreateCA", s.CreateCA(ctx, ca), fault.Conflict)
	wantKind(t, "CreateCA of no type", s.CreateCA(ctx, services.CA{Type: "x/y"}), fault.BadInput)
	got, err := s.CA(ctx, sshca.TypeHost)
	check(t, err)
	if string(got.Keys[0].Sealed) != "sealed" {
		t.Errorf("CA = %+v, want its sealed key", got)
	}
	if pub := got.Public(); pub.Keys[0].Sealed != nil || got.Keys[0].Sealed == nil {
		t.Error("Public shows the sealed key or takes it from the original")
	}
	if r := got.Resource(); strings.Contains(string(r.GetJson()), "sealed") || r.GetKey().GetName() != "host" {
		t.Errorf("Resource = %v, want the public view", r)
	}
	updated, err := s.UpdateCA(ctx, got)
	check(t, err)
	_, err = s.UpdateCA(ctx, got)
	wantKind(t, "UpdateCA at an old revision", err, fault.Conflict)
	_, err = s.UpdateCA(ctx, services.CA{Type: sshca.TypeNode, Revision: updated.Revision})
	wantKind(t, "UpdateCA of none", err, fault.NotFound)
	_, err = s.CA(ctx, sshca.TypeUser)
	wantKind(t, "CA of none", err, fault.NotFound)
}

func TestCluster(t *testing.T) {
	s, c := newStore(t)
	_, err := s.Cluster(t.Context())
	wantKind(t, "Cluster before it is created", err, fault.NotFound)
	first := services.Cluster{Name: "one", ID: "id", Created: c.Now()}
	check(t, s.CreateCluster(t.Context(), first))
	wantKind(t, "second CreateCluster", s.CreateCluster(t.Context(), services.Cluster{Name: "two"}), fault.Conflict)
	got, err := s.Cluster(t.Context())
	want(t, "Cluster", got, err, first)
}

// Two authorities on one state never give out one serial twice.
func TestSerialsAreUnique(t *testing.T) {
	b := backendtest.Open(t)
	stores := []*services.Store{services.NewStore(b, nil), services.NewStore(b, nil)}
	const takers, each = 6, 200
	var seen sync.Map
	won := race(t, takers, fault.Conflict, func(i int) error {
		for range each {
			n, err := stores[i%2].Serial(t.Context())
			if err != nil {
				return err
			}
			if _, twice := seen.LoadOrStore(n, true); twice || n == 0 {
				t.Errorf("serial %d came twice or is zero", n)
			}
		}
		return nil
	})
	if won != takers {
		t.Errorf("%d takers finished, want %d", won, takers)
	}
}
