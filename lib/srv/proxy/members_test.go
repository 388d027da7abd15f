package proxy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// whoami is an authority that answers every call with who it takes the caller
// for; the token "bad" is refused.
func whoami(rw http.ResponseWriter, r *http.Request) {
	p, _ := rpc.PeerFrom(r.Context())
	if r.URL.Query().Get("token") == "bad" {
		rw.WriteHeader(http.StatusForbidden)
		return
	}
	switch {
	case p.Identity != nil:
		fmt.Fprintf(rw, "%s %s from %s", p.Identity.Kind, cmp.Or(string(p.Identity.MemberName), string(p.Identity.User)), p.Addr.Addr())
	case p.Joiner != nil:
		fmt.Fprintf(rw, "joiner %s from %s", ssh.FingerprintSHA256(p.Joiner), p.Addr.Addr())
	default:
		fmt.Fprint(rw, "nobody")
	}
}

// call posts to path on an accessd-api channel of conn and returns status and
// answer.
func call(t *testing.T, conn ssh.Conn, path, contentType string) (int, string) {
	t.Helper()
	ch, reqs, err := conn.OpenChannel(sshwire.ChannelAPI, nil)
	if err != nil {
		t.Fatalf("open %s: %v", sshwire.ChannelAPI, err)
	}
	go ssh.DiscardRequests(reqs)
	nc := rpc.ChannelConn(ch, conn.LocalAddr(), conn.RemoteAddr())
	defer nc.Close()
	client := rpc.Client(func(context.Context) (net.Conn, error) { return nc, nil })
	defer client.CloseIdleConnections()
	res, err := client.Post(rpc.BaseURL+path, contentType, strings.NewReader(""))
	if err != nil {
		t.Fatalf("post %s: %v", path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// nest opens a connection to the authority inside conn, as user with key.
func nest(t *testing.T, w *world, conn ssh.Conn, origin, user string, key ssh.Signer) (ssh.Conn, error) {
	t.Helper()
	addr := netip.MustParseAddrPort(origin)
	raw, err := openAuthority(conn, addr)
	if err != nil {
		t.Fatalf("open %s: %v", sshwire.ChannelAuthority, err)
	}
	inner, chans, greqs, err := ssh.NewClientConn(raw, "127.0.0.1:22", w.client(user, pubkey(key)))
	if err != nil {
		return nil, err
	}
	client := ssh.NewClient(inner, chans, greqs)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// openAuthority opens a way to the authority inside conn.
func openAuthority(conn ssh.Conn, origin netip.AddrPort) (net.Conn, error) {
	ch, reqs, err := conn.OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{OriginAddr: origin.Addr().String(), OriginPort: uint32(origin.Port())}.Marshal())
	if err != nil {
		return nil, err
	}
	go ssh.DiscardRequests(reqs)
	return rpc.ChannelConn(ch, conn.LocalAddr(), conn.RemoteAddr()), nil
}

const joinPath = "/" + accessdv1connect.JoinServiceName + "/Join"

// TestNestedConnections: who is whom, and from where, on connections that end at
// the authority inside another.
func TestNestedConnections(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Authority = http.HandlerFunc(whoami) })
	node, proxy := w.member(sshca.KindNode, idN2, "n2"), w.member(sshca.KindProxy, idProxy, "edge")
	_, key := sshca.Generate()
	fp := ssh.FingerprintSHA256(key.PublicKey())
	proto := "application/proto"
	const lie = "192.0.2.9:99" // what the outer peer says of the origin

	for _, c := range []struct {
		name       string
		outer      ssh.Conn
		user       string
		key        ssh.Signer
		path, want string
	}{
		{"node through its own connection", w.must("n2", pubkey(node)), "n2", node, "/x", "node n2 from 127.0.0.1"},
		{"node through a proxy", w.must("edge", pubkey(proxy)), "n2", node, "/x", "node n2 from 192.0.2.9"},
		{"proxy through its own connection", w.must("edge", pubkey(proxy)), "edge", proxy, "/x", "proxy edge from 192.0.2.9"},
		{"joiner", w.must(JoinUser, pubkey(key)), JoinUser, key, joinPath, "joiner " + fp + " from 127.0.0.1"},
		{"joiner through a proxy", w.must("edge", pubkey(proxy)), JoinUser, key, joinPath, "joiner " + fp + " from 192.0.2.9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner, err := nest(t, w, c.outer, lie, c.user, c.key)
			if err != nil {
				t.Fatal(err)
			}
			if status, got := call(t, inner, c.path, proto); status != http.StatusOK || got != c.want {
				t.Errorf("answer %d %q, want %q", status, got, c.want)
			}
		})
	}
	t.Run("people, behind a proxy only", func(t *testing.T) {
		inner, err := nest(t, w, w.must("edge", pubkey(proxy)), lie, "alice", w.person("alice"))
		if err != nil {
			t.Fatal(err)
		}
		if status, got := call(t, inner, "/x", proto); status != http.StatusOK || got != "user alice from 192.0.2.9" {
			t.Errorf("answer %d %q", status, got)
		}
		for _, kind := range []string{sshwire.ChannelSession, sshwire.ChannelDirectTCPIP, sshwire.ChannelAuthority} {
			if _, _, err := inner.OpenChannel(kind, nil); err == nil {
				t.Errorf("%s was opened", kind)
			}
		}
		for name, outer := range map[string]ssh.Conn{"node": w.must("n2", pubkey(node)), "joiner": w.must(JoinUser, pubkey(key))} {
			if _, err := nest(t, w, outer, lie, "alice", w.person("alice")); err == nil {
				t.Errorf("a person behind a %s was let in", name)
			}
		}
		for _, user := range []string{"bob", "root@n1"} {
			if _, err := nest(t, w, w.must("edge", pubkey(proxy)), lie, user, w.person("alice")); err == nil {
				t.Errorf("alice was let in as %q", user)
			}
		}
		if _, err := nest(t, w, w.must("edge", pubkey(proxy)), lie, "alice", key); err == nil {
			t.Error("a plain key was let in")
		}
	})
	t.Run("a proxy must say where from", func(t *testing.T) {
		_, _, err := w.must("edge", pubkey(proxy)).OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{OriginAddr: "UNKNOWN"}.Marshal())
		if err == nil || !strings.Contains(err.Error(), "want an address") {
			t.Errorf("open = %v", err)
		}
	})
	t.Run("no channel but the API inside", func(t *testing.T) {
		inner, err := nest(t, w, w.must("n2", pubkey(node)), lie, "n2", node)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{sshwire.ChannelAuthority, sshwire.ChannelSession, sshwire.ChannelDirectTCPIP} {
			if _, _, err := inner.OpenChannel(kind, nil); err == nil {
				t.Errorf("%s was opened", kind)
			}
		}
	})
}

// TestMemberAPI: a member's channel reaches the tunnel service and, where the
// authority is, its services.
func TestMemberAPI(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Authority = http.HandlerFunc(whoami) })
	conn := w.must("n2", pubkey(w.member(sshca.KindNode, idN2, "n2")))
	if _, got := call(t, conn, "/tunnel/x", "application/proto"); got != "tunnel of n2" {
		t.Errorf("tunnel service answers %q", got)
	}
	if _, got := call(t, conn, "/x", "application/proto"); got != "node n2 from 127.0.0.1" {
		t.Errorf("the authority answers %q", got)
	}
}

// TestJoinerReachesJoinOnly is F18 at the door: a joiner calls one service, and
// what it tries in vain counts against its source.
func TestJoinerReachesJoinOnly(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Authority = http.HandlerFunc(whoami) })
	_, key := sshca.Generate()
	proxy := w.member(sshca.KindProxy, idProxy, "edge")
	inner, err := nest(t, w, w.must(JoinUser, pubkey(key)), "192.0.2.9:1", JoinUser, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, contentType string
		status            int
		failed, protocol  int // offences so far
	}{
		{joinPath, "application/proto", http.StatusOK, 0, 0},
		{joinPath + "?token=bad", "application/proto", http.StatusForbidden, 1, 0},
		{joinPath + "?token=bad", "application/proto", http.StatusForbidden, 2, 0},
		{joinPath, "application/grpc", http.StatusNotFound, 2, 1},
		{"/" + accessdv1connect.MemberServiceName + "/WatchPolicy", "application/proto", http.StatusNotFound, 2, 2},
		{"/" + accessdv1connect.JoinServiceName, "application/proto", http.StatusNotFound, 2, 3},
		{"/x/../" + joinPath, "application/proto", http.StatusNotFound, 2, 4},
	} {
		status, _ := call(t, inner, c.path, c.contentType)
		failed, protocol := w.offend.count(listener.OffenceAuthFailed), w.offend.count(listener.OffenceProtocol)
		if status != c.status || failed != c.failed || protocol != c.protocol {
			t.Errorf("%s (%s): status %d, offences %d and %d; want %d, %d, %d", c.path, c.contentType, status, failed, protocol, c.status, c.failed, c.protocol)
		}
	}
	relayed, err := nest(t, w, w.must("edge", pubkey(proxy)), "192.0.2.9:1", JoinUser, key)
	if err != nil {
		t.Fatal(err)
	}
	before := w.offend.count(listener.OffenceAuthFailed)
	if status, _ := call(t, relayed, joinPath+"?token=bad", "application/proto"); status != http.StatusForbidden {
		t.Errorf("status %d", status)
	}
	if got := w.offend.count(listener.OffenceAuthFailed); got != before {
		t.Error("a proxy was blamed for whom it relays")
	}
}

// TestPassOn: a process without the authority passes nested connections on, and
// says where they come from.
func TestPassOn(t *testing.T) {
	authority := newWorld(t, func(w *world) { w.cfg.Authority = http.HandlerFunc(whoami) })
	link := authority.member(sshca.KindProxy, idProxy, "edge")
	w := newWorld(t, func(w *world) {
		w.cfg.Authority = nil
		w.cfg.OpenAuthority = func(_ context.Context, origin netip.AddrPort) (net.Conn, error) {
			conn := authority.must("edge", pubkey(link))
			ch, reqs, err := conn.OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{OriginAddr: origin.Addr().String(), OriginPort: uint32(origin.Port())}.Marshal())
			if err != nil {
				return nil, err
			}
			go ssh.DiscardRequests(reqs)
			return rpc.ChannelConn(ch, conn.LocalAddr(), conn.RemoteAddr()), nil
		}
	})
	_, key := sshca.Generate()
	inner, err := nest(t, authority, w.must(JoinUser, pubkey(key)), "192.0.2.9:1", JoinUser, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, got := call(t, inner, joinPath, "application/proto"); got != "joiner "+ssh.FingerprintSHA256(key.PublicKey())+" from 127.0.0.1" {
		t.Errorf("the authority answers %q", got)
	}
}

// TestAuthorityAway: a proxy that has lost its link says so.
func TestAuthorityAway(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.cfg.Authority = nil
		w.cfg.OpenAuthority = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }
	})
	_, key := sshca.Generate()
	origin := sshwire.AuthorityOpen{OriginAddr: "192.0.2.1", OriginPort: 1}.Marshal()
	_, _, err := w.must(JoinUser, pubkey(key)).OpenChannel(sshwire.ChannelAuthority, origin)
	if err == nil || !strings.Contains(err.Error(), "the authority is away") || strings.Contains(err.Error(), "EOF") {
		t.Errorf("open = %v", err)
	}
}

// TestRolesOff: what a process is not, it does not let in.
func TestRolesOff(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.People, w.cfg.Tunnels, w.cfg.Authority = nil, nil, nil })
	_, key := sshca.Generate()
	for user, method := range map[string]ssh.AuthMethod{
		"alice": pubkey(key), JoinUser: pubkey(key), "bob": pubkey(w.person("bob")),
	} {
		if c, err := w.dial(user, method); err == nil {
			c.Close()
			t.Errorf("%s was let in", user)
		}
	}
	conn := w.must("n2", pubkey(w.member(sshca.KindNode, idN2, "n2")))
	if ok, _, err := conn.SendRequest(sshwire.RequestTCPIPForward, true, sshwire.TCPIPForward{}.Marshal()); ok || err != nil {
		t.Errorf("tcpip-forward without tunnels: %v, %v", ok, err)
	}
	if _, _, err := conn.OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{}.Marshal()); err == nil || !strings.Contains(err.Error(), "reaches no authority") {
		t.Errorf("%s without authority: %v", sshwire.ChannelAuthority, err)
	}
}

// TestMemberGone: a member that was removed, or whose key was replaced (F08),
// is refused, and cut when it is connected.
func TestMemberGone(t *testing.T) {
	other := func() string {
		_, key := sshca.Generate()
		return authorizedKey(key.PublicKey())
	}
	for _, c := range []struct {
		name   string
		kind   sshca.Kind
		change func(w *world)
		want   sshca.Code
	}{
		{"node removed", sshca.KindNode, func(w *world) { w.policy.remove("node", idN2) }, codeMemberGone},
		{"node joined again", sshca.KindNode, func(w *world) { w.policy.node(services.Node{ID: idN2, Name: "m", MemberKey: other()}) }, codeKeyReplaced},
		{"node renamed", sshca.KindNode, func(w *world) { w.policy.node(services.Node{ID: idN2, Name: "other"}) }, codeMemberGone},
		{"proxy removed", sshca.KindProxy, func(w *world) { w.policy.remove("member", idN2) }, codeMemberGone},
		{"proxy joined again", sshca.KindProxy, func(w *world) {
			w.policy.put("member", idN2, services.Member{ID: idN2, Name: "m", Kind: sshca.KindProxy, MemberKey: other()})
		}, codeKeyReplaced},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			key := w.member(c.kind, idN2, "m")
			conn := w.must("m", pubkey(key))
			start := time.Now()
			c.change(w)
			_ = conn.Wait()
			if took := time.Since(start); took > time.Second {
				t.Errorf("cut after %v, want at most a second", took)
			}
			if again, err := w.dial("m", pubkey(key)); err == nil {
				again.Close()
				t.Error("let in again")
			}
			ev := w.audit.wait(events.AuthRejected, 1)
			if ev[0].Fields["refusal"] != c.want || ev[0].User != names.UserName("m") {
				t.Errorf("auth.rejected = %+v, want %s", ev[0], c.want)
			}
		})
	}
}

// TestJoinerWhoDoesNotJoin: anybody can be a joiner, so it costs their source
// something not to join, and they cannot make key exchanges by the thousand.
func TestJoinerWhoDoesNotJoin(t *testing.T) {
	w := newWorld(t)
	_, key := sshca.Generate()
	conn := w.must(JoinUser, pubkey(key))
	for i := range joinOpens + 1 {
		ch, reqs, err := conn.OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{}.Marshal())
		if err == nil {
			go ssh.DiscardRequests(reqs)
			ch.Close()
		}
		if (err == nil) != (i < joinOpens) {
			t.Errorf("channel %d: %v", i, err)
		}
	}
	conn.Close()
	w.stop()
	if w.offend.count(listener.OffenceNoAuth) == 0 {
		t.Error("no offence")
	}
}

// TestJoinerWhoJoins has done nothing wrong.
func TestJoinerWhoJoins(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Authority = http.HandlerFunc(whoami) })
	_, key := sshca.Generate()
	conn := w.must(JoinUser, pubkey(key))
	inner, err := nest(t, w, conn, "192.0.2.9:1", JoinUser, key)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := call(t, inner, joinPath, "application/proto"); status != http.StatusOK {
		t.Errorf("join: status %d", status)
	}
	inner.Close()
	conn.Close()
	w.stop()
	if got := w.offend.list; len(got) > 0 {
		t.Errorf("offences: %v", got)
	}
}

// TestJoinersAreFew: joiners have proven nothing, so few are in at a time.
func TestJoinersAreFew(t *testing.T) {
	w := newWorld(t)
	_, key := sshca.Generate()
	ended := make(chan error, maxSourceJoiners+1)
	for range maxSourceJoiners + 1 {
		conn, err := w.dial(JoinUser, pubkey(key))
		if err != nil {
			return // the client saw the end before its own success
		}
		t.Cleanup(func() { conn.Close() })
		go func() { ended <- conn.Wait() }()
	}
	select {
	case <-ended: // one too many, whichever was the last to be known
	case <-time.After(30 * time.Second):
		t.Error("one joiner too many was left in")
	}
}

// TestNodesOpenRate: a node cannot make key exchanges by the thousand.
func TestNodesOpenRate(t *testing.T) {
	w := newWorld(t)
	conn := w.must("n2", pubkey(w.member(sshca.KindNode, idN2, "n2")))
	refused := 0
	for range 3 * nodeOpenBurst {
		ch, reqs, err := conn.OpenChannel(sshwire.ChannelAuthority, sshwire.AuthorityOpen{}.Marshal())
		if err != nil {
			refused++
			continue
		}
		go ssh.DiscardRequests(reqs)
		ch.Close()
	}
	if refused < nodeOpenBurst {
		t.Errorf("%d of %d opens refused", refused, 3*nodeOpenBurst)
	}
}
