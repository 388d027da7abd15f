package auth

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

func (w *world) locks(p rpc.Peer) accessdv1connect.LockServiceClient {
	return accessdv1connect.NewLockServiceClient(rpc.Local(w.Handler(), p), rpc.BaseURL, rpc.ClientOptions()...)
}

// lock makes a lock that decisions know when lock returns.
func (w *world) lock(target *accessdv1.LockTarget) string {
	w.t.Helper()
	id := must(w.t, w.locks(rpc.Peer{Local: true}).AddLock, &accessdv1.AddLockRequest{Target: target, Message: "stolen"}).GetLock().GetId()
	await(w.t, w, func() bool { return w.knows(id) })
	return id
}

func (w *world) unlock(id string) {
	w.t.Helper()
	must(w.t, w.locks(rpc.Peer{Local: true}).RemoveLock, &accessdv1.RemoveLockRequest{Id: id})
	await(w.t, w, func() bool { return !w.knows(id) })
}

func (w *world) knows(id string) bool {
	for _, l := range w.policy.Locks() {
		if string(l.ID) == id {
			return true
		}
	}
	return false
}

// TestLockedPersonGetsNothing: every way to a certificate, or to act with one, is
// closed to whom a lock describes, and the log names it.
func TestLockedPersonGetsNothing(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	alice := w.desk(p, "alice")
	alice.enrol(w.addUser("alice", "admin"))
	line := w.sign("alice")
	id := w.identityOf(line)
	w.known("alice")
	grant := func() string {
		w.clock.advance(time.Minute) // a code is good once
		s, err := alice.signIn(goodPassword, alice.code())
		if err != nil {
			t.Fatal(err)
		}
		return s.GetGrant()
	}
	for name, target := range map[string]*accessdv1.LockTarget{
		"user":             {User: "alice"},
		"role":             {Role: "admin"},
		"address":          {Address: "203.0.113.0/24"},
		"user and address": {User: "alice", Address: clientAddr.Addr().String()},
	} {
		t.Run(name, func(t *testing.T) {
			open := grant()
			lock := w.lock(target)
			defer w.unlock(lock)
			w.rec.take()
			_, err := call(t, p.Redeem, &accessdv1.RedeemRequest{Grant: open, PublicKey: keyLine(proxyKey())})
			wantFault(t, err, fault.Denied, "locked: stolen")
			tries := map[string]func() error{
				"sign in": func() error {
					w.clock.advance(time.Minute)
					_, err := alice.signIn(goodPassword, alice.code())
					if fault.Hint(err) != "locked: stolen" {
						t.Errorf("a refused sign-in hints %q, which is all that the person reads", fault.Hint(err))
					}
					return err
				},
				"delegate": func() error {
					_, err := call(t, p.Delegate, &accessdv1.DelegateRequest{
						Credential: &accessdv1.DelegateRequest_Certificate{Certificate: line}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
					})
					return err
				},
				"api": func() error {
					_, err := call(t, w.as(rpc.Peer{Identity: id, Addr: clientAddr}).ListUsers, &accessdv1.ListUsersRequest{})
					return err
				},
			}
			if target.GetAddress() == "" { // an administrator signs for nobody's address
				tries["users sign"] = func() error {
					_, err := call(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(proxyKey()), Ttl: durationpb.New(time.Hour)})
					return err
				}
			}
			for what, try := range tries {
				wantFault(t, try(), fault.Denied, "locked: stolen")
				named := false
				for _, ev := range w.rec.take() {
					named = named || !ev.Success && stringOf(ev.Fields["lock"]) == stringOf(lock)
				}
				if !named {
					t.Errorf("%s: no refusal names the lock", what)
				}
			}
		})
	}
	w.clock.advance(time.Minute)
	if s, err := alice.signIn(goodPassword, alice.code()); err != nil || !s.GetDone() {
		t.Errorf("signing in after the locks: %v, %v", s, err)
	}
}

// TestLockIsAboutAllThatItSays: what a lock does not describe goes on.
func TestLockIsAboutAllThatItSays(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	w.addUser("bob", "access")
	for _, target := range []*accessdv1.LockTarget{
		{User: "bob"},
		{User: "alice", Role: "auditor"},
		{User: "alice", Node: "web-1"},
		{User: "alice", Login: "root"}, // she has another
		{Serial: 1 << 50},
		{Address: "192.0.2.0/24"},
		{Request: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"},
	} {
		w.lock(target)
	}
	w.sign("alice")
}

// through returns what a proxy that is no authority goes on with for line.
func (m *member) through(w *world, line string) *sshca.Identity {
	w.t.Helper()
	return w.identityOf(must(w.t, m.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: line}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
	}).GetCertificate())
}

// TestLockOnACertificateHoldsForWhatStandsForIt: by the serial number of a person's
// certificate a lock ends what was issued on its strength, in one step or two: what a
// proxy goes on with, the API token that was made through it, its stream, the
// certificate of an access request, a review with it. Others of the same person go on.
func TestLockOnACertificateHoldsForWhatStandsForIt(t *testing.T) {
	w := newTeam(t)
	edge := w.join(sshca.KindProxy, "edge-1")
	w.apply("kind: role\nname: report\nallow:\n  - resources: {nodes: [read], users: [read], requests: [create]}\n")
	w.addUser("ada", "report", "developer", "lead")
	ada, other, mallory, sam := w.party("ada"), w.party("ada"), w.party("mallory"), w.party("sam")

	far := edge.through(w, ada.line)
	if far.Serial == ada.id.Serial || !slices.Equal(far.For.Serials, []uint64{ada.id.Serial}) {
		t.Errorf("certificate %d stands for %+v, want %d", far.Serial, far.For, ada.id.Serial)
	}
	if farther := edge.through(w, keyLine(certOf(t, far))); !slices.Equal(farther.For.Serials, []uint64{ada.id.Serial, far.Serial}) {
		t.Errorf("in two steps it stands for %+v, want %d and %d", farther.For, ada.id.Serial, far.Serial)
	}
	r := ada.ask("vault")
	ada.RequestServiceClient = w.requestsAs(rpc.Peer{Identity: far, Addr: clientAddr})
	if _, err := sam.review(r.GetId(), "approve"); !fault.Is(err, fault.Denied) {
		t.Fatalf("unsigned: %v, want a denial", err)
	}
	if _, err := sam.signed(r.GetId(), sam.key, asItIs); err != nil {
		t.Fatal(err)
	}
	assumed := w.identityOf(must(t, ada.AssumeRequest, &accessdv1.AssumeRequestRequest{Id: r.GetId(), PublicKey: keyLine(proxyKey())}).GetCertificate())
	theirs := mallory.ask("dba")

	token, hers := w.addToken(far, 0), w.addToken(other.id, 0)
	calls, goesOn := edge.bearer(w, token.GetSecret(), clientAddr), edge.bearer(w, hers.GetSecret(), clientAddr)
	if err := listUsers(t, calls); err != nil {
		t.Fatal(err)
	}
	stream, err := rpc.Service(calls, accessdv1connect.NewRequestServiceClient).WatchRequests(t.Context(), connect.NewRequest(&accessdv1.WatchRequestsRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatalf("watch: %v, %v", err, stream.Err())
	}
	created := named(w.rec.take(), events.CertCreate)
	if got := created[len(created)-1].Fields["stands_for"]; !slices.Equal(got.([]string), []string{strconv.FormatUint(ada.id.Serial, 10), strconv.FormatUint(far.Serial, 10)}) {
		t.Errorf("cert.create: stands_for %v", got)
	}

	lock := w.lock(&accessdv1.LockTarget{Serial: ada.id.Serial})
	for stream.Receive() {
		continue // until it ends
	}
	wantFault(t, stream.Err(), fault.Denied, "locked: stolen")
	w.rec.take()
	for what, try := range map[string]func() error{
		"the token": func() error { return listUsers(t, calls) },
		"the proxy's certificate": func() error {
			return listUsers(t, rpc.Local(w.Handler(), rpc.Peer{Identity: far, Addr: clientAddr}))
		},
		"the request's certificate": func() error {
			return listUsers(t, rpc.Local(w.Handler(), rpc.Peer{Identity: assumed, Addr: clientAddr}))
		},
		"what would be issued for that": func() error {
			_, err := call(t, edge.Delegate, &accessdv1.DelegateRequest{
				Credential: &accessdv1.DelegateRequest_Certificate{Certificate: keyLine(certOf(t, assumed))}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
			})
			return err
		},
		"a review that shows it": func() error {
			q := *other
			q.line = ada.line
			_, err := q.review(theirs.GetId(), "approve")
			return err
		},
	} {
		wantFault(t, try(), fault.Denied, "locked: stolen")
		refused := slices.ContainsFunc(w.rec.take(), func(ev events.Event) bool {
			return !ev.Success && stringOf(ev.Fields["lock"]) == stringOf(lock)
		})
		if !refused {
			t.Errorf("%s: no refusal names the lock", what)
		}
	}
	if err := listUsers(t, goesOn); err != nil {
		t.Errorf("a token of another certificate of hers: %v", err)
	}
	if _, err := other.review(theirs.GetId(), "approve"); err != nil {
		t.Errorf("a review with another certificate of hers: %v", err)
	}
}

// certOf returns the certificate that id was made of.
func certOf(t *testing.T, id *sshca.Identity) *ssh.Certificate {
	t.Helper()
	key, err := ssh.ParsePublicKey(id.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

// TestNobodyChoosesWhatACertificateStandsFor: a certificate that was not issued on the
// strength of another stands for itself, and one that was stands for that alone, whoever
// asks.
func TestNobodyChoosesWhatACertificateStandsFor(t *testing.T) {
	w := newWorld(t, plan{})
	edge := w.join(sshca.KindProxy, "edge-1")
	ada, eva := w.desk(edge, "ada"), w.desk(edge, "eva")
	first, second := ada.enrol(w.addUser("ada", "access")), eva.enrol(w.addUser("eva", "access"))
	for what, line := range map[string]string{"sign-in": first.GetCertificate(), "users sign": w.sign("ada")} {
		if id := w.identityOf(line); len(id.For.Serials)+len(id.For.Roles)+len(id.For.Requests) != 0 {
			t.Errorf("%s: the certificate stands for %+v", what, id.For)
		}
	}
	u, err := w.cfg.Store.User(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	u.Roles = nil
	if _, err := w.cfg.Store.UpdateUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	id := edge.through(w, first.GetCertificate())
	if want := w.identityOf(first.GetCertificate()); !slices.Equal(id.For.Serials, []uint64{want.Serial}) || !slices.Equal(id.For.Roles, want.Roles) {
		t.Errorf("ada's stands for %+v, want her certificate, and the role that she has lost", id.For)
	}
	if got, want := edge.through(w, second.GetCertificate()).For, w.identityOf(second.GetCertificate()); !slices.Equal(got.Serials, []uint64{want.Serial}) || got.Roles != nil {
		t.Errorf("eva's stands for %+v, want her certificate", got)
	}
}

// TestLockedNode: a locked node gets no certificate and comes back under no other
// key or id; what it has to tell of what it did is taken as long as it is connected.
func TestLockedNode(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Uses: 10})
	for _, target := range []*accessdv1.LockTarget{{Node: "web-1"}, {Node: string(n.id)}, {Serial: n.identity.Serial}} {
		lock := w.lock(target)
		_, err := call(t, n.Renew, &accessdv1.RenewRequest{})
		wantFault(t, err, fault.Denied, "locked: stolen")
		if _, err := call(t, n.ReportSessions, &accessdv1.ReportSessionsRequest{}); err != nil {
			t.Errorf("what it tells of its sessions: %v", err)
		}
		if target.GetNode() != "" {
			twin := newMember(sshca.KindNode, "web-1")
			_, err = call(t, w.joiner(twin.key).Join, twin.request(token))
			wantFault(t, err, fault.Denied, "locked: stolen")
			if evs := named(w.rec.take(), events.TokenRejected); len(evs) != 1 || stringOf(evs[0].Fields["lock"]) != stringOf(lock) {
				t.Errorf("token.rejected = %v, want lock %s", evs, lock)
			}
		}
		w.unlock(lock)
		must(t, n.Renew, &accessdv1.RenewRequest{})
	}
}

// TestLockedBareNode: the same for a node that has only an ssh client.
func TestLockedBareNode(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(p, "node7")
	joined, err := d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
	if err != nil {
		t.Fatal(err)
	}
	lock := w.lock(&accessdv1.LockTarget{Node: "node7"})
	renew := &accessdv1.RenewNodeRequest{Certificate: joined.GetCertificate(), Client: clientAddr.String()}
	_, err = call(t, p.RenewNode, renew)
	wantFault(t, err, fault.Denied, "locked: stolen")
	_, err = d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
	if !fault.Is(err, fault.Denied) {
		t.Errorf("joining again = %v, want denied", err)
	}
	w.unlock(lock)
	must(t, p.RenewNode, renew)
}

// TestLocksExpire: a lock lets in again by itself, by the authority's clock.
func TestLocksExpire(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	admin := w.locks(rpc.Peer{Local: true})
	res := must(t, admin.AddLock, &accessdv1.AddLockRequest{Target: &accessdv1.LockTarget{User: "alice"}, Ttl: durationpb.New(time.Hour)})
	await(t, w, func() bool { return w.knows(res.GetLock().GetId()) })
	sign := &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(proxyKey()), Ttl: durationpb.New(time.Hour)}
	_, err := call(t, w.admin().SignUser, sign)
	wantFault(t, err, fault.Denied, "locked (until "+res.GetLock().GetExpires().AsTime().Format(time.DateTime)+" UTC)")
	if got := must(t, admin.ListLocks, &accessdv1.ListLocksRequest{}).GetLocks(); len(got) != 1 {
		t.Errorf("ListLocks = %v, want one", got)
	}
	w.clock.advance(time.Hour)
	must(t, w.admin().SignUser, sign)
	if got := must(t, admin.ListLocks, &accessdv1.ListLocksRequest{}).GetLocks(); len(got) != 0 {
		t.Errorf("ListLocks after the end = %v, want none", got)
	}
}

// TestLocksAreHeldToTheirForm: what is malformed is refused, and nothing is locked;
// what only does not exist yet is said.
func TestLocksAreHeldToTheirForm(t *testing.T) {
	w := newWorld(t, plan{})
	admin := w.locks(rpc.Peer{Local: true})
	for name, r := range map[string]*accessdv1.AddLockRequest{
		"nothing":      {Target: &accessdv1.LockTarget{}},
		"no target":    {},
		"user":         {Target: &accessdv1.LockTarget{User: "a b"}},
		"role":         {Target: &accessdv1.LockTarget{Role: "*"}},
		"login":        {Target: &accessdv1.LockTarget{Login: "-x"}},
		"node":         {Target: &accessdv1.LockTarget{Node: "a/b"}},
		"address":      {Target: &accessdv1.LockTarget{Address: "10.0.0.1/8"}},
		"request":      {Target: &accessdv1.LockTarget{Request: "1"}},
		"message":      {Target: &accessdv1.LockTarget{User: "alice"}, Message: "a\x1b[2Jb"},
		"long message": {Target: &accessdv1.LockTarget{User: "alice"}, Message: strings.Repeat("x", 257)},
		"ttl":          {Target: &accessdv1.LockTarget{User: "alice"}, Ttl: durationpb.New(-time.Second)},
	} {
		if _, err := call(t, admin.AddLock, r); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
	res := must(t, admin.AddLock, &accessdv1.AddLockRequest{Target: &accessdv1.LockTarget{User: "alcie", Role: "nope", Node: "web-9"}})
	if got := len(res.GetNotes()); got != 3 {
		t.Errorf("notes = %q, want three", res.GetNotes())
	}
	for id, k := range map[string]fault.Kind{"x": fault.BadInput, string(services.NewLockID()): fault.NotFound} {
		if _, err := call(t, admin.RemoveLock, &accessdv1.RemoveLockRequest{Id: id}); !fault.Is(err, k) {
			t.Errorf("RemoveLock %q = %v, want %v", id, err, k)
		}
	}
}

// TestReadKRL: what a revocation list can say of the locks, stock ssh-keygen reads
// there, for a node what is locked on it besides.
func TestReadKRL(t *testing.T) {
	w := newWorld(t, plan{})
	p := w.join(sshca.KindProxy, "edge-1")
	for user, role := range map[string]string{"alice": "access", "bob": "auditor", "carol": "access", "dave": "access"} {
		w.addUser(user, role)
		w.known(user)
	}
	node := w.addSSHD("db-1", nil)
	lines := map[string]string{}
	for _, user := range []string{"alice", "bob", "carol", "dave"} {
		lines[user] = w.sign(user)
	}
	w.lock(&accessdv1.LockTarget{User: "alice"})
	w.lock(&accessdv1.LockTarget{Role: "auditor"})
	w.lock(&accessdv1.LockTarget{User: "carol", Node: "db-1"})
	w.lock(&accessdv1.LockTarget{User: "dave", Login: "root"}) // a list has no word for this
	check := func(what string, krl []byte, want string) {
		t.Helper()
		dir := t.TempDir()
		list := filepath.Join(dir, "krl")
		write(t, list, krl)
		got := ""
		for _, user := range []string{"alice", "bob", "carol", "dave"} {
			cert := filepath.Join(dir, user+"-cert.pub")
			write(t, cert, []byte(lines[user]+"\n"))
			out, _ := exec.Command("ssh-keygen", "-Q", "-f", list, cert).CombinedOutput() // its status says whether one is revoked
			if bytes.HasSuffix(out, []byte("REVOKED\n")) {
				got += user + " "
			}
		}
		if got != want {
			t.Errorf("%s: revoked are %q, want %q", what, got, want)
		}
	}
	admin := w.locks(rpc.Peer{Local: true})
	check("everywhere", must(t, admin.ReadKRL, &accessdv1.ReadKRLRequest{}).GetKrl(), "alice bob ")
	proxy := w.locks(rpc.Peer{Identity: p.identity, Addr: netip.MustParseAddrPort("192.0.2.1:1")})
	check("on db-1", must(t, proxy.ReadKRL, &accessdv1.ReadKRLRequest{Node: node.GetId()}).GetKrl(), "alice bob carol ")
	serial := parseCert(t, lines["dave"]).Serial
	w.lock(&accessdv1.LockTarget{Serial: serial})
	check("a serial number "+strconv.FormatUint(serial, 10), must(t, admin.ReadKRL, &accessdv1.ReadKRLRequest{}).GetKrl(), "alice bob dave ")
	w.lock(&accessdv1.LockTarget{Node: "db-1"})
	check("on db-1, locked", must(t, proxy.ReadKRL, &accessdv1.ReadKRLRequest{Node: node.GetId()}).GetKrl(), "alice bob carol dave ")
	if _, err := call(t, proxy.ReadKRL, &accessdv1.ReadKRLRequest{}); !fault.Is(err, fault.BadInput) {
		t.Errorf("a proxy that names no node: %v, want bad input", err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestBeatsReachFollowers: that there is nothing new is told once to each follower,
// and not in place of news.
func TestBeatsReachFollowers(t *testing.T) {
	f := newFeed()
	f.apply(&accessdv1.PolicyUpdate{Reset_: true, Synced: true})
	fo := f.follow(func(resourceKey) bool { return true })
	defer fo.close()
	next := func() *accessdv1.PolicyUpdate {
		t.Helper()
		u, err := fo.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := next(); !u.GetReset_() || !u.GetSynced() {
		t.Fatalf("first = %v, want everything", u)
	}
	role := &accessdv1.Resource{Key: &accessdv1.ResourceKey{Kind: services.KindRole, Name: "a"}}
	f.apply(&accessdv1.PolicyUpdate{})
	f.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{role}})
	if u := next(); len(u.GetPut()) != 1 {
		t.Errorf("next = %v, want the role", u)
	}
	if u := next(); len(u.GetPut())+len(u.GetRemove()) != 0 || u.GetReset_() || u.GetSynced() {
		t.Errorf("next = %v, want nothing new", u)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if u, err := fo.next(ctx); err == nil {
		t.Errorf("next = %v, want no second beat", u)
	}
}
