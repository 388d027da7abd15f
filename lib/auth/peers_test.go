package auth

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
)

// roads lead from an authority to others, as far as they are open.
type roads struct {
	mu sync.Mutex
	to map[names.NodeID]http.RoundTripper
}

// Peer implements peers.
func (r *roads) Peer(id names.NodeID) *http.Client {
	return &http.Client{Transport: road(func(req *http.Request) (*http.Response, error) { return r.at(id).RoundTrip(req) })}
}

type road func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f road) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// at returns the road to an authority.
func (r *roads) at(id names.NodeID) http.RoundTripper {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to := r.to[id]; to != nil {
		return to
	}
	return noPeers{}
}

// set opens a road, or closes it with nil.
func (r *roads) set(id names.NodeID, to http.RoundTripper) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to[id] = to
}

// hub is an authority among others.
type hub struct {
	*world
	*roads

	id   names.NodeID
	peer rpc.Peer // as which it asks others
}

// newHubs starts two authorities on one store, each with a road to the other and
// an event that only its log has: user "one" or "two".
func newHubs(t *testing.T) (one, two *hub) {
	t.Helper()
	one = newHub(t, plan{}, "hub-1")
	two = newHub(t, plan{dir: t.TempDir(), backend: one.back, sealKey: one.dir + "/seal.key"}, "hub-2")
	one.set(two.id, rpc.Local(two.Handler(), one.peer).Transport)
	two.set(one.id, rpc.Local(one.Handler(), two.peer).Transport)
	one.addUser("one", "access")
	two.addUser("two", "access")
	for _, h := range []*hub{one, two} {
		await(t, h.world, func() bool { return len(h.policy.Members()) == 2 })
	}
	return one, two
}

func newHub(t *testing.T, p plan, name string) *hub {
	t.Helper()
	h := &hub{roads: &roads{to: map[names.NodeID]http.RoundTripper{}}, id: names.NewNodeID()}
	p.id, p.change = h.id, func(c *Config) { c.Peers = h.roads }
	h.world = newWorld(t, p)
	m := newMember(sshca.KindAuth, name)
	adm, err := h.AdmitSelf(t.Context(), Self{Kind: sshca.KindAuth, ID: h.id, Name: name, MemberKey: m.key.PublicKey(), HostKey: m.host.PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	h.peer = rpc.Peer{Identity: h.identify(adm.Certificates.GetMember(), name)}
	return h
}

// made returns the users that events say were added.
func made(t *testing.T, list [][]byte) (users []string) {
	t.Helper()
	for _, data := range list {
		ev, err := events.ParseEvent(data)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := ev.Fields["name"].(string)
		users = append(users, name)
	}
	return users
}

var whoWasAdded = &accessdv1.EventFilter{Event: string(events.UserCreate)}

// An answer that lacks a log says which and why, and keeps its place in it.
func TestMissingLogIsNamed(t *testing.T) {
	one, two := newHubs(t)
	list := func(req *accessdv1.ListEventsRequest) *accessdv1.ListEventsResponse {
		t.Helper()
		req.Filter = whoWasAdded
		return must(t, one.admin().ListEvents, req)
	}
	whole := list(&accessdv1.ListEventsRequest{})
	if got := made(t, whole.GetEvents()); !slices.Equal(got, []string{"one", "two"}) || len(whole.GetMissing()) != 0 || whole.GetNextBefore() != "" {
		t.Errorf("both there: %q, missing %v, before %q", got, whole.GetMissing(), whole.GetNextBefore())
	}
	page := list(&accessdv1.ListEventsRequest{Limit: 1})
	back := one.at(two.id)
	one.set(two.id, nil)
	for name, c := range map[string]struct {
		req  *accessdv1.ListEventsRequest
		want []string
	}{
		"newest":        {&accessdv1.ListEventsRequest{}, []string{"one"}},
		"before a page": {&accessdv1.ListEventsRequest{Before: page.GetNextBefore()}, []string{"one"}},
		"after a page":  {&accessdv1.ListEventsRequest{After: whole.GetNextAfter()}, nil},
	} {
		res := list(c.req)
		if got := made(t, res.GetEvents()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		missing := res.GetMissing()
		if len(missing) != 1 || missing[0].GetId() != string(two.id) || missing[0].GetName() != "hub-2" ||
			missing[0].GetReason() != "this process has no way to other authorities" {
			t.Errorf("%s: missing %v", name, missing)
		}
		if res.GetNextBefore() == "" {
			t.Errorf("%s: there is nothing before, though a log is missing", name)
		}
	}
	two.addUser("three", "access")
	one.addUser("four", "access")
	after := list(&accessdv1.ListEventsRequest{After: whole.GetNextAfter()})
	one.set(two.id, back)
	if got := made(t, after.GetEvents()); !slices.Equal(got, []string{"four"}) {
		t.Errorf("while it is away: %q", got)
	}
	if got := made(t, list(&accessdv1.ListEventsRequest{After: after.GetNextAfter()}).GetEvents()); !slices.Equal(got, []string{"three"}) {
		t.Errorf("when it is back: %q, want what was missed and nothing else", got)
	}
	strange := string(names.NewNodeID())
	res := list(&accessdv1.ListEventsRequest{After: strange + ":1"})
	if len(res.GetMissing()) != 1 || res.GetMissing()[0].GetId() != strange || !strings.Contains(res.GetNextAfter(), strange+":1") {
		t.Errorf("an authority that is none: missing %v, after %q", res.GetMissing(), res.GetNextAfter())
	}
	if _, err := call(t, one.admin().ListEvents, &accessdv1.ListEventsRequest{After: "x:1"}); !fault.Is(err, fault.BadInput) {
		t.Errorf("no place: %v, want bad input", err)
	}
	two.stop() // the log of the one who is asked must answer
	if _, err := call(t, two.admin().ListEvents, &accessdv1.ListEventsRequest{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without its own log: %v, want unavailable", err)
	}
}

// A tail goes on in a log that was away with what it missed there, once.
func TestTailThroughAbsence(t *testing.T) {
	one, two := newHubs(t)
	back := one.at(two.id)
	one.set(two.id, nil)
	one.clock.advance(time.Second) // what is older than the tail is not news
	two.clock.advance(time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := one.admin().TailEvents(ctx, connect.NewRequest(&accessdv1.TailEventsRequest{Filter: whoWasAdded, Backlog: 10}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer cancel()
	var got []string
	until := func(what string, done func(*accessdv1.TailEventsResponse) bool) {
		t.Helper()
		for s.Receive() {
			if got = append(got, made(t, s.Msg().GetEvents())...); done(s.Msg()) {
				return
			}
		}
		t.Fatalf("%s: the tail ended with %v", what, s.Err())
	}
	has := func(user string) func(*accessdv1.TailEventsResponse) bool {
		return func(*accessdv1.TailEventsResponse) bool { return slices.Contains(got, user) }
	}
	until("away", func(m *accessdv1.TailEventsResponse) bool { return len(m.GetMissing()) == 1 })
	two.addUser("three", "access")
	one.addUser("four", "access")
	until("the own log", has("four"))
	one.set(two.id, back)
	until("back", has("three"))
	two.addUser("five", "access")
	until("followed", has("five"))
	if want := []string{"one", "four", "three", "five"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// liar is an authority that answers as a test wants.
type liar struct {
	accessdv1connect.UnimplementedPeerServiceHandler

	answers []*accessdv1.ReadEventsResponse
	err     error
	proof   *accessdv1.ProvePeerEventResponse
	hang    bool
}

func (l liar) ReadEvents(ctx context.Context, _ *connect.Request[accessdv1.ReadEventsRequest], s *connect.ServerStream[accessdv1.ReadEventsResponse]) error {
	for _, a := range l.answers {
		if err := s.Send(a); err != nil {
			return err
		}
	}
	if l.hang {
		<-ctx.Done()
	}
	return l.err
}

func (l liar) ProvePeerEvent(context.Context, *connect.Request[accessdv1.ProvePeerEventRequest]) (*connect.Response[accessdv1.ProvePeerEventResponse], error) {
	return connect.NewResponse(l.proof), l.err
}

// road leads to the liar.
func (l liar) road() http.RoundTripper {
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewPeerServiceHandler(l, rpc.ServerOptions(nil)...))
	return rpc.Local(mux, rpc.Peer{}).Transport
}

// What another authority answers is input: what no log could say counts as
// nothing, and its log as missing.
func TestLyingPeer(t *testing.T) {
	one, two := newHubs(t)
	event := must(t, two.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: whoWasAdded, Limit: 1}).GetEvents()[0]
	hello := &accessdv1.ReadEventsResponse{Authority: string(two.id)}
	page := func(a *accessdv1.ReadEventsResponse) liar {
		return liar{answers: []*accessdv1.ReadEventsResponse{hello, a}}
	}
	for name, c := range map[string]struct {
		peer liar
		want string
	}{
		"another authority":  {liar{answers: []*accessdv1.ReadEventsResponse{{Authority: string(one.id)}}}, errPeerOther.Public},
		"no page":            {liar{answers: []*accessdv1.ReadEventsResponse{hello}}, errPeerSilent.Public},
		"nothing":            {liar{}, errPeerSilent.Public},
		"an error":           {liar{err: fault.New(fault.Unavailable, "the audit log cannot be read")}, "the audit log cannot be read"},
		"an unknown error":   {liar{err: errors.New("secret")}, "internal error"},
		"no event":           {page(&accessdv1.ReadEventsResponse{Events: [][]byte{[]byte("{}")}, Entries: []uint64{1}, After: "2"}), errPeerBroken.Public},
		"no numbers":         {page(&accessdv1.ReadEventsResponse{Events: [][]byte{event}, After: "2"}), errPeerBroken.Public},
		"numbers that fall":  {page(&accessdv1.ReadEventsResponse{Events: [][]byte{event, event}, Entries: []uint64{2, 2}, After: "3"}), errPeerBroken.Public},
		"no place after":     {page(&accessdv1.ReadEventsResponse{}), errPeerBroken.Public},
		"a place of several": {page(&accessdv1.ReadEventsResponse{After: "1," + string(one.id) + ":7"}), errPeerBroken.Public},
		"older than nothing": {page(&accessdv1.ReadEventsResponse{After: "2", Before: "1"}), errPeerBroken.Public},
		"too many": {page(&accessdv1.ReadEventsResponse{
			Events: slices.Repeat([][]byte{event}, 11), Entries: []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, After: "12",
		}), errPeerBroken.Public},
	} {
		one.set(two.id, c.peer.road())
		res := must(t, one.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: whoWasAdded, Limit: 10})
		if got := made(t, res.GetEvents()); !slices.Equal(got, []string{"one"}) {
			t.Errorf("%s: shown %q", name, got)
		}
		if m := res.GetMissing(); len(m) != 1 || m[0].GetReason() != c.want {
			t.Errorf("%s: missing %v, want %q", name, m, c.want)
		}
	}
	one.set(two.id, liar{err: fault.New(fault.Unavailable, "half a log"), answers: []*accessdv1.ReadEventsResponse{
		hello, {Events: [][]byte{event}, Entries: []uint64{1}, After: "2", More: true},
	}}.road())
	s, err := one.admin().ExportEvents(t.Context(), connect.NewRequest(&accessdv1.ExportEventsRequest{Filter: whoWasAdded}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	var last *accessdv1.ExportEventsResponse
	for s.Receive() {
		got, last = append(got, made(t, s.Msg().GetEvents())...), s.Msg()
	}
	if s.Err() != nil || !slices.Equal(got, []string{"one", "two"}) || len(last.GetMissing()) != 1 || !strings.Contains(last.GetAfter(), string(two.id)+":2") {
		t.Errorf("an export that broke off: %q, %v, missing %v, place %q", got, s.Err(), last.GetMissing(), last.GetAfter())
	}
}

// A proof from another log counts when it is one, of that event.
func TestProveElsewhere(t *testing.T) {
	one, two := newHubs(t)
	uid := func(h *hub) string {
		ev, err := events.ParseEvent(must(t, h.admin().ListEvents, &accessdv1.ListEventsRequest{
			Filter: &accessdv1.EventFilter{Event: string(events.UserCreate), Text: map[*hub]string{one: "one", two: "two"}[h]},
		}).GetEvents()[0])
		if err != nil {
			t.Fatal(err)
		}
		return ev.UID
	}
	proof := must(t, one.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: "urn:uuid:" + uid(two)}).GetProof()
	proven, err := events.CheckProof([]byte(proof), two.cfg.Keys.AuditVerifierKey())
	if err != nil || proven.Origin != "example/audit/"+string(two.id) {
		t.Errorf("proof of the other log: %+v, %v", proven, err)
	}
	none := string(names.NewNodeID())
	_, err = call(t, one.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: none})
	wantFault(t, err, fault.NotFound, "no event "+none+" in this authority's log")
	for name, c := range map[string]struct {
		peer liar
		want string
	}{
		"of another event":  {liar{proof: &accessdv1.ProvePeerEventResponse{Authority: string(two.id), Proof: proof}}, errPeerBroken.Public},
		"another authority": {liar{proof: &accessdv1.ProvePeerEventResponse{Authority: none, Proof: proof}}, errPeerOther.Public},
		"no proof":          {liar{proof: &accessdv1.ProvePeerEventResponse{Authority: string(two.id), Proof: "x"}}, "its proof does not hold"},
		"one that was changed": {
			liar{proof: &accessdv1.ProvePeerEventResponse{Authority: string(two.id), Proof: strings.Replace(proof, "\n", "\n\n", 1)}}, "its proof does not hold",
		},
		"away": {liar{err: fault.New(fault.Unavailable, "it stops")}, "it stops"},
	} {
		t.Run(name, func(t *testing.T) {
			one.set(two.id, c.peer.road())
			_, err := call(t, one.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: none})
			wantFault(t, err, fault.NotFound, "no log that can be read has the event \""+none+"\"; not read: hub-2 ("+c.want+")")
		})
	}
}

// A peer that says nothing is waited for a while, one that was there for longer.
func TestSilentPeer(t *testing.T) {
	id := names.NewNodeID()
	for name, c := range map[string]struct {
		answers []*accessdv1.ReadEventsResponse
		want    time.Duration
	}{
		"from the beginning": {nil, peerTimeout},
		"then":               {[]*accessdv1.ReadEventsResponse{{Authority: string(id)}}, peerSilence},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := accessdv1connect.NewPeerServiceClient(&http.Client{Transport: liar{answers: c.answers, hang: true}.road()}, rpc.BaseURL, rpc.ClientOptions()...)
				began := time.Now()
				err := peerLog{id, calls}.read(t.Context(), query{limit: 1, newest: true}, func(events.Page) error { return nil })
				if took := time.Since(began); took != c.want || !errors.Is(err, errPeerSilent) {
					t.Errorf("after %v: %v, want silence after %v", took, err, c.want)
				}
			})
		})
	}
}
