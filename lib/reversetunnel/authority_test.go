package reversetunnel

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
)

// whoami asks the authority who is calling.
func whoami(ctx context.Context, calls *http.Client) (string, error) {
	c := accessdv1connect.NewMemberServiceClient(calls, rpc.BaseURL, rpc.ClientOptions()...)
	res, err := c.Announce(ctx, connect.NewRequest(&accessdv1.AnnounceRequest{}))
	if err != nil {
		return "", err
	}
	return res.Msg.GetLease(), nil
}

// relayed makes proxies of the test relay to the authority of another process,
// as a proxy-only process does: over its own agent's link.
func (w *world) relayed(t *testing.T, authority *proxy) (n *node, change func(*proxyConfig)) {
	t.Helper()
	id := names.NewNodeID()
	link := w.startNodeAs(id, "edge", func(cfg *AgentConfig) {
		cfg.Serve = nil
		signer := w.member(id, "edge", sshca.KindProxy)
		cfg.Identity = func() (names.NodeName, ssh.Signer) { return "edge", signer }
	}, authority.addr)
	return link, func(c *proxyConfig) { c.AuthorityHere, c.far = false, link.OpenAuthority }
}

// TestAuthority is reached from a node in each place it can be.
func TestAuthority(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, w *world) *proxy{
		"in the proxy": func(_ *testing.T, w *world) *proxy { return w.startProxy(nil) },
		"behind its door": func(_ *testing.T, w *world) *proxy {
			return w.startProxy(func(c *proxyConfig) { c.AuthorityHere = false })
		},
		"in another process": func(t *testing.T, w *world) *proxy {
			t.Helper()
			_, relay := w.relayed(t, w.startProxy(nil))
			return w.startProxy(relay)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := start(t, w)
			n := w.startNode("n1", nil, p.addr)
			for range 3 {
				got, err := whoami(t.Context(), n.Authority()) // waits for the link
				if err != nil || got != "n1 127.0.0.1" {
					t.Fatalf("whoami = %q, %v, want n1 from its address", got, err)
				}
			}
		})
	}
}

// TestProxyOnlyProcess has a link, its own calls, and no tunnel.
func TestProxyOnlyProcess(t *testing.T) {
	w := newWorld(t)
	auth := w.startProxy(nil)
	link, _ := w.relayed(t, auth)
	if got, err := whoami(t.Context(), link.Authority()); err != nil || got != "edge 127.0.0.1" {
		t.Errorf("whoami = %q, %v", got, err)
	}
	if up := auth.server.Up(); len(up) != 0 {
		t.Errorf("a proxy has a tunnel: %v", up)
	}
	if up := link.Up(); !slices.Equal(up, []names.NodeID{auth.id}) {
		t.Errorf("links to %v, want %v", up, auth.id)
	}
}

// TestAuthorityAway: calls wait for a link as long as they may, then say so
// (F03).
func TestAuthorityAway(t *testing.T) {
	w := newWorld(t)
	n := w.startNode("n1", nil, "127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := whoami(ctx, n.Authority()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("whoami = %v, want unavailable", err)
	}
	if _, err := n.OpenAuthority(ctx, client1); !fault.Is(err, fault.Unavailable) {
		t.Errorf("OpenAuthority = %v, want unavailable", err)
	}
}

// F03: while the authority is away, sessions go on and new ones begin; calls fail
// with a clear word and work again when it is back.
func TestSessionsWithoutAuthority(t *testing.T) {
	w := newWorld(t)
	auth := w.startProxy(nil)
	_, relay := w.relayed(t, auth)
	p := w.startProxy(relay)
	n := w.startNode("n1", nil, p.addr)
	if _, err := whoami(t.Context(), n.Authority()); err != nil {
		t.Fatal(err)
	}
	c := p.dial(n.id)
	auth.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := whoami(ctx, n.Authority()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("whoami without an authority = %v, want unavailable", err)
	}
	c.echo(t)
	p.dial(n.id)
	w.startProxy(func(c *proxyConfig) { c.addr, c.ID = auth.addr, auth.id })
	poll(t, "the authority is back", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := whoami(ctx, n.Authority())
		return err == nil
	})
	c.echo(t)
}

// TestFakeAuthority: a proxy that answers in the authority's place, with a good
// certificate of its own, learns nothing.
func TestFakeAuthority(t *testing.T) {
	w := newWorld(t)
	for name, key := range map[string]ssh.Signer{
		"a proxy's certificate":      w.hostKey(w.host, "edge", "127.0.0.1"),
		"another cluster's":          w.hostKey(w.otherHost, defaults.AuthorityName),
		"a certificate of node's CA": w.hostKey(w.node, defaults.AuthorityName),
	} {
		t.Run(name, func(t *testing.T) {
			p := w.startProxy(func(c *proxyConfig) { c.AuthorityHere, c.nested = false, key })
			n := w.startNode("n1", nil, p.addr)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := whoami(ctx, n.Authority()); !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
				t.Errorf("whoami = %v, want a refusal at once", err)
			}
			_, closeConn, err := joinWith(t, w, p, w.host, "secret")
			if err == nil {
				t.Error("the token was sent to a fake authority")
			}
			closeConn()
		})
	}
}

// joinWith joins through p, with the pin of ca, and returns the answer.
func joinWith(t *testing.T, w *world, p *proxy, ca ssh.Signer, token string) (*accessdv1.JoinResponse, func(), error) {
	t.Helper()
	_, key := sshca.Generate()
	client, closeConn, err := Join(t.Context(), JoinConfig{Address: p.addr, Pins: []string{sshca.Pin(ca.PublicKey())}, Key: key})
	if err != nil {
		return nil, func() {}, err
	}
	res, err := client.Join(t.Context(), connect.NewRequest(&accessdv1.JoinRequest{Token: token}))
	if err != nil {
		return nil, closeConn, err
	}
	if res.Msg.GetId() != ssh.FingerprintSHA256(key.PublicKey()) {
		t.Errorf("the authority saw key %s, want the joiner's", res.Msg.GetId())
	}
	return res.Msg, closeConn, nil
}

// TestJoin through a proxy with the authority, and one without.
func TestJoin(t *testing.T) {
	for _, name := range []string{"in the proxy", "in another process"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.startProxy(nil)
			if name != "in the proxy" {
				_, relay := w.relayed(t, p)
				p = w.startProxy(relay)
			}
			var res *accessdv1.JoinResponse
			poll(t, "join", func() bool { // the relay's own link may not be up yet
				got, closeConn, err := joinWith(t, w, p, w.host, "the-token")
				defer closeConn()
				res = got
				return err == nil
			})
			if res.GetName() != "the-token" {
				t.Errorf("joined as %q", res.GetName())
			}
		})
	}
}

// F18: with a wrong pin nothing that is secret is sent, not even who asks, and
// the person reads what to compare.
func TestJoinWithWrongPin(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	for name, pins := range map[string][]string{
		"another cluster": {sshca.Pin(w.otherHost.PublicKey())},
		"the user CA":     {sshca.Pin(w.user.PublicKey())},
		"not a pin":       {"sha256:00"},
	} {
		t.Run(name, func(t *testing.T) {
			_, key := sshca.Generate()
			_, _, err := Join(t.Context(), JoinConfig{Address: p.addr, Pins: pins, Key: key})
			if !fault.Is(err, fault.Denied) || !strings.Contains(fault.Hint(err), "accessd ca pin") || !strings.Contains(fault.Public(err), p.addr) {
				t.Errorf("Join = %v (hint %q), want denied, with the address and what to do", err, fault.Hint(err))
			}
		})
	}
}

// F18: a man in the middle with his own cluster.
func TestJoinThroughForeignProxy(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(func(c *proxyConfig) { c.hostKey = w.hostKey(w.otherHost, "127.0.0.1") })
	if _, _, err := joinWith(t, w, p, w.host, "secret"); !fault.Is(err, fault.Denied) {
		t.Errorf("join = %v, want denied", err)
	}
}

func TestJoinUnreachable(t *testing.T) {
	_, key := sshca.Generate()
	_, _, err := Join(t.Context(), JoinConfig{Address: "127.0.0.1:1", Pins: []string{"sha256:00"}, Key: key})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "127.0.0.1:1") {
		t.Errorf("Join = %v, want unavailable, with the address", err)
	}
	_, _, err = Join(t.Context(), JoinConfig{Address: "127.0.0.1:1", Key: key})
	if err == nil {
		t.Error("Join without a pin went on")
	}
}

// TestOriginReachesAuthority: the relay tells where the peer comes from.
func TestOriginReachesAuthority(t *testing.T) {
	w := newWorld(t)
	p := w.startProxy(nil)
	link, _ := w.relayed(t, p)
	raw, err := link.OpenAuthority(t.Context(), netip.MustParseAddrPort("198.51.100.9:1234"))
	if err != nil {
		t.Fatal(err)
	}
	signer := w.member(names.NewNodeID(), "n9", sshca.KindNode)
	inner, err := newClient(t.Context(), raw, clientConfig("n9", signer, w.trust().HostKeyCallback(defaults.AuthorityName, time.Now)))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.finish()
	defer raw.Close()
	if got, err := whoami(t.Context(), rpc.Client(inner.openAPI)); err != nil || got != "n9 198.51.100.9" {
		t.Errorf("whoami = %q, %v", got, err)
	}
}
