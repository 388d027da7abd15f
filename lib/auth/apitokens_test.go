package auth

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// passing calls the authority as a member passes calls on.
type passing struct {
	next   http.RoundTripper
	bearer rpc.Bearer
}

func (p passing) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Path = rpc.TokenPrefix + r.URL.Path
	p.bearer.PassOn(out.Header)
	return p.next.RoundTrip(out)
}

// bearer returns what a program with a token can call through a member.
func (m *member) bearer(w *world, token string, from netip.AddrPort) *http.Client {
	next := rpc.Local(w.Handler(), rpc.Peer{Identity: m.identity, Addr: clientAddr}).Transport
	return &http.Client{Transport: passing{next, rpc.Bearer{Token: token, Addr: from}}}
}

func apiTokens(h *http.Client) accessdv1connect.APITokenServiceClient {
	return rpc.Service(h, accessdv1connect.NewAPITokenServiceClient)
}

// addToken makes a token for whoever has a certificate.
func (w *world) addToken(id *sshca.Identity, ttl time.Duration) *accessdv1.AddAPITokenResponse {
	w.t.Helper()
	c := apiTokens(rpc.Local(w.Handler(), rpc.Peer{Identity: id, Addr: clientAddr}))
	return must(w.t, c.AddAPIToken, &accessdv1.AddAPITokenRequest{Ttl: durationpb.New(ttl), Note: "report"})
}

func listUsers(t *testing.T, h *http.Client) error {
	t.Helper()
	_, err := call(t, rpc.Service(h, accessdv1connect.NewUserServiceClient).ListUsers, &accessdv1.ListUsersRequest{})
	return err
}

// rejected returns why tokens were refused, as the log has it.
func (w *world) rejected() (reasons []string) {
	for _, ev := range named(w.rec.take(), events.AuthRejected) {
		if ev.Proto == protoHTTPS && ev.AddrRemote != "" {
			reasons = append(reasons, ev.Error)
		}
	}
	return reasons
}

// TestTokenIsWorthItsCertificate: what ends the certificate, or what that lets its
// person do, ends it for the token; and so do the token's own end and removal.
func TestTokenIsWorthItsCertificate(t *testing.T) {
	w := newWorld(t, plan{})
	proxy := w.join(sshca.KindProxy, "edge-1")
	for _, name := range []string{"root", "ada", "eva", "lea", "ida", "uma"} {
		w.addUser(name, "admin")
	}
	await(t, w, func() bool { _, ok := w.policy.User("uma"); return ok })
	admin := w.admin()
	pinned := must(t, admin.SignUser, &accessdv1.SignUserRequest{
		Name: "ida", PublicKey: keyLine(proxyKey()), Ttl: durationpb.New(time.Hour), SourceAddresses: []string{"192.0.2.1"},
	})
	pinnedID, err := w.cfg.Keys.Trust().CheckUser(parseCert(t, pinned.GetCertificate()), sshca.Peer{SSHUser: "ida", Addr: netip.MustParseAddr("192.0.2.1"), Now: w.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	roots := w.person("root")
	for name, tc := range map[string]struct {
		id    *sshca.Identity
		ttl   time.Duration
		end   func(token *accessdv1.AddAPITokenResponse)
		words string // of the refusal
	}{
		"its own end": {w.person("root"), time.Minute, func(*accessdv1.AddAPITokenResponse) { w.clock.advance(time.Minute) }, "the API token is not good, or not good any more"},
		"its removal": {roots, 0, func(r *accessdv1.AddAPITokenResponse) {
			c := apiTokens(rpc.Local(w.Handler(), rpc.Peer{Identity: roots}))
			must(t, c.RemoveAPIToken, &accessdv1.RemoveAPITokenRequest{Id: r.GetToken().GetId()})
		}, "the API token is not good, or not good any more"},
		"the role": {w.person("ada"), 0, func(*accessdv1.AddAPITokenResponse) {
			u, err := w.cfg.Store.User(t.Context(), "ada")
			if err != nil {
				t.Fatal(err)
			}
			u.Roles = nil
			if _, err := w.cfg.Store.UpdateUser(t.Context(), u); err != nil {
				t.Fatal(err)
			}
		}, "you may not read users"},
		"the person": {w.person("eva"), 0, func(*accessdv1.AddAPITokenResponse) {
			must(t, admin.RemoveUser, &accessdv1.RemoveUserRequest{Name: "eva"})
		}, "the API token is not good, or not good any more"},
		"a lock": {w.person("lea"), 0, func(*accessdv1.AddAPITokenResponse) {
			if _, err := w.cfg.Store.CreateLock(t.Context(), services.Lock{ID: services.NewLockID(), Target: services.LockTarget{User: "lea"}, Created: w.clock.Now()}); err != nil {
				t.Fatal(err)
			}
		}, "locked"},
		"another place": {pinnedID, 0, func(*accessdv1.AddAPITokenResponse) {}, "the API token is not good, or not good any more"},
	} {
		t.Run(name, func(t *testing.T) {
			token := w.addToken(tc.id, tc.ttl)
			calls := proxy.bearer(w, token.GetSecret(), clientAddr)
			if name == "another place" {
				if err := listUsers(t, proxy.bearer(w, token.GetSecret(), netip.MustParseAddrPort("192.0.2.1:1"))); err != nil {
					t.Errorf("at the place of the certificate: %v", err)
				}
			} else if err := listUsers(t, calls); err != nil {
				t.Fatalf("before: %v", err)
			}
			tc.end(token)
			await(t, w, func() bool { return listUsers(t, calls) != nil })
			err := listUsers(t, calls)
			if !fault.Is(err, fault.Denied) || !strings.HasPrefix(fault.Public(err), tc.words) {
				t.Errorf("after: %v, want denied, %q", err, tc.words)
			}
		})
	}
}

// TestTokenEndsWithItsCertificate: one asked to last longer does not.
func TestTokenEndsWithItsCertificate(t *testing.T) {
	w := newWorld(t, plan{})
	proxy := w.join(sshca.KindProxy, "edge-1")
	w.addUser("root", "admin")
	await(t, w, func() bool { _, ok := w.policy.User("root"); return ok })
	id := w.person("root")
	token := w.addToken(id, 5*time.Hour)
	if got := token.GetToken().GetExpires().AsTime(); !got.Equal(id.ValidBefore) {
		t.Errorf("the token ends at %v, the certificate at %v", got, id.ValidBefore)
	}
	stored, err := w.cfg.Store.APIToken(t.Context(), token.GetToken().GetId())
	if err != nil || strings.Contains(token.GetSecret(), stored.SecretHash) || strings.Contains(stored.SecretHash, strings.Split(token.GetSecret(), ".")[1]) {
		t.Errorf("the store has %+v, %v", stored, err)
	}
	w.clock.advance(time.Hour)
	wantFault(t, listUsers(t, proxy.bearer(w, token.GetSecret(), clientAddr)), fault.Denied, "the API token is not good, or not good any more")
}

// TestOnlyProxiesPassCallsOn: a token in anybody else's hands is refused, a wrong
// one at a proxy is nobody's, least of all the proxy's.
func TestOnlyProxiesPassCallsOn(t *testing.T) {
	w := newWorld(t, plan{})
	proxy, node := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-1")
	w.addUser("root", "admin")
	await(t, w, func() bool { _, ok := w.policy.User("root"); return ok })
	person := w.person("root")
	good := w.addToken(person, 0).GetSecret()
	for name, peer := range map[string]rpc.Peer{"a node": {Identity: node.identity}, "a person": {Identity: person}, "the admin socket": {Local: true}, "nobody": {}} {
		h := &http.Client{Transport: passing{rpc.Local(w.Handler(), peer).Transport, rpc.Bearer{Token: good, Addr: clientAddr}}}
		if err := listUsers(t, h); !fault.Is(err, fault.Denied) || fault.Public(err) != "permission denied" {
			t.Errorf("passed on by %s: %v, want denied", name, err)
		}
	}
	w.rec.take()
	id, secret, _ := strings.Cut(good, ".")
	for name, token := range map[string]string{
		"none": "", "no form": "x", "another secret": id + "." + strings.Repeat("a", len(secret)), "another id": apiTokenPrefix + "aaaaaaaaaaaa." + secret,
	} {
		for _, msg := range []struct {
			what string
			call func(*http.Client) error
		}{
			{"of a person's", func(h *http.Client) error { return listUsers(t, h) }},
			{"of a proxy's", func(h *http.Client) error {
				_, err := call(t, rpc.Service(h, accessdv1connect.NewRotationServiceClient).ReadTrust, &accessdv1.ReadTrustRequest{})
				return err
			}},
		} {
			if err := msg.call(proxy.bearer(w, token, clientAddr)); !fault.Is(err, fault.Denied) || connect.CodeOf(err) == connect.CodePermissionDenied {
				t.Errorf("%s, a call %s: %v, want unauthenticated", name, msg.what, err)
			}
		}
		if got := w.rejected(); len(got) != 2 {
			t.Errorf("%s: the log has %q, want two refusals", name, got)
		}
	}
	if err := listUsers(t, proxy.bearer(w, good, netip.AddrPort{})); !fault.Is(err, fault.Denied) {
		t.Errorf("from nowhere: %v, want denied", err)
	}
}

// TestTokensAreTheirPersons: everybody sees and removes their own, an administrator
// all; there is a most.
func TestTokensAreTheirPersons(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("root", "admin")
	w.addUser("alice", "access")
	await(t, w, func() bool { _, ok := w.policy.User("alice"); return ok })
	alice, root := w.person("alice"), w.person("root")
	as := func(id *sshca.Identity) accessdv1connect.APITokenServiceClient {
		return apiTokens(rpc.Local(w.Handler(), rpc.Peer{Identity: id}))
	}
	first, theirs := w.addToken(alice, 0), w.addToken(root, 0)
	count := func(id *sshca.Identity, all bool) int {
		t.Helper()
		return len(must(t, as(id).ListAPITokens, &accessdv1.ListAPITokensRequest{All: all}).GetTokens())
	}
	if a, r, all := count(alice, false), count(root, false), count(root, true); a != 1 || r != 1 || all != 2 {
		t.Errorf("alice sees %d, root %d and %d of all; want 1, 1, 2", a, r, all)
	}
	_, err := call(t, as(alice).ListAPITokens, &accessdv1.ListAPITokensRequest{All: true})
	wantFault(t, err, fault.Denied, "you may not read users")
	_, err = call(t, as(alice).RemoveAPIToken, &accessdv1.RemoveAPITokenRequest{Id: theirs.GetToken().GetId()})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("alice removes root's: %v, want not found", err)
	}
	must(t, as(root).RemoveAPIToken, &accessdv1.RemoveAPITokenRequest{Id: first.GetToken().GetId()})
	for range services.MaxAPITokens {
		w.addToken(alice, 0)
	}
	_, err = call(t, as(alice).AddAPIToken, &accessdv1.AddAPITokenRequest{})
	if !fault.Is(err, fault.Conflict) {
		t.Errorf("one more than the most: %v, want a conflict", err)
	}
	_, err = call(t, as(alice).AddAPIToken, &accessdv1.AddAPITokenRequest{Note: "two\nlines"})
	if !fault.Is(err, fault.BadInput) {
		t.Errorf("a note of two lines: %v, want bad input", err)
	}
}

// TestTokenIsNotMadeWithoutARecord: an event goes before each change.
func TestTokenIsNotMadeWithoutARecord(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	await(t, w, func() bool { _, ok := w.policy.User("alice"); return ok })
	w.rec.breakFor(events.APITokenCreate)
	c := apiTokens(rpc.Local(w.Handler(), rpc.Peer{Identity: w.person("alice")}))
	if _, err := call(t, c.AddAPIToken, &accessdv1.AddAPITokenRequest{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a log: %v, want unavailable", err)
	}
	if list, err := w.cfg.Store.APITokens(context.Background()); err != nil || len(list) != 0 {
		t.Errorf("there are tokens: %v, %v", list, err)
	}
}

// TestStreamEndsWithItsToken: at once, when somebody says so: here, at another
// authority, or by taking away what the token stands for. Others of the person go on.
func TestStreamEndsWithItsToken(t *testing.T) {
	w := newWorld(t, plan{})
	w.tokenBeat = time.Hour // so that nothing but the news ends it
	proxy := w.join(sshca.KindProxy, "edge-1")
	for _, name := range []string{"ada", "eva", "lea", "root"} {
		w.addUser(name, "admin")
	}
	w.known("root")
	root := w.person("root")
	open := func(id *sshca.Identity) (*accessdv1.AddAPITokenResponse, *connect.ServerStreamForClient[accessdv1.WatchRequestsResponse]) {
		t.Helper()
		token := w.addToken(id, 0)
		c := rpc.Service(proxy.bearer(w, token.GetSecret(), clientAddr), accessdv1connect.NewRequestServiceClient)
		stream, err := c.WatchRequests(t.Context(), connect.NewRequest(&accessdv1.WatchRequestsRequest{}))
		if err != nil || !stream.Receive() {
			t.Fatalf("watch: %v, %v", err, stream.Err())
		}
		return token, stream
	}
	_, stays := open(root)
	for name, tc := range map[string]struct {
		user string
		end  func(token string)
	}{
		"removed here": {"root", func(token string) {
			must(t, apiTokens(rpc.Local(w.Handler(), rpc.Peer{Identity: root})).RemoveAPIToken, &accessdv1.RemoveAPITokenRequest{Id: token})
		}},
		"removed elsewhere": {"ada", func(token string) {
			if err := services.NewStore(w.back, w.clock.Now).DeleteAPIToken(t.Context(), token); err != nil {
				t.Error(err)
			}
		}},
		"its person removed": {"eva", func(string) { must(t, w.admin().RemoveUser, &accessdv1.RemoveUserRequest{Name: "eva"}) }},
		"its person locked":  {"lea", func(string) { w.lock(&accessdv1.LockTarget{User: "lea"}) }},
	} {
		token, stream := open(w.person(tc.user))
		tc.end(token.GetToken().GetId())
		for stream.Receive() {
			continue // until it ends
		}
		if !fault.Is(stream.Err(), fault.Denied) {
			t.Errorf("%s: the stream ended with %v, want denied", name, stream.Err())
		}
	}
	w.tokens.endAll() // a watch that began anew: all ask, and go on whose token is there
	w.lock(&accessdv1.LockTarget{Address: clientAddr.Addr().String()})
	for stays.Receive() {
		continue
	}
	wantFault(t, stays.Err(), fault.Denied, "locked: stolen")
	w.tokens.mu.Lock()
	defer w.tokens.mu.Unlock()
	if len(w.tokens.waiting) > 0 {
		t.Errorf("%d tokens are waited for, and no stream is open", len(w.tokens.waiting))
	}
}
