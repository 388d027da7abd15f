package services_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const requestYAML = `kind: role
name: developer
allow:
  - resources: {requests: [create]}
requests:
  - roles: [dba, vault]
    nodes: {env: [dev]}
    max_ttl: 4h
    approvals:
      - roles: [lead]
        count: 1
      - count: 2
    require_signature: true
  - roles: [access]
review:
  - roles: ["*"]
`

func TestParseRequestRules(t *testing.T) {
	roles, err := services.ParseRoles("f", []byte(requestYAML))
	check(t, err)
	r := roles[0]
	dev, err := services.ParseSelector(map[string][]string{"env": {"dev"}})
	check(t, err)
	want := []services.RequestRule{
		{
			Roles: []names.RoleName{"dba", "vault"}, Nodes: dev, MaxTTL: 4 * time.Hour, RequireSignature: true,
			Approvals: []services.ApprovalSet{{Roles: []names.RoleName{"lead"}, Count: 1}, {Count: 2}},
		},
		{Roles: []names.RoleName{"access"}},
	}
	if !reflect.DeepEqual(r.Requests, want) || !reflect.DeepEqual(r.Review, []services.ReviewRule{{Roles: []string{"*"}}}) {
		t.Errorf("requests %+v, review %+v", r.Requests, r.Review)
	}
	again, err := services.ParseRoles("f", r.YAML())
	check(t, err)
	if !reflect.DeepEqual(again[0], r) {
		t.Errorf("as YAML it reads back as %+v, want %+v\n%s", again[0], r, r.YAML())
	}
}

func TestParseRequestRulesRefuses(t *testing.T) {
	_, err := services.ParseRoles("f", []byte(`kind: role
name: x
requests:
  - {max_ttl: 4h}
  - {roles: ["*"]}
  - {roles: [dba], max_ttl: 169h, reviewers: [bob]}
  - {roles: [dba], approvals: []}
  - {roles: [dba], approvals: [{roles: [lead], count: 0}, {count: 17}, {by: [lead]}]}
  - {roles: [dba], require_signature: "yes"}
review:
  - {}
  - {roles: [dba, "db*"], nodes: "*"}
`))
	want := strings.Split(`f:4: requests: a rule needs roles that may be asked for
f:5: roles: role name "*": want 1 to 63 of a-z 0-9 . _ -, not beginning with . or -
f:5: requests: a rule needs roles that may be asked for
f:6: max_ttl: want at most 168h0m0s
f:6: unknown field "reviewers" in a request rule
f:7: approvals: want 1 to 64 rules
f:8: count: want a number from 1 on, got "0" (int)
f:8: count: want at most 16
f:8: unknown field "by" in a set of approvals
f:9: require_signature: want true or false, got "yes"
f:11: review: a rule needs the roles whose requests may be reviewed
f:12: roles: role name "db*": want 1 to 63 of a-z 0-9 . _ -, not beginning with . or -
f:12: unknown field "nodes" in a review rule`, "\n")
	if got := strings.Split(fault.Public(err), "\n"); !slices.Equal(got, want) {
		t.Errorf("ParseRoles:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func request(c *clock, user names.UserName) services.AccessRequest {
	return services.AccessRequest{
		ID: names.NewRequestID(), User: user, Roles: []names.RoleName{"dba"}, Reason: "why", TTL: time.Hour,
		Created: c.Now(), Deadline: c.Now().Add(24 * time.Hour), State: services.RequestPending,
	}
}

// The statement is what signatures are over: its form never changes.
func TestStatement(t *testing.T) {
	r := services.AccessRequest{
		ID: "0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11", User: "alice", Roles: []names.RoleName{"dba", "ops"},
		Node: "11111111-6a1c-4d8a-9d3c-0f7f1c9f3c11", NodeName: "db-1", Reason: `"quoted" \ grün <b>`, TTL: 2 * time.Hour,
		Created:  time.Date(2026, 3, 1, 9, 30, 0, 120, time.UTC),
		Deadline: time.Date(2026, 3, 2, 9, 30, 0, 120, time.UTC),
	}
	const want = `accessd access request 1
cluster: example
request: 0b9fdd2a-6a1c-4d8a-9d3c-0f7f1c9f3c11
user: alice
roles: dba,ops
node: 11111111-6a1c-4d8a-9d3c-0f7f1c9f3c11 db-1
ttl: 2h0m0s
reason: "\"quoted\" \\ grün \u003cb\u003e"
created: 2026-03-01T09:30:00.00000012Z
deadline: 2026-03-02T09:30:00.00000012Z
reviewer: bob
verdict: approve
note: ""
`
	if got := r.Statement("example", "bob", "approve", ""); got != want {
		t.Errorf("Statement =\n%s\nwant\n%s", got, want)
	}
	r.Node = ""
	if got := r.Statement("example", "bob", "deny", "no"); !strings.Contains(got, "\nnode: -\n") || !strings.HasSuffix(got, "\nverdict: deny\nnote: \"no\"\n") {
		t.Errorf("Statement =\n%s", got)
	}
}

// A request that is approved gives something for as long as it is: streams tell
// it, snapshots keep it.
func TestElevations(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	r, err := s.CreateRequest(ctx, request(c, "alice"))
	check(t, err)
	cache := services.NewCache()
	sync := func() {
		t.Helper()
		done := errors.New("synced")
		err := s.Watch(ctx, nil, func(u *accessdv1.PolicyUpdate) error {
			if err := cache.Apply(u); err != nil || !u.GetSynced() {
				return err
			}
			return done
		})
		if !errors.Is(err, done) {
			t.Fatal(err)
		}
	}
	sync()
	if _, ok := cache.Elevation(r.ID); ok {
		t.Error("a pending request gives something")
	}
	stale := r
	r.State, r.Until = services.RequestApproved, c.Now().Add(time.Hour)
	r, err = s.UpdateRequest(ctx, r)
	check(t, err)
	_, err = s.UpdateRequest(ctx, stale)
	wantKind(t, "a change of what was changed meanwhile", err, fault.Conflict)
	before := cache.Revision()
	sync()
	g, ok := cache.Elevation(r.ID)
	if !ok || g.User != "alice" || !slices.Equal(g.Roles, r.Roles) || !g.Until.Equal(r.Until) || cache.Revision() == before {
		t.Errorf("elevation = %+v, %v", g, ok)
	}
	if !g.Is(services.User{Name: "alice", Created: r.Created}) || g.Is(services.User{Name: "bob"}) || g.Is(services.User{Name: "alice", Created: r.Created.Add(1)}) {
		t.Error("the elevation is not alice's alone")
	}
	file := t.TempDir() + "/policy"
	check(t, cache.Save(file))
	kept := services.NewCache()
	check(t, kept.Load(file))
	if _, ok := kept.Elevation(r.ID); !ok {
		t.Error("the snapshot has no elevation")
	}
	all, err := s.Elevations(ctx)
	want(t, "elevations", len(all), err, 1)

	c.Advance(time.Hour)
	_, err = s.Elevation(ctx, r.ID)
	wantKind(t, "an elevation whose time is over", err, fault.NotFound)
	all, err = s.Elevations(ctx)
	want(t, "elevations whose time is over", len(all), err, 0)

	r.State, r.Ended = services.RequestExpired, c.Now()
	_, err = s.UpdateRequest(ctx, r)
	check(t, err)
	sync()
	if _, ok := cache.Elevation(r.ID); ok {
		t.Error("a request that has ended gives something")
	}
}

// A person's open requests are bounded, also when many are made at once.
func TestOpenRequestsAreBounded(t *testing.T) {
	s, c := newStore(t)
	ctx := t.Context()
	_, err := s.CreateRequest(ctx, request(c, "bob"))
	check(t, err)
	if won := race(t, 12, fault.Conflict, func(int) error {
		_, err := s.CreateRequest(ctx, request(c, "alice"))
		return err
	}); won != 8 {
		t.Errorf("%d requests were made, want 8", won)
	}
	all, err := s.Requests(ctx)
	want(t, "requests", len(all), err, 9)
	for _, r := range all {
		if r.User == "alice" {
			r.State, r.Ended = services.RequestDropped, c.Now()
			_, err := s.UpdateRequest(ctx, r)
			check(t, err)
			break
		}
	}
	_, err = s.CreateRequest(ctx, request(c, "alice"))
	check(t, err)
	for _, id := range []string{"", "x", "../user/alice", names.NewRequestID()} {
		_, err := s.Request(ctx, id)
		wantKind(t, fmt.Sprintf("request %q", id), err, fault.NotFound)
	}
}

func TestRequestCheck(t *testing.T) {
	_, c := newStore(t)
	for what, edit := range map[string]func(*services.AccessRequest){
		"id":                    func(r *services.AccessRequest) { r.ID = "1" },
		"user":                  func(r *services.AccessRequest) { r.User = "a/b" },
		"no roles":              func(r *services.AccessRequest) { r.Roles = nil },
		"roles out of order":    func(r *services.AccessRequest) { r.Roles = []names.RoleName{"b", "a"} },
		"a role twice":          func(r *services.AccessRequest) { r.Roles = []names.RoleName{"a", "a"} },
		"a role that is none":   func(r *services.AccessRequest) { r.Roles = []names.RoleName{"*"} },
		"no time":               func(r *services.AccessRequest) { r.TTL = 0 },
		"too long":              func(r *services.AccessRequest) { r.TTL = services.MaxElevation + 1 },
		"no reason":             func(r *services.AccessRequest) { r.Reason = "" },
		"a line end":            func(r *services.AccessRequest) { r.Reason = "a\nb" },
		"a paragraph separator": func(r *services.AccessRequest) { r.Reason = "a\u2029b" },
		"not UTF-8":             func(r *services.AccessRequest) { r.Reason = "\xff" },
		"a long reason":         func(r *services.AccessRequest) { r.Reason = strings.Repeat("a", 1025) },
	} {
		r := request(c, "alice")
		edit(&r)
		wantKind(t, what, r.Check(), fault.BadInput)
	}
	check(t, request(c, "alice").Check())
}
