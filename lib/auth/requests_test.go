package auth

import (
	"crypto/rand"
	"fmt"
	"slices"
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
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshsig"
)

// A party is a person with a key, a certificate and a line to the authority.
type party struct {
	accessdv1connect.RequestServiceClient
	w    *world
	name string
	key  ssh.Signer
	line string // the certificate
	id   *sshca.Identity
}

// party returns a person who exists.
func (w *world) party(name string) *party {
	w.t.Helper()
	p := &party{w: w, name: name}
	_, p.key = sshca.Generate()
	p.line = w.sign(name, func(r *accessdv1.SignUserRequest) {
		r.PublicKey, r.Ttl = keyLine(p.key.PublicKey()), durationpb.New(8*time.Hour)
	})
	p.id = w.identityOf(p.line)
	p.RequestServiceClient = w.requestsAs(rpc.Peer{Identity: p.id, Addr: clientAddr})
	w.known(name)
	return p
}

func (w *world) requestsAs(p rpc.Peer) accessdv1connect.RequestServiceClient {
	return accessdv1connect.NewRequestServiceClient(rpc.Local(w.Handler(), p), rpc.BaseURL, rpc.ClientOptions()...)
}

// ask makes a request.
func (p *party) ask(role string) *accessdv1.AccessRequest {
	p.w.t.Helper()
	return must(p.w.t, p.CreateRequest, &accessdv1.CreateRequestRequest{Roles: []string{role}, Reason: "ticket 4711", Ttl: durationpb.New(2 * time.Hour)}).GetRequest()
}

// review reviews, unsigned.
func (p *party) review(id, verdict string) (*accessdv1.AccessRequest, error) {
	p.w.t.Helper()
	res, err := call(p.w.t, p.ReviewRequest, &accessdv1.ReviewRequestRequest{Id: id, Verdict: verdict, Certificate: p.line})
	return res.GetRequest(), err
}

// signed reviews with a signature of key, of what change makes of the statement.
func (p *party) signed(id string, key ssh.Signer, change func(string) string) (*accessdv1.AccessRequest, error) {
	p.w.t.Helper()
	prepared := must(p.w.t, p.PrepareReview, &accessdv1.PrepareReviewRequest{Id: id, Verdict: "approve"})
	signature, err := sshsig.Sign(key.PublicKey(), prepared.GetNamespace(), []byte(change(prepared.GetStatement())), func(data []byte) (*ssh.Signature, error) {
		return key.Sign(rand.Reader, data)
	})
	if err != nil {
		p.w.t.Fatal(err)
	}
	res, err := call(p.w.t, p.ReviewRequest, &accessdv1.ReviewRequestRequest{Id: id, Verdict: "approve", Certificate: p.line, Signature: string(signature)})
	return res.GetRequest(), err
}

func asItIs(s string) string { return s }

// A team: alice may ask for dba, which one lead approves; for both, which takes
// a lead and one of security; and for vault, signed.
const teamRoles = `
kind: role
name: developer
allow:
  - {nodes: {env: dev}, logins: [app], actions: [shell]}
  - resources: {requests: [create]}
requests:
  - {roles: [dba], max_ttl: 4h, approvals: [{roles: [lead]}]}
  - {roles: [both], approvals: [{roles: [lead]}, {roles: [lead, security]}]}
  - {roles: [vault], require_signature: true}
  - {roles: [lead], approvals: [{roles: [security]}]}
---
kind: role
name: dba
allow: [{nodes: "*", logins: [postgres], actions: [shell]}]
---
kind: role
name: both
allow: [{nodes: "*", logins: [postgres], actions: [shell]}]
---
kind: role
name: vault
allow: [{nodes: "*", logins: [vault], actions: [exec]}]
---
kind: role
name: lead
allow: [{nodes: "*", logins: [app], actions: [shell]}]
review: [{roles: [dba, both, vault]}]
---
kind: role
name: security
review: [{roles: ["*"]}]
`

func newTeam(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, plan{})
	w.apply(teamRoles)
	w.addUser("lea", "lead")
	w.addUser("lou", "lead")
	w.addUser("sam", "security")
	w.addUser("mallory", "developer")
	return w
}

// TestElevationAtSignIn: what is approved comes with the next sign-in, ends when
// it does, goes along through a proxy, and is gone when it is dropped.
func TestElevationAtSignIn(t *testing.T) {
	w := newTeam(t)
	proxy := w.join(sshca.KindProxy, "edge-1")
	d := w.desk(proxy, "alice")
	d.enrol(w.addUser("alice", "developer"))
	alice, lea := w.party("alice"), w.party("lea")
	r := alice.ask("dba")
	if r.GetState() != "pending" || !slices.Equal(r.GetMissing(), []string{"1 of lead"}) {
		t.Errorf("request = %v, want it pending for one lead", r)
	}
	before, err := d.signIn(goodPassword, d.code())
	if err != nil {
		t.Fatal(err)
	}
	if id := w.identityOf(before.GetCertificate()); slices.Contains(id.Roles, "dba") || id.Requests != nil {
		t.Errorf("before the approval: %+v", id)
	}
	r, err = lea.review(r.GetId(), "approve")
	if err != nil || r.GetState() != "approved" {
		t.Fatalf("approve = %v, %v", r, err)
	}
	w.clock.advance(time.Minute)
	w.rec.take()
	done, err := d.signIn(goodPassword, d.code())
	if err != nil {
		t.Fatal(err)
	}
	second := must(t, proxy.Redeem, &accessdv1.RedeemRequest{Grant: done.GetGrant(), PublicKey: keyLine(proxyKey())})
	delegated := must(t, proxy.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: done.GetCertificate()}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
	})
	for what, line := range map[string]string{
		"sign-in": done.GetCertificate(), "into the agent": second.GetCertificate(), "through a proxy": delegated.GetCertificate(),
	} {
		id := w.identityOf(line)
		if !slices.Equal(id.Roles, []names.RoleName{"dba", "developer"}) || !slices.Equal(id.Requests, []string{r.GetId()}) ||
			!slices.Contains(id.Logins, "postgres") || !id.ValidBefore.Equal(r.GetUntil().AsTime()) {
			t.Errorf("%s: %+v, want dba until %v", what, id, r.GetUntil().AsTime())
		}
	}
	for _, ev := range named(w.rec.take(), events.CertCreate) {
		if list, _ := ev.Fields["requests"].([]string); !slices.Equal(list, []string{r.GetId()}) {
			t.Errorf("cert.create = %+v, want the request", ev.Fields)
		}
	}

	must(t, alice.DropRequest, &accessdv1.DropRequestRequest{Id: r.GetId()})
	after := must(t, proxy.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: done.GetCertificate()}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
	})
	if id := w.identityOf(after.GetCertificate()); slices.Contains(id.Roles, "dba") || id.Requests != nil {
		t.Errorf("through a proxy, after it was dropped: %+v", id)
	}
	w.clock.advance(time.Minute)
	if done, err = d.signIn(goodPassword, d.code()); err != nil {
		t.Fatal(err)
	}
	if id := w.identityOf(done.GetCertificate()); slices.Contains(id.Roles, "dba") || id.Requests != nil {
		t.Errorf("sign-in after it was dropped: %+v", id)
	}
}

// TestAssumeNeverWidens: the certificate of an approved request ends with the
// caller's and with the request, and has nothing that neither gives.
func TestAssumeNeverWidens(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer", "access")
	alice, lea := w.party("alice"), w.party("lea")
	r := alice.ask("dba")
	key := proxyKey()
	assume := func(p *party, id string) (*accessdv1.AssumeRequestResponse, error) {
		return call(t, p.AssumeRequest, &accessdv1.AssumeRequestRequest{Id: id, PublicKey: keyLine(key)})
	}
	_, err := assume(alice, r.GetId())
	wantFault(t, err, fault.Conflict, "the request is not approved yet")
	if r, err = lea.review(r.GetId(), "approve"); err != nil {
		t.Fatal(err)
	}
	_, err = assume(lea, r.GetId())
	wantFault(t, err, fault.Denied, `the request is "alice"'s`)

	// A certificate of fewer roles and addresses, which ends sooner.
	alice.id = w.identityOf(w.sign("alice", func(q *accessdv1.SignUserRequest) {
		q.Ttl, q.SourceAddresses = durationpb.New(time.Hour), []string{"203.0.113.0/24"}
	}))
	u, err := w.cfg.Store.User(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	u.Roles = []names.RoleName{"developer", "admin"} // one lost, one gained
	if _, err := w.cfg.Store.UpdateUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	alice.RequestServiceClient = w.requestsAs(rpc.Peer{Identity: alice.id, Addr: clientAddr})
	res, err := assume(alice, r.GetId())
	if err != nil {
		t.Fatal(err)
	}
	id := w.identityOf(res.GetCertificate())
	if !slices.Equal(id.Roles, []names.RoleName{"dba", "developer"}) || !slices.Equal(id.Logins, []names.Login{"app", "postgres"}) {
		t.Errorf("roles %v and logins %v, want dba's and developer's", id.Roles, id.Logins)
	}
	if !id.ValidBefore.Equal(alice.id.ValidBefore) || !slices.Equal(id.SourceAddresses, alice.id.SourceAddresses) || id.Fingerprint != ssh.FingerprintSHA256(key) {
		t.Errorf("identity = %+v, want end and addresses of %+v", id, alice.id)
	}
}

// TestWhoMayReview: each refusal, and that it is an event and no review.
func TestWhoMayReview(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	w.addUser("leader", "developer", "lead") // may ask and may review
	alice, lea, mallory, sam, leader := w.party("alice"), w.party("lea"), w.party("mallory"), w.party("sam"), w.party("leader")

	own := leader.ask("dba")
	w.rec.take()
	_, err := leader.review(own.GetId(), "approve")
	wantFault(t, err, fault.Denied, "the request is yours: nobody reviews their own")
	if evs := named(w.rec.take(), events.AccessRequestReview); len(evs) != 1 || evs[0].Success || evs[0].User != "leader" {
		t.Errorf("events = %+v, want the refusal", evs)
	}
	r := alice.ask("dba")
	_, err = mallory.review(r.GetId(), "approve")
	wantFault(t, err, fault.NotFound, fmt.Sprintf("no access request named %q", r.GetId()))
	_, err = lea.review(r.GetId(), "perhaps")
	wantFault(t, err, fault.BadInput, `verdict "perhaps": want approve or deny`)

	// Who has a reviewer's role by a request reviews nothing with it.
	up := mallory.ask("lead")
	if up, err = sam.review(up.GetId(), "approve"); err != nil || up.GetState() != "approved" {
		t.Fatalf("approve = %v, %v", up, err)
	}
	elevated := must(t, mallory.AssumeRequest, &accessdv1.AssumeRequestRequest{Id: up.GetId(), PublicKey: keyLine(mallory.key.PublicKey())})
	mallory.line = elevated.GetCertificate()
	mallory.id = w.identityOf(mallory.line)
	if !slices.Contains(mallory.id.Roles, "lead") {
		t.Fatalf("identity = %+v, want role lead", mallory.id)
	}
	mallory.RequestServiceClient = w.requestsAs(rpc.Peer{Identity: mallory.id, Addr: clientAddr})
	_, err = mallory.review(r.GetId(), "approve")
	wantFault(t, err, fault.NotFound, fmt.Sprintf("no access request named %q", r.GetId()))

	// Nor whose certificate does not carry the role.
	bare := *lea.id
	bare.Roles = nil
	lea.RequestServiceClient = w.requestsAs(rpc.Peer{Identity: &bare, Addr: clientAddr})
	_, err = lea.review(r.GetId(), "approve")
	wantFault(t, err, fault.NotFound, fmt.Sprintf("no access request named %q", r.GetId()))

	if got := must(t, alice.GetRequest, &accessdv1.GetRequestRequest{Id: r.GetId()}).GetRequest(); got.GetState() != "pending" || len(got.GetReviews()) != 0 {
		t.Errorf("request = %v, want it pending, without a review", got)
	}
	if all := must(t, mallory.ListRequests, &accessdv1.ListRequestsRequest{All: true}).GetRequests(); len(all) != 1 || all[0].GetId() != up.GetId() {
		t.Errorf("mallory sees %v, want her own request alone", all)
	}
	if all := must(t, w.requestsAs(rpc.Peer{Local: true}).ListRequests, &accessdv1.ListRequestsRequest{}).GetRequests(); len(all) != 3 {
		t.Errorf("the admin socket sees %v, want three requests", all)
	}
}

// TestSignedReview: a signature counts that is by the reviewer's key over exactly
// this, and where one is demanded nothing else does.
func TestSignedReview(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	alice, lea, lou := w.party("alice"), w.party("lea"), w.party("lou")
	r := alice.ask("vault")
	if !r.GetSignatureRequired() {
		t.Errorf("request = %v, want a signature required", r)
	}
	other := alice.ask("dba")
	_, stranger := sshca.Generate()
	w.rec.take()
	for what, try := range map[string]func() error{
		"unsigned":        func() error { _, err := lea.review(r.GetId(), "approve"); return err },
		"by a stranger":   func() error { _, err := lea.signed(r.GetId(), stranger, asItIs); return err },
		"by another lead": func() error { _, err := lea.signed(r.GetId(), lou.key, asItIs); return err },
		"another request": func() error {
			_, err := lea.signed(r.GetId(), lea.key, func(string) string {
				return must(t, lea.PrepareReview, &accessdv1.PrepareReviewRequest{Id: other.GetId(), Verdict: "approve"}).GetStatement()
			})
			return err
		},
		"another verdict": func() error {
			_, err := lea.signed(r.GetId(), lea.key, func(s string) string { return strings.Replace(s, "verdict: approve", "verdict: deny", 1) })
			return err
		},
		"no newline":       func() error { _, err := lea.signed(r.GetId(), lea.key, strings.TrimSpace); return err },
		"another's cert":   func() error { c := *lea; c.line = lou.line; _, err := c.signed(r.GetId(), lou.key, asItIs); return err },
		"cert of old user": func() error { c := *lea; c.line = alice.line; _, err := c.review(r.GetId(), "approve"); return err },
	} {
		if err := try(); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, want a denial", what, err)
		}
		evs := named(w.rec.take(), events.AccessRequestReview)
		if len(evs) != 1 || evs[0].Success || evs[0].Error == "" {
			t.Errorf("%s: events %+v, want one refusal", what, evs)
		}
	}
	got, err := lea.signed(r.GetId(), lea.key, asItIs)
	if err != nil || got.GetState() != "approved" || got.GetReviews()[0].GetProof() != "signature" {
		t.Fatalf("signed = %v, %v", got, err)
	}
	ev := named(w.rec.take(), events.AccessRequestReview)[0]
	sig, err := sshsig.Parse([]byte(ev.Fields["signature"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	if err := sig.Verify("accessd-request@example", []byte(ev.Fields["statement"].(string))); err != nil {
		t.Errorf("what the log has of the signature: %v", err)
	}
	if ev.Fields["public_key"] != keyLine(lea.key.PublicKey()) {
		t.Errorf("public_key = %v, want lea's", ev.Fields["public_key"])
	}

	// A denial needs no signature: it gives nobody anything.
	if got, err = lou.review(r.GetId(), "deny"); err != nil || got.GetState() != "denied" {
		t.Errorf("deny after the approval = %v, %v", got, err)
	}
}

// TestEnrolledKeySigns: besides the key of the certificate, one that is enrolled
// for the reviewer.
func TestEnrolledKeySigns(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	alice, lea := w.party("alice"), w.party("lea")
	_, hardware := sshca.Generate()
	must(t, w.admin().AddUserKey, &accessdv1.AddUserKeyRequest{User: "lea", PublicKey: keyLine(hardware.PublicKey())})
	r := alice.ask("vault")
	if got, err := lea.signed(r.GetId(), hardware, asItIs); err != nil || got.GetState() != "approved" {
		t.Errorf("signed = %v, %v", got, err)
	}
}

// TestThresholds: every set, nobody twice, and of those only who still may.
func TestThresholds(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	w.addUser("leah", "lead", "security")
	alice, lea, lou, leah := w.party("alice"), w.party("lea"), w.party("lou"), w.party("leah")
	r := alice.ask("both")
	got, err := leah.review(r.GetId(), "approve")
	if err != nil || got.GetState() != "pending" || len(got.GetMissing()) != 1 {
		t.Fatalf("one who is in both sets = %v, %v, want one approval missing", got, err)
	}
	_, err = leah.review(r.GetId(), "approve")
	wantFault(t, err, fault.Conflict, "you have approved the request already")
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "leah"})
	if got, err = lea.review(r.GetId(), "approve"); err != nil || got.GetState() != "pending" {
		t.Fatalf("after the first reviewer left = %v, %v, want it pending", got, err)
	}
	if got, err = lou.review(r.GetId(), "approve"); err != nil || got.GetState() != "approved" {
		t.Fatalf("the second lead = %v, %v, want it approved", got, err)
	}
	_, err = lea.review(r.GetId(), "approve")
	wantFault(t, err, fault.Conflict, "the request is approved already")
}

func TestMissingApprovals(t *testing.T) {
	lead, security := []names.RoleName{"lead"}, []names.RoleName{"security"}
	either, both := []names.RoleName{"lead", "security"}, []names.RoleName{"lead", "security"}
	set := func(roles []names.RoleName, count int) services.ApprovalSet {
		return services.ApprovalSet{Roles: roles, Count: count}
	}
	for _, c := range []struct {
		name      string
		sets      []services.ApprovalSet
		approvers [][]names.RoleName
		want      string
	}{
		{"nobody yet", []services.ApprovalSet{set(lead, 1), set(security, 2)}, nil, "[1 of lead 2 of security]"},
		{"anybody", []services.ApprovalSet{set(nil, 1)}, [][]names.RoleName{lead}, "[]"},
		{"the wrong role", []services.ApprovalSet{set(lead, 1)}, [][]names.RoleName{security}, "[1 of lead]"},
		{"one in two sets", []services.ApprovalSet{set(lead, 1), set(security, 1)}, [][]names.RoleName{both}, "[1 of security]"},
		{"two in two sets", []services.ApprovalSet{set(lead, 1), set(security, 1)}, [][]names.RoleName{both, lead}, "[]"},
		{"two in two sets, the other way", []services.ApprovalSet{set(lead, 1), set(security, 1)}, [][]names.RoleName{lead, both}, "[]"},
		{"a chain of moves", []services.ApprovalSet{set(either, 1), set(lead, 1), set(nil, 1)}, [][]names.RoleName{lead, both, security}, "[]"},
		{"enough people, of the wrong roles", []services.ApprovalSet{set(lead, 2)}, [][]names.RoleName{lead, security, security}, "[1 of lead]"},
	} {
		if got := fmt.Sprint((&terms{sets: c.sets}).missing(c.approvers)); got != c.want {
			t.Errorf("%s: %s is missing, want %s", c.name, got, c.want)
		}
	}
}

// TestWhatMayBeAskedFor: only what a rule of a role held says, no longer, and
// with a reason that shows as what it is.
func TestWhatMayBeAskedFor(t *testing.T) {
	w := newTeam(t)
	w.apply("kind: role\nname: oncall\nallow: [{resources: {requests: [create]}}]\nrequests:\n  - {roles: [dba], nodes: {env: dev}}\n  - {roles: [dba, vault], nodes: {env: prod}}\n")
	w.addUser("alice", "developer")
	w.addUser("olaf", "oncall")
	w.addUser("nina", "access")
	dev := w.addSSHD("dev-1", map[string]string{"env": "dev"})
	w.addSSHD("prod-1", map[string]string{"env": "prod"})
	w.addSSHD("other-1", nil)
	alice, olaf, nina := w.party("alice"), w.party("olaf"), w.party("nina")
	ask := func(p *party, edit func(*accessdv1.CreateRequestRequest)) (*accessdv1.CreateRequestResponse, error) {
		req := &accessdv1.CreateRequestRequest{Roles: []string{"dba"}, Reason: "why"}
		edit(req)
		return call(t, p.CreateRequest, req)
	}
	for what, c := range map[string]struct {
		who  *party
		edit func(*accessdv1.CreateRequestRequest)
		kind fault.Kind
	}{
		"no right to ask":           {nina, func(*accessdv1.CreateRequestRequest) {}, fault.Denied},
		"a role of no rule":         {alice, func(r *accessdv1.CreateRequestRequest) { r.Roles = []string{"admin"} }, fault.Denied},
		"one good, one not":         {alice, func(r *accessdv1.CreateRequestRequest) { r.Roles = []string{"dba", "admin"} }, fault.Denied},
		"one that is not there":     {alice, func(r *accessdv1.CreateRequestRequest) { r.Roles = []string{"nothing"} }, fault.Denied},
		"one that is held":          {alice, func(r *accessdv1.CreateRequestRequest) { r.Roles = []string{"developer"} }, fault.BadInput},
		"too long":                  {alice, func(r *accessdv1.CreateRequestRequest) { r.Ttl = durationpb.New(5 * time.Hour) }, fault.Denied},
		"a negative time":           {alice, func(r *accessdv1.CreateRequestRequest) { r.Ttl = durationpb.New(-time.Hour) }, fault.BadInput},
		"no reason":                 {alice, func(r *accessdv1.CreateRequestRequest) { r.Reason = "" }, fault.BadInput},
		"a reason of two lines":     {alice, func(r *accessdv1.CreateRequestRequest) { r.Reason = "a\nverdict: approve" }, fault.BadInput},
		"a reason that turns round": {alice, func(r *accessdv1.CreateRequestRequest) { r.Reason = "\u202eabc" }, fault.BadInput},
		"nothing":                   {alice, func(r *accessdv1.CreateRequestRequest) { r.Roles = nil }, fault.BadInput},
		"everywhere, not one node":  {olaf, func(*accessdv1.CreateRequestRequest) {}, fault.Denied},
		"a node of no rule":         {olaf, func(r *accessdv1.CreateRequestRequest) { r.Node = "other-1" }, fault.NotFound},
		"a node of another rule":    {olaf, func(r *accessdv1.CreateRequestRequest) { r.Node, r.Roles = "dev-1", []string{"vault"} }, fault.Denied},
		"a node for which several":  {olaf, func(r *accessdv1.CreateRequestRequest) { r.Node, r.Roles = "prod-1", nil }, fault.BadInput},
	} {
		if res, err := ask(c.who, c.edit); !fault.Is(err, c.kind) {
			t.Errorf("%s = %v, %v, want %v", what, res, err, c.kind)
		}
	}
	res, err := ask(olaf, func(r *accessdv1.CreateRequestRequest) { r.Node, r.Roles = "dev-1", nil })
	if err != nil || res.GetRequest().GetNodeId() != dev.GetId() || !slices.Equal(res.GetRequest().GetRoles(), []string{"dba"}) {
		t.Errorf("one node = %v, %v, want dba there", res, err)
	}
	if got := res.GetRequest().GetTtl().AsDuration(); got != defaultElevation {
		t.Errorf("ttl = %v, want %v", got, defaultElevation)
	}
	for i := range 8 {
		if _, err = ask(alice, func(*accessdv1.CreateRequestRequest) {}); err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
	}
	if _, err = ask(alice, func(*accessdv1.CreateRequestRequest) {}); !fault.Is(err, fault.Conflict) {
		t.Errorf("the ninth open request = %v, want a conflict", err)
	}
}

// TestRequestsEnd: time ends what is pending and what is approved, and says so
// once.
func TestRequestsEnd(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	alice, lea := w.party("alice"), w.party("lea")
	pending, approved := alice.ask("dba"), alice.ask("dba")
	if _, err := lea.review(approved.GetId(), "approve"); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(2*time.Hour - time.Second)
	next, err := w.endRequests(t.Context())
	if want := w.clock.Now().Add(time.Second); err != nil || !next.Equal(want) {
		t.Errorf("next end = %v, %v, want %v", next, err, want)
	}
	w.rec.take()
	w.clock.advance(time.Second)
	_, err = call(t, alice.AssumeRequest, &accessdv1.AssumeRequestRequest{Id: approved.GetId(), PublicKey: keyLine(proxyKey())})
	if !fault.Is(err, fault.Conflict) {
		t.Errorf("assume at the end = %v, want a conflict", err)
	}
	if _, err := w.cfg.Store.Elevation(t.Context(), approved.GetId()); !fault.Is(err, fault.NotFound) {
		t.Errorf("elevation at the end: %v, want none", err)
	}
	for range 2 {
		if _, err := w.endRequests(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, w, func() bool { _, ok := w.policy.Elevation(approved.GetId()); return !ok })
	var evs []events.Event
	await(t, w, func() bool { // the authority may have been first
		evs = append(evs, named(w.rec.take(), events.AccessRequestEnd)...)
		return len(evs) > 0
	})
	if len(evs) != 1 || evs[0].Fields["request"] != approved.GetId() || evs[0].Fields["state"] != "expired" {
		t.Errorf("events = %+v, want one end", evs)
	}
	w.clock.advance(22 * time.Hour)
	_, err = w.party("lea").review(pending.GetId(), "approve")
	if !fault.Is(err, fault.Conflict) {
		t.Errorf("approve behind the deadline = %v, want a conflict", err)
	}
}

// TestUnsignedReviewSaysWhatProvedIt: the certificate of the connection, no other of the
// reviewer's, or a token; what proxies go on with stands for the first.
func TestUnsignedReviewSaysWhatProvedIt(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	edge := w.join(sshca.KindProxy, "edge-1")
	alice, lea, other := w.party("alice"), w.party("lea"), w.party("lea")
	ask := func() string { return alice.ask("dba").GetId() }
	far := w.requestsAs(rpc.Peer{Identity: edge.through(w, lea.line), Addr: clientAddr})
	token := rpc.Service(edge.bearer(w, w.addToken(lea.id, 0).GetSecret(), clientAddr), accessdv1connect.NewRequestServiceClient)
	for name, try := range map[string]struct {
		by          accessdv1connect.RequestServiceClient
		certificate string
		want        string // the proof; "" is refused
	}{
		"here":                       {lea, lea.line, services.ProofConnection},
		"here, and nothing shown":    {lea, "", services.ProofConnection},
		"here, another of hers":      {lea, other.line, ""},
		"far away":                   {far, lea.line, services.ProofConnection},
		"far away, another of hers":  {far, other.line, ""},
		"a token":                    {token, "", services.ProofAPIToken},
		"a token, its certificate":   {token, lea.line, services.ProofAPIToken},
		"a token, and another shown": {token, other.line, ""},
	} {
		w.rec.take()
		res, err := call(t, try.by.ReviewRequest, &accessdv1.ReviewRequestRequest{Id: ask(), Verdict: "deny", Certificate: try.certificate})
		evs := named(w.rec.take(), events.AccessRequestReview)
		switch {
		case try.want == "":
			wantFault(t, err, fault.Denied, "the certificate is not the one that let the connection in")
			if len(evs) != 1 || evs[0].Success {
				t.Errorf("%s: events %+v, want one refusal", name, evs)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			if r := res.GetRequest().GetReviews(); len(r) != 1 || r[0].GetProof() != try.want || len(evs) != 1 || evs[0].Fields["proof"] != try.want {
				t.Errorf("%s: %v, events %+v, want proof %s", name, r, evs, try.want)
			}
		}
	}
}

// TestReviewIsRecordedFirst: without its event an approval is none.
func TestReviewIsRecordedFirst(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	alice, lea := w.party("alice"), w.party("lea")
	r := alice.ask("dba")
	w.rec.breakFor(events.AccessRequestReview)
	if _, err := lea.review(r.GetId(), "approve"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("approve = %v, want unavailable", err)
	}
	w.rec.breakFor()
	got := must(t, alice.GetRequest, &accessdv1.GetRequestRequest{Id: r.GetId()}).GetRequest()
	if got.GetState() != "pending" || len(got.GetReviews()) != 0 {
		t.Errorf("request = %v, want it as it was", got)
	}
}

// TestWatchRequests: who may see a request is told of each change of it, and
// nobody else.
func TestWatchRequests(t *testing.T) {
	w := newTeam(t)
	w.addUser("alice", "developer")
	alice, lea, mallory := w.party("alice"), w.party("lea"), w.party("mallory")
	old := alice.ask("dba")
	watch := func(p *party) func() string {
		s, err := p.WatchRequests(t.Context(), connect.NewRequest(&accessdv1.WatchRequestsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return func() string {
			if !s.Receive() {
				t.Fatalf("the stream of %s ended: %v", p.name, s.Err())
			}
			if s.Msg().GetSynced() {
				return "synced"
			}
			return s.Msg().GetRequest().GetId() + " " + s.Msg().GetRequest().GetState()
		}
	}
	hers, strangers := watch(lea), watch(mallory)
	for _, want := range []string{old.GetId() + " pending", "synced"} {
		if got := hers(); got != want {
			t.Errorf("lea is told %q, want %q", got, want)
		}
	}
	if got := strangers(); got != "synced" {
		t.Errorf("mallory is told %q, want synced", got)
	}
	if _, err := lea.review(old.GetId(), "approve"); err != nil {
		t.Fatal(err)
	}
	own := mallory.ask("dba")
	if got, want := hers(), old.GetId()+" approved"; got != want {
		t.Errorf("lea is told %q, want %q", got, want)
	}
	if got, want := strangers(), own.GetId()+" pending"; got != want {
		t.Errorf("mallory is told %q, want %q", got, want)
	}
}
