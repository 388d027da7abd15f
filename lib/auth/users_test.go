package auth

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

func TestUsers(t *testing.T) {
	w := newWorld(t, plan{})
	w.rec.take()
	res := must(t, w.admin().AddUser, &accessdv1.AddUserRequest{
		Name: "alice", Roles: []string{"access", "auditor"}, Logins: []string{"root"},
		Traits: map[string]*accessdv1.Values{"team": {Values: []string{"red", "blue"}}},
	})
	if want := w.clock.Now().Add(24 * time.Hour); !res.GetInviteExpires().AsTime().Equal(want) {
		t.Errorf("invite expires %v, want %v", res.GetInviteExpires().AsTime(), want)
	}
	if _, err := parseInvite(res.GetInvite()); err != nil {
		t.Errorf("invite %q: %v", res.GetInvite(), err)
	}
	evs := named(w.rec.take(), events.UserCreate)
	if len(evs) != 1 || evs[0].User != "alice" || evs[0].Fields["by"] != "local:0" || !evs[0].Success {
		t.Errorf("events = %+v, want one user.create", evs)
	}
	_, err := call(t, w.admin().AddUser, &accessdv1.AddUserRequest{Name: "alice", Roles: []string{"access"}})
	wantFault(t, err, fault.Conflict, `there is a user named "alice" already`)

	list := must(t, w.admin().ListUsers, &accessdv1.ListUsersRequest{}).GetUsers()
	if len(list) != 1 || list[0].GetName() != "alice" || list[0].GetHasPassword() || list[0].GetInviteExpires() == nil ||
		strings.Join(list[0].GetTraits()["team"].GetValues(), ",") != "red,blue" {
		t.Errorf("users = %v", list)
	}
	again := must(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice", InviteTtl: durationpb.New(time.Hour)})
	if again.GetInvite() == res.GetInvite() {
		t.Error("reset gives the old invite")
	}
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "alice"})
	_, err = call(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "alice"})
	wantFault(t, err, fault.NotFound, `no user named "alice"`)
	var got []events.Name
	for _, ev := range w.rec.take() {
		got = append(got, ev.Name)
	}
	if len(got) != 2 || got[0] != events.UserUpdate || got[1] != events.UserDelete {
		t.Errorf("events = %v, want user.update and user.delete", got)
	}
	must(t, w.admin().AddUser, &accessdv1.AddUserRequest{Name: "alice", Roles: []string{"access"}}) // the name is free again
}

func TestUsersBadInput(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	for _, c := range []struct {
		name   string
		req    *accessdv1.AddUserRequest
		kind   fault.Kind
		public string
	}{
		{"no name", &accessdv1.AddUserRequest{Roles: []string{"access"}}, fault.BadInput, "user name"},
		{"name with a comma", &accessdv1.AddUserRequest{Name: "a,b", Roles: []string{"access"}}, fault.BadInput, `"a,b"`},
		{"name that is a pattern", &accessdv1.AddUserRequest{Name: "*", Roles: []string{"access"}}, fault.BadInput, `"*"`},
		{"name that is a path", &accessdv1.AddUserRequest{Name: "../x", Roles: []string{"access"}}, fault.BadInput, `"../x"`},
		{"name that is policy", &accessdv1.AddUserRequest{Name: "p, admin, *", Roles: []string{"access"}}, fault.BadInput, "p, admin"},
		{"huge name", &accessdv1.AddUserRequest{Name: strings.Repeat("x", 4096), Roles: []string{"access"}}, fault.BadInput, "user name"},
		{"right-to-left", &accessdv1.AddUserRequest{Name: "a\u202eb", Roles: []string{"access"}}, fault.BadInput, "user name"},
		{"no roles", &accessdv1.AddUserRequest{Name: "bob"}, fault.BadInput, "at least one role"},
		{"unknown role", &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"acces"}}, fault.NotFound, `no role named "acces"`},
		{"role twice", &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"access", "access"}}, fault.BadInput, "twice"},
		{"bad login", &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"access"}, Logins: []string{"root,admin"}}, fault.BadInput, "root,admin"},
		{"long invite", &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"access"}, InviteTtl: durationpb.New(1e6 * time.Hour)}, fault.BadInput, "lifetime of the invite"},
		{"negative invite", &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"access"}, InviteTtl: durationpb.New(-1)}, fault.BadInput, "lifetime of the invite"},
	} {
		_, err := call(t, w.admin().AddUser, c.req)
		if !fault.Is(err, c.kind) || !strings.Contains(fault.Public(err), c.public) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.kind, c.public)
		}
	}
	if list := must(t, w.admin().ListUsers, &accessdv1.ListUsersRequest{}).GetUsers(); len(list) != 1 {
		t.Errorf("%d users after refusals, want 1", len(list))
	}
}

func TestSignUser(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	w.rec.take()
	_, key := sshca.Generate()
	res := must(t, w.admin().SignUser, &accessdv1.SignUserRequest{
		Name: "alice", PublicKey: keyLine(key.PublicKey()) + " alice@laptop\n", Ttl: durationpb.New(time.Hour),
		SourceAddresses: []string{"203.0.113.0/24", "2001:db8::1"},
	})
	cert := parseCert(t, res.GetCertificate())
	id, err := w.cfg.Keys.Trust().CheckUser(cert, sshca.Peer{SSHUser: "alice", Addr: clientAddr.Addr(), Now: w.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if len(id.Roles) != 1 || id.Roles[0] != "access" || len(id.Logins) != 2 || !id.ValidBefore.Equal(w.clock.Now().Add(time.Hour)) || len(id.SourceAddresses) != 2 || id.MFA != "" {
		t.Errorf("identity = %+v", id)
	}
	evs := named(w.rec.take(), events.CertCreate)
	if len(evs) != 1 || evs[0].User != "alice" || evs[0].Fields["fingerprint"] != ssh.FingerprintSHA256(key.PublicKey()) || evs[0].Fields["by"] != "local:0" {
		t.Errorf("events = %+v, want one cert.create", evs)
	}
	other := must(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(key.PublicKey())})
	if other.GetSerial() == res.GetSerial() {
		t.Error("two certificates have one serial number")
	}
	if want := w.clock.Now().Add(12 * time.Hour); !other.GetExpires().AsTime().Equal(want) {
		t.Errorf("without a lifetime it expires %v, want %v", other.GetExpires().AsTime(), want)
	}
}

func TestSignUserBadInput(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	_, signer := sshca.Generate()
	key := keyLine(signer.PublicKey())
	cert := must(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: key}).GetCertificate()
	w.rec.take()
	for _, c := range []struct {
		name   string
		req    *accessdv1.SignUserRequest
		public string
	}{
		{"no such user", &accessdv1.SignUserRequest{Name: "bob", PublicKey: key}, `no user named "bob"`},
		{"bad name", &accessdv1.SignUserRequest{Name: "a b", PublicKey: key}, `"a b"`},
		{"no key", &accessdv1.SignUserRequest{Name: "alice"}, "public key: it is empty"},
		{"garbage", &accessdv1.SignUserRequest{Name: "alice", PublicKey: "hello"}, "public key: line 1"},
		{"two keys", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key + "\n" + key}, "public key: line 2"},
		{"private key", &accessdv1.SignUserRequest{Name: "alice", PublicKey: "-----BEGIN OPENSSH PRIVATE KEY-----"}, "private key"},
		{"certificate", &accessdv1.SignUserRequest{Name: "alice", PublicKey: cert}, "this is a certificate"},
		{"options", &accessdv1.SignUserRequest{Name: "alice", PublicKey: `command="x" ` + key}, "options"},
		{"DSA", &accessdv1.SignUserRequest{Name: "alice", PublicKey: dsaKey}, "ssh-dss"},
		{"RSA 1024", &accessdv1.SignUserRequest{Name: "alice", PublicKey: rsa1024}, "1024 bits"},
		{"huge", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key + strings.Repeat(" ", maxKeyLine)}, "bytes"},
		{"too long", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key, Ttl: durationpb.New(721 * time.Hour)}, "lifetime of the certificate: 721h0m0s is more than the most, 720h0m0s"},
		{"negative", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key, Ttl: durationpb.New(-time.Hour)}, "lifetime of the certificate"},
		{"bad source", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key, SourceAddresses: []string{"example.com"}}, `source address "example.com"`},
		{"mapped source", &accessdv1.SignUserRequest{Name: "alice", PublicKey: key, SourceAddresses: []string{"::ffff:10.0.0.1"}}, "source address"},
	} {
		_, err := call(t, w.admin().SignUser, c.req)
		if err == nil || !strings.Contains(fault.Public(err), c.public) {
			t.Errorf("%s: %v, want %q", c.name, err, c.public)
		}
	}
	if evs := named(w.rec.take(), events.CertCreate); len(evs) != 0 {
		t.Errorf("refused certificates left %+v", evs)
	}
}

// TestPinnedRolesNeedASource: a role that pins certificates is not evaded by
// asking at the command line.
func TestPinnedRolesNeedASource(t *testing.T) {
	w := newWorld(t, plan{})
	must(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(pinnedRole)})
	w.addUser("alice", "access", "pinned")
	_, key := sshca.Generate()
	_, err := call(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(key.PublicKey())})
	wantFault(t, err, fault.BadInput, `role "pinned" of user "alice" pins certificates to an address: say which`)
	must(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(key.PublicKey()), SourceAddresses: []string{"203.0.113.7"}})
}

const pinnedRole = `kind: role
name: pinned
allow:
  - nodes: {env: prod}
    logins: [root]
    actions: [shell]
options: {pin_source: true}
`

// TestNothingWithoutItsEvent: audit before effect. When an event cannot be
// written its change is refused as unavailable, and not made.
func TestNothingWithoutItsEvent(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	_, key := sshca.Generate()
	node := newMember(sshca.KindNode, "web-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node"})
	id, _, _ := strings.Cut(token, ".")
	must(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(pinnedRole)})
	attempts := []struct {
		event events.Name
		do    func() error
	}{
		{events.UserCreate, func() error {
			_, err := call(t, w.admin().AddUser, &accessdv1.AddUserRequest{Name: "bob", Roles: []string{"access"}})
			return err
		}},
		{events.UserUpdate, func() error {
			_, err := call(t, w.admin().ResetUser, &accessdv1.ResetUserRequest{Name: "alice"})
			return err
		}},
		{events.UserDelete, func() error {
			_, err := call(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "alice"})
			return err
		}},
		{events.CertCreate, func() error {
			_, err := call(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(key.PublicKey())})
			return err
		}},
		{events.RoleUpdate, func() error {
			_, err := call(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(strings.Replace(pinnedRole, "root", "admin", 1))})
			return err
		}},
		{events.RoleCreate, func() error {
			_, err := call(t, w.admin().ApplyRoles, &accessdv1.ApplyRolesRequest{Yaml: []byte(strings.Replace(pinnedRole, "pinned", "other", 1))})
			return err
		}},
		{events.RoleDelete, func() error {
			_, err := call(t, w.admin().RemoveRole, &accessdv1.RemoveRoleRequest{Name: "pinned"})
			return err
		}},
		{events.TokenCreate, func() error {
			_, err := call(t, w.admin().AddToken, &accessdv1.AddTokenRequest{Role: "node"})
			return err
		}},
		{events.TokenDelete, func() error {
			_, err := call(t, w.admin().RemoveToken, &accessdv1.RemoveTokenRequest{Id: id})
			return err
		}},
		{events.NodeJoin, func() error {
			_, err := call(t, w.joiner(node.key).Join, node.request(token))
			return err
		}},
	}
	before := w.everything()
	for _, a := range attempts {
		w.rec.breakFor(a.event)
		err := a.do()
		wantFault(t, err, fault.Unavailable, "the audit log cannot be written")
		if after := w.everything(); after != before {
			t.Errorf("%s could not be written, yet the state changed:\n%s\n%s", a.event, before, after)
		}
	}
	w.rec.breakFor()
	w.admitted(node, must(t, w.joiner(node.key).Join, node.request(token))) // the failed join used nothing up
	before = w.everything()
	w.rec.breakFor(events.NodeDelete)
	_, err := call(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "web-1"})
	wantFault(t, err, fault.Unavailable, "the audit log cannot be written")
	w.rec.breakFor(events.NodeUpdate)
	_, err = call(t, node.Describe, &accessdv1.DescribeRequest{Labels: map[string]string{"env": "prod"}})
	wantFault(t, err, fault.Unavailable, "the audit log cannot be written")
	if after := w.everything(); after != before {
		t.Errorf("the state changed:\n%s\n%s", before, after)
	}
}

// everything returns the cluster's state as text.
func (w *world) everything() string {
	w.t.Helper()
	var b strings.Builder
	add := func(v any, err error) {
		if err != nil {
			w.t.Fatal(err)
		}
		b.WriteString(stringOf(v))
	}
	ctx := w.t.Context()
	users, err := w.cfg.Store.Users(ctx)
	add(users, err)
	for _, u := range users {
		c, err := w.cfg.Store.Credentials(ctx, u.Name)
		add(c.InviteHash+c.PasswordHash, err)
	}
	roles, err := w.cfg.Store.Roles(ctx)
	add(len(roles), err)
	for _, r := range roles {
		add(string(r.YAML()), nil)
	}
	add(w.cfg.Store.Tokens(ctx))
	add(w.cfg.Store.Nodes(ctx))
	add(w.cfg.Store.Members(ctx))
	return b.String()
}
