package auth

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// own returns an event as m itself writes it.
func (m *member) own(w *world, name events.Name, code string) events.Event {
	return events.Event{
		UID: uuid.NewString(), Name: name, Code: code, Time: w.clock.Now().UTC(), ClusterName: "example",
		ServerID: string(m.id), ServerHostname: m.name, User: "alice", Success: true,
	}
}

func encode(t *testing.T, evs ...events.Event) *accessdv1.AppendEventsRequest {
	t.Helper()
	req := &accessdv1.AppendEventsRequest{}
	for _, ev := range evs {
		data, err := ev.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		req.Events = append(req.Events, data)
	}
	return req
}

func TestAppendEvents(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	ev := n.own(w, events.SessionStart, "A3000I")
	must(t, n.AppendEvents, encode(t, ev))
	must(t, n.AppendEvents, encode(t, ev)) // sent twice, logged once
	got := w.logged(events.SessionStart)
	if len(got) != 1 || got[0]["uid"] != ev.UID || got[0]["server_id"] != string(n.id) {
		t.Errorf("log = %v", got)
	}
	newer := n.own(w, "session.teleported", "Z9000I") // of a newer version than ours
	must(t, n.AppendEvents, encode(t, newer))
}

// TestNodeWritesAboutItselfOnly: THREATS 18.7.6. A node's credential with
// another node's ids, with the authority's events, with garbage: refused, and
// nothing of the batch is in the log.
func TestNodeWritesAboutItselfOnly(t *testing.T) {
	w := newWorld(t, plan{})
	a, b, p := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-10"), w.join(sshca.KindProxy, "edge-1")
	good := a.own(w, events.SessionStart, "A3000I")
	change := func(f func(*events.Event)) events.Event {
		ev := a.own(w, events.SessionStart, "A3000I")
		f(&ev)
		return ev
	}
	for name, ev := range map[string]events.Event{
		"another node's id":         change(func(ev *events.Event) { ev.ServerID = string(b.id) }),
		"another node's name":       change(func(ev *events.Event) { ev.ServerHostname = b.name }),
		"no id":                     change(func(ev *events.Event) { ev.ServerID = "" }),
		"the authority's":           change(func(ev *events.Event) { ev.ServerID = string(w.cfg.Keys.authority) }),
		"another cluster":           change(func(ev *events.Event) { ev.ClusterName = "other" }),
		"a certificate":             change(func(ev *events.Event) { ev.Name, ev.Code = events.CertCreate, "A1003I" }),
		"a new user":                change(func(ev *events.Event) { ev.Name, ev.Code = events.UserCreate, "A5000I" }),
		"a join":                    change(func(ev *events.Event) { ev.Name, ev.Code = events.NodeJoin, "A4000I" }),
		"a proxy's event":           change(func(ev *events.Event) { ev.Name, ev.Code = events.TunnelUp, "A4003I" }),
		"another's session killed":  change(func(ev *events.Event) { ev.Name, ev.Code = events.SessionKill, "A3003I" }),
		"a malformed uid, like any": change(func(ev *events.Event) { ev.UID = "x" }),
	} {
		_, err := call(t, a.AppendEvents, encode(t, good, ev))
		if !fault.Is(err, fault.Denied) && !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	for _, name := range []events.Name{events.CertCreate, events.UserCreate, events.ProxyJoin} {
		ev := p.own(w, name, "A9000I")
		if _, err := call(t, p.AppendEvents, encode(t, ev)); !fault.Is(err, fault.Denied) {
			t.Errorf("a proxy writes %s: %v, want a denial", name, err)
		}
	}
	if got := w.logged(events.SessionStart); len(got) != 0 {
		t.Errorf("refused batches left %v", got)
	}
	must(t, p.AppendEvents, encode(t, p.own(w, events.TunnelUp, "A4003I")))
	must(t, p.AppendEvents, encode(t, p.own(w, events.Exec, "A3004I"))) // of the node in the proxy's process
}

// TestEveryEventHasAWriter: an event that somebody adds to the table is the
// authority's until the list says whose.
func TestEveryEventHasAWriter(t *testing.T) {
	w := writers()
	for _, spec := range events.Table() {
		if _, ok := w[spec.Name]; !ok {
			t.Errorf("%s has no writer", spec.Name)
		}
	}
	if w[events.CertCreate] != sshca.KindAuth || w[events.SessionStart] != sshca.KindNode {
		t.Errorf("writers = %v", w)
	}
}

func TestRenewIsNeverMore(t *testing.T) {
	w := newWorld(t, plan{})
	m := w.join(sshca.KindNode, "web-1")
	w.clock.advance(12 * time.Hour)
	w.rec.take()
	res := must(t, m.Renew, &accessdv1.RenewRequest{}).GetCertificates()
	for _, c := range []struct{ old, fresh string }{
		{m.joined.GetCertificates().GetMember(), res.GetMember()}, {m.joined.GetCertificates().GetHost(), res.GetHost()},
	} {
		old, fresh := parseCert(t, c.old), parseCert(t, c.fresh)
		if ssh.FingerprintSHA256(old.Key) != ssh.FingerprintSHA256(fresh.Key) || !slices.Equal(old.ValidPrincipals, fresh.ValidPrincipals) ||
			old.KeyId != fresh.KeyId || fresh.Serial == old.Serial || fresh.ValidBefore != old.ValidBefore+12*3600 {
			t.Errorf("renewed %+v into %+v", old, fresh)
		}
	}
	if evs := named(w.rec.take(), events.CertCreate); len(evs) != 2 {
		t.Errorf("events = %+v", evs)
	}
}

func TestDescribe(t *testing.T) {
	w := newWorld(t, plan{})
	m := newMember(sshca.KindNode, "web-1")
	req := m.request(w.token(&accessdv1.AddTokenRequest{Role: "node", Labels: map[string]string{"env": "dev"}}))
	req.Labels = map[string]string{"env": "dev", "team": "a"}
	w.admitted(m, must(t, w.joiner(m.key).Join, req))
	w.rec.take()
	must(t, m.Describe, &accessdv1.DescribeRequest{Labels: map[string]string{"env": "dev", "team": "b"}, Version: "v2"})
	n, err := w.cfg.Store.Node(t.Context(), m.id)
	if err != nil || n.Labels["team"] != "b" || n.Version != "v2" || n.Name != "web-1" {
		t.Errorf("node = %+v, %v", n, err)
	}
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.NodeUpdate {
		t.Errorf("events = %+v, want one node.update", evs)
	}
	must(t, m.Describe, &accessdv1.DescribeRequest{Labels: map[string]string{"env": "dev", "team": "b"}, Version: "v2"})
	if evs := w.rec.take(); len(evs) != 0 {
		t.Errorf("no change recorded %+v", evs)
	}
	for _, labels := range []map[string]string{nil, {"env": "prod"}, {"team": "b"}, {"env": "dev", "a,b": "c"}} {
		if _, err := call(t, m.Describe, &accessdv1.DescribeRequest{Labels: labels}); !fault.Is(err, fault.Denied) && !fault.Is(err, fault.BadInput) {
			t.Errorf("labels %v: %v, want a refusal", labels, err)
		}
	}
}

// A watcher reads a policy stream in the background.
type watcher struct {
	updates chan *accessdv1.PolicyUpdate
	err     chan error
}

func (m *member) watch(t *testing.T) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := m.WatchPolicy(ctx, connect.NewRequest(&accessdv1.WatchPolicyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{make(chan *accessdv1.PolicyUpdate), make(chan error, 1)}
	go func() {
		defer close(w.updates)
		for s.Receive() {
			select {
			case w.updates <- s.Msg():
			case <-ctx.Done():
				return
			}
		}
		w.err <- s.Err()
	}()
	t.Cleanup(func() {
		cancel()
		for range w.updates { // until the reader is gone
		}
		s.Close()
	})
	return w
}

// until applies updates to c until ok.
func (w *watcher) until(t *testing.T, c *services.Cache, ok func() bool) {
	t.Helper()
	for !ok() {
		u, open := <-w.updates
		if !open {
			t.Fatalf("the stream ended: %v", <-w.err)
		}
		if err := c.Apply(u); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchPolicy(t *testing.T) {
	w := newWorld(t, plan{})
	a, b, p := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-10"), w.join(sshca.KindProxy, "edge-1")
	w.addUser("alice", "access")
	nodeCache, proxyCache := services.NewCache(), services.NewCache()
	node, proxy := a.watch(t), p.watch(t)
	node.until(t, nodeCache, func() bool { _, ok := nodeCache.User("alice"); return ok })
	proxy.until(t, proxyCache, func() bool { _, ok := proxyCache.Node(b.id); return ok })
	if _, ok := nodeCache.Node(b.id); ok {
		t.Error("a node sees another")
	}
	if n, ok := nodeCache.NodeByName("web-1"); !ok || n.ID != a.id {
		t.Error("a node does not see itself")
	}
	if got := nodeCache.Trust(); len(got.User) != 1 || pins(got.User)[0] != pins(w.cfg.Keys.Trust().User)[0] {
		t.Errorf("the node trusts %v", got)
	}
	res := must(t, p.Announce, &accessdv1.AnnounceRequest{Full: true, Addresses: []string{"203.0.113.80:3022"}, Up: []string{string(a.id)}})
	if res.GetLease() == "" || res.GetTtl().AsDuration() <= 0 {
		t.Errorf("announce = %v", res)
	}
	proxy.until(t, proxyCache, func() bool { return len(proxyCache.Presence(a.id)) == 1 && len(proxyCache.Proxies()) == 1 })
	await(t, w, func() bool { return len(w.policy.Proxies()) == 1 })
	if got := must(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "host"}); !slices.Equal(got.GetProxyAddresses(), []string{"203.0.113.80:3022"}) {
		t.Errorf("export = %v", got)
	}
	if nodes := must(t, w.admin().ListNodes, &accessdv1.ListNodesRequest{}).GetNodes(); !nodes[0].GetOnline() || nodes[1].GetOnline() {
		t.Errorf("nodes = %v, want web-1 online only", nodes)
	}
	must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "alice"})
	node.until(t, nodeCache, func() bool { _, ok := nodeCache.User("alice"); return !ok })

	// Removed: the stream ends, the way back is closed.
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: string(a.id)})
	for range node.updates { // the removal itself
	}
	wantFault(t, <-node.err, fault.Denied, "this member was removed from the cluster")
	_, err := call(t, a.AppendEvents, encode(t, a.own(w, events.SessionStart, "A3000I")))
	wantFault(t, err, fault.Denied, "permission denied")
}

func (m *member) report(ids ...names.SessionID) *accessdv1.ReportSessionsRequest {
	req := &accessdv1.ReportSessionsRequest{}
	for _, id := range ids {
		req.Sessions = append(req.Sessions, &accessdv1.LiveSession{
			Id: string(id), User: "alice", Login: "root", Client: clientAddr.String(), Kind: "shell", Started: timestamppb.Now(),
		})
	}
	return req
}

func TestSessionsAreKilledWhereTheyAre(t *testing.T) {
	w := newWorld(t, plan{})
	a, b := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-2")
	sid, other := names.NewSessionID(), names.NewSessionID()
	must(t, a.ReportSessions, a.report(sid))
	must(t, b.ReportSessions, b.report(other))
	list := must(t, w.admin().ListSessions, &accessdv1.ListSessionsRequest{}).GetSessions()
	if len(list) != 2 {
		t.Fatalf("sessions = %v", list)
	}
	w.rec.take()
	_, err := call(t, w.admin().KillSession, &accessdv1.KillSessionRequest{Id: string(names.NewSessionID())})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("kill of none: %v", err)
	}
	must(t, w.admin().KillSession, &accessdv1.KillSessionRequest{Id: string(sid), Reason: "maintenance"})
	if evs := w.rec.take(); len(evs) != 1 || evs[0].Name != events.SessionKill || evs[0].SID != sid || evs[0].Fields["by"] != "local:0" {
		t.Errorf("events = %+v", evs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := a.Instructions(ctx, connect.NewRequest(&accessdv1.InstructionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer cancel()
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	if k := s.Msg().GetKillSession(); k.GetSession() != string(sid) || k.GetReason() != "maintenance" || k.GetBy() != "local:0" {
		t.Errorf("instruction = %v", k)
	}
	must(t, a.ReportSessions, a.report()) // it is gone
	if list := must(t, w.admin().ListSessions, &accessdv1.ListSessionsRequest{}).GetSessions(); len(list) != 1 || list[0].GetId() != string(other) {
		t.Errorf("sessions = %v", list)
	}
}

// TestALyingNodeCannotHideASession: a node that reports another's session does
// not draw the order to end it away from where it is.
func TestALyingNodeCannotHideASession(t *testing.T) {
	w := newWorld(t, plan{})
	honest, liar := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-2")
	sid := names.NewSessionID()
	must(t, honest.ReportSessions, honest.report(sid))
	must(t, liar.ReportSessions, liar.report(sid))
	must(t, w.admin().KillSession, &accessdv1.KillSessionRequest{Id: string(sid)})
	for _, n := range []*member{honest, liar} {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := n.Instructions(ctx, connect.NewRequest(&accessdv1.InstructionsRequest{}))
		if err != nil || !s.Receive() || s.Msg().GetKillSession().GetSession() != string(sid) {
			t.Errorf("%s was not told: %v", n.name, err)
		}
		cancel()
		s.Close()
	}
}

func TestReportSessionsBadInput(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	for name, change := range map[string]func(*accessdv1.LiveSession){
		"id":     func(l *accessdv1.LiveSession) { l.Id = "../x" },
		"user":   func(l *accessdv1.LiveSession) { l.User = "a\nb" },
		"login":  func(l *accessdv1.LiveSession) { l.Login = "" },
		"kind":   func(l *accessdv1.LiveSession) { l.Kind = "other" },
		"client": func(l *accessdv1.LiveSession) { l.Client = strings.Repeat("x", 1000) },
	} {
		req := n.report(names.NewSessionID())
		change(req.Sessions[0])
		if _, err := call(t, n.ReportSessions, req); !fault.Is(err, fault.BadInput) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	if _, err := call(t, n.ReportSessions, n.report(make([]names.SessionID, maxLiveSessions+1)...)); !fault.Is(err, fault.BadInput) {
		t.Errorf("too many: %v", err)
	}
}

// TestListEventsInPages: what does not fit into one answer is on the next.
func TestListEventsInPages(t *testing.T) {
	w := newWorld(t, plan{})
	n := w.join(sshca.KindNode, "web-1")
	const total = 120
	var batch []events.Event
	for range total {
		ev := n.own(w, events.Exec, "A3004I")
		ev.Fields = map[string]any{"command": strings.Repeat("x", 60_000)}
		batch = append(batch, ev)
	}
	for part := range slices.Chunk(batch, 40) {
		must(t, n.AppendEvents, encode(t, part...))
	}
	var uids []string
	pages := 0
	for before := ""; ; {
		res := must(t, w.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: &accessdv1.EventFilter{Event: "exec"}, Before: before})
		var page []string
		for _, data := range res.GetEvents() {
			var ev events.Event
			if err := json.Unmarshal(data, &ev); err != nil {
				t.Fatal(err)
			}
			page = append(page, ev.UID)
		}
		uids = append(page, uids...)
		pages++
		if before = res.GetNextBefore(); before == "" {
			break
		}
	}
	var want []string
	for _, ev := range batch {
		want = append(want, ev.UID)
	}
	if !slices.Equal(uids, want) || pages < 3 {
		t.Errorf("%d pages with %d events, want all %d in order on at least 3", pages, len(uids), total)
	}
}

func TestTailAndVerify(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := w.admin().TailEvents(ctx, connect.NewRequest(&accessdv1.TailEventsRequest{
		Filter: &accessdv1.EventFilter{Event: "user.*"}, Backlog: 10,
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer cancel()
	next := func() string {
		if !s.Receive() {
			t.Fatal(s.Err())
		}
		var ev events.Event
		if err := json.Unmarshal(s.Msg().GetEvents()[0], &ev); err != nil {
			t.Fatal(err)
		}
		return string(ev.Name) + " " + string(ev.User)
	}
	if got := next(); got != "user.create alice" {
		t.Errorf("backlog = %q", got)
	}
	w.addUser("bob", "access")
	if got := next(); got != "user.create bob" {
		t.Errorf("next = %q", got)
	}
	res := must(t, w.admin().VerifyLog, &accessdv1.VerifyLogRequest{})
	if res.GetFault() != "" || res.GetSize() == 0 || res.GetVerifierKey() != w.cfg.Keys.AuditVerifierKey() || !strings.HasPrefix(res.GetOrigin(), "example/audit/") {
		t.Errorf("verify = %v", res)
	}
	audit := must(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "audit"})
	if !slices.Equal(audit.GetPublicKeys(), []string{w.cfg.Keys.AuditVerifierKey()}) {
		t.Errorf("export = %v", audit)
	}
	host := must(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "host"})
	if len(host.GetPins()) != 1 || host.GetPins()[0] != pins(w.cfg.Keys.Trust().Host)[0] || !strings.HasPrefix(host.GetPublicKeys()[0], "ssh-ed25519 ") {
		t.Errorf("export = %v", host)
	}
	_, err = call(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "root"})
	wantFault(t, err, fault.BadInput, `CA type "root": want user, host, node, sshd or audit`)
}
