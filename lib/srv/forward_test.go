package srv

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// open opens a direct-tcpip channel and returns it, or what the person reads.
func open(c *ssh.Client, host string, port uint32) (ssh.Channel, string) {
	ch, requests, err := c.OpenChannel("direct-tcpip", sshwire.DirectTCPIP{Host: host, Port: port, OriginAddr: "127.0.0.1"}.Marshal())
	if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return nil, refused.Message
	}
	go ssh.DiscardRequests(requests)
	return ch, ""
}

// exchange says hello both ways between a and b and lets both end.
func exchange(t *testing.T, a, b io.ReadWriteCloser) {
	t.Helper()
	for _, way := range []struct{ from, to io.ReadWriteCloser }{{a, b}, {b, a}} {
		if _, err := io.WriteString(way.from, "hello"); err != nil {
			t.Fatal(err)
		}
		var got [5]byte
		if _, err := io.ReadFull(way.to, got[:]); err != nil || string(got[:]) != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}

func TestForward(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		addr := netip.MustParseAddr("10.1.2.3")
		x.addresses["db"] = []netip.Addr{addr}
		ch, why := open(c, "db", 5432)
		if why != "" {
			w.t.Fatal(why)
		}
		far := <-x.dialled
		opened := w.journal.named(events.Port)
		if len(opened) != 1 || opened[0].Fields["target"] != "db:5432" || opened[0].Fields["addr"] != "10.1.2.3" || opened[0].Fields["state"] != "open" {
			w.t.Errorf("port events before the connection: %v", opened)
		}
		if d := w.journal.named(events.AccessDecision); len(d) != 1 || d[0].Fields["target"] != "db:5432" {
			w.t.Errorf("decisions %v", d)
		}
		exchange(w.t, ch, far)
		_ = ch.Close()
		_, _ = io.Copy(io.Discard, far)
		_ = far.Close()
		synctest.Wait()
		if all := w.journal.named(events.Port); len(all) != 2 || all[1].Fields["state"] != "closed" || fmt.Sprint(all[1].Fields["bytes_in"]) != "5" {
			w.t.Errorf("port events: %v", all)
		}
	})
}

// A half-close loses nothing of the other direction (gliderlabs' forwarder
// closed both).
func TestForwardHalfClose(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		x.addresses["db"] = []netip.Addr{{}}
		ch, why := open(c, "db", 1)
		if why != "" {
			w.t.Fatal(why)
		}
		far := <-x.dialled
		_ = ch.CloseWrite()
		if b, err := io.ReadAll(far); len(b) != 0 || err != nil {
			w.t.Errorf("far end read %q, %v", b, err)
		}
		long := strings.Repeat("x", 1<<20)
		go func() {
			_, _ = io.WriteString(far, long)
			_ = far.Close()
		}()
		if b, err := io.ReadAll(ch); len(b) != len(long) || err != nil {
			w.t.Errorf("read %d bytes, %v, want %d", len(b), err, len(long))
		}
	})
}

func TestForwardRefused(t *testing.T) {
	private, public := netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("192.0.2.1")
	tests := []struct {
		name, host string
		port       uint32
		addresses  []netip.Addr
		want       string
		decisions  int
	}{
		{"denied address", "metadata", 80, []netip.Addr{private}, "not there", 1},
		{"mapped address", "mapped", 80, []netip.Addr{netip.MustParseAddr("::ffff:169.254.169.254")}, "not there", 1},
		{"own sshd by name", "localhost", 22, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, "a forward to the node's own sshd would go past the rules; no rule names it", 1},
		{"own sshd by any name", "rebind.example", 22, []netip.Addr{netip.MustParseAddr("::1")}, "a forward to the node's own sshd would go past the rules; no rule names it", 1},
		{"own sshd as nowhere", "0.0.0.0", 22, []netip.Addr{netip.MustParseAddr("0.0.0.0")}, "a forward to the node's own sshd would go past the rules; no rule names it", 1},
		{"no port", "db", 0, nil, "direct-tcpip: no host or no port", 0},
		{"good", "www", 80, []netip.Addr{private, public}, "", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
				w.policy.set(func(p *policy) {
					p.targets = func(to authz.Target) (bool, string) {
						if to.Addr == private {
							return false, "not there"
						}
						return false, ""
					}
				})
				x.addresses[test.host] = test.addresses
				ch, why := open(c, test.host, test.port)
				if why != test.want {
					w.t.Errorf("refusal %q, want %q", why, test.want)
				}
				if n := len(w.journal.named(events.AccessDecision)); n != test.decisions {
					w.t.Errorf("%d decisions on record, want %d", n, test.decisions)
				}
				if test.want == "" {
					_ = ch.Close()
					_ = (<-x.dialled).Close()
				} else if n := len(w.journal.named(events.SessionRejected)); n != 1 || len(x.dialled) != 0 {
					w.t.Errorf("%d refusals on record, %d dialled; want 1 and 0", n, len(x.dialled))
				}
			})
		})
	}
}

// A name is not even looked up for somebody who may go nowhere.
func TestForwardDeniedOutright(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		w.policy.set(func(p *policy) { p.deny[authz.ActionForwardLocal] = "no forwarding" })
		x.failed = errors.New("asked the executor")
		if _, why := open(c, "db", 1); why != "no forwarding" {
			w.t.Errorf("refusal %q", why)
		}
	})
}

func TestForwardEndsWithItsRight(t *testing.T) {
	bubble(t, services.RoleOptions{SessionTTL: time.Hour}, func(w *world, x *executor, c *ssh.Client) {
		x.addresses["a"], x.addresses["b"] = []netip.Addr{{}}, []netip.Addr{{}}
		first, _ := open(c, "a", 1)
		<-x.dialled
		w.policy.set(func(p *policy) {
			p.targets = func(to authz.Target) (bool, string) {
				if to.Host == "a" {
					return false, "no more"
				}
				return false, ""
			}
		})
		if _, err := io.ReadAll(first); err != nil {
			w.t.Error(err)
		}
		second, _ := open(c, "b", 1)
		<-x.dialled
		begun := time.Now()
		_, _ = io.ReadAll(second)
		if d := time.Since(begun); d != time.Hour {
			w.t.Errorf("the forward lasted %v, want an hour", d)
		}
		synctest.Wait()
		var reasons []string
		for _, e := range w.journal.named(events.Port) {
			if e.Fields["state"] == "closed" {
				reasons = append(reasons, fmt.Sprint(e.Fields["reason"]))
			}
		}
		want := "[the policy no longer allows this forward: no more the forward lasted 1h0m0s, as long as the role allows]"
		if fmt.Sprint(reasons) != want {
			w.t.Errorf("reasons %v, want %v", reasons, want)
		}
	})
}

// carried returns the channel that the next connection to a listener arrives on.
func carried(t *testing.T, channels <-chan ssh.NewChannel) (ssh.Channel, sshwire.ForwardedTCPIP) {
	t.Helper()
	nc := <-channels
	x, err := sshwire.ParseForwardedTCPIP(nc.ExtraData())
	if err != nil {
		t.Fatal(err)
	}
	ch, requests, err := nc.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	return ch, x
}

func TestListen(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		channels := c.HandleChannelOpen("forwarded-tcpip")
		ok, answer, err := c.SendRequest("tcpip-forward", true, sshwire.TCPIPForward{Addr: "localhost"}.Marshal())
		if !ok || err != nil {
			w.t.Fatal(ok, err)
		}
		if r, err := sshwire.ParseTCPIPForwardReply(answer); err != nil || r.Port != 40000 {
			w.t.Fatalf("answer %v, %v", r, err)
		}
		l := <-x.listening
		here, there := memoryPipe()
		l.conns <- there
		ch, open := carried(w.t, channels)
		if open.Addr != "localhost" || open.Port != 40000 {
			w.t.Errorf("opened as %+v", open)
		}
		exchange(w.t, here, ch)
		if ok, _, _ := c.SendRequest("cancel-tcpip-forward", true, sshwire.TCPIPForward{Addr: "localhost", Port: 40001}.Marshal()); ok {
			w.t.Error("a forward that is not there was cancelled")
		}
		if ok, _, _ := c.SendRequest("cancel-tcpip-forward", true, sshwire.TCPIPForward{Addr: "localhost", Port: 40000}.Marshal()); !ok {
			w.t.Error("the forward was not cancelled")
		}
		<-l.closed
		if ok, _, _ := c.SendRequest("tcpip-forward", true, sshwire.TCPIPForward{Addr: "localhost", Port: 40000}.Marshal()); !ok {
			w.t.Error("what was cancelled cannot be asked for again")
		}
		_ = here.Close()
	})
}

// One person's forward is not another's to cancel, not even on a connection of
// the same person (gliderlabs kept one table for all connections).
func TestListenIsItsOwners(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		other := w.dial(identity(time.Now().Add(time.Hour)))
		defer other.Close()
		forward := sshwire.TCPIPForward{Addr: "localhost", Port: 8080}.Marshal()
		if ok, _, _ := c.SendRequest("tcpip-forward", true, forward); !ok {
			w.t.Fatal("not granted")
		}
		l := <-x.listening
		if ok, _, _ := other.SendRequest("cancel-tcpip-forward", true, forward); ok {
			w.t.Error("another connection cancelled the forward")
		}
		select {
		case <-l.closed:
			w.t.Error("the listener is closed")
		default:
		}
	})
}

func TestListenRefused(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		ask := func(kind string, payload []byte) bool {
			ok, _, _ := c.SendRequest(kind, true, payload)
			return ok
		}
		for range maxListeners {
			if !ask("streamlocal-forward@openssh.com", sshwire.StreamlocalForward{Path: fmt.Sprintf("/tmp/%d", len(x.listening))}.Marshal()) {
				w.t.Fatal("not granted")
			}
		}
		for _, bad := range []struct {
			kind    string
			payload []byte
		}{
			{"tcpip-forward", sshwire.TCPIPForward{Addr: "localhost", Port: 1}.Marshal()}, // one too many
			{"tcpip-forward", []byte("x")},
			{"streamlocal-forward@openssh.com", sshwire.StreamlocalForward{Path: "relative"}.Marshal()},
			{"streamlocal-forward@openssh.com", sshwire.StreamlocalForward{Path: "/tmp/../etc/x"}.Marshal()},
		} {
			if ask(bad.kind, bad.payload) {
				w.t.Errorf("%s %q was granted", bad.kind, bad.payload)
			}
		}
		w.policy.set(func(p *policy) { p.deny[authz.ActionForwardRemote] = "no listening" })
		synctest.Wait()
		for range maxListeners {
			<-(<-x.listening).closed
		}
		if ask("tcpip-forward", sshwire.TCPIPForward{Addr: "localhost", Port: 1}.Marshal()) {
			w.t.Error("granted although denied")
		}
	})
}

// The end of the connection ends what listened for it, and an executor that
// fails is on record.
func TestListenEndsWithItsConnection(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		other := w.dial(identity(time.Now().Add(time.Hour)))
		if ok, _, _ := other.SendRequest("tcpip-forward", true, sshwire.TCPIPForward{Addr: "", Port: 1}.Marshal()); !ok {
			w.t.Fatal("not granted")
		}
		_ = other.Close()
		<-(<-x.listening).closed
		x.failed = fault.New(fault.Unavailable, "the port is taken")
		if ok, _, _ := c.SendRequest("tcpip-forward", true, sshwire.TCPIPForward{Addr: "", Port: 1}.Marshal()); ok {
			w.t.Error("granted although it failed")
		}
		synctest.Wait()
		var reasons []any
		for _, e := range w.journal.named(events.Port) {
			if !e.Success {
				reasons = append(reasons, e.Fields["reason"])
			}
		}
		if len(reasons) != 2 || !slices.Contains(reasons, any("connection lost")) || !slices.Contains(reasons, any("the port is taken")) {
			w.t.Errorf("reasons %v", reasons)
		}
	})
}

// Whoever the session is for has the agent and the display that were granted, and
// the channels to them are closed with it.
func TestAgentAndDisplay(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		agents := c.HandleChannelOpen("auth-agent@openssh.com")
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		go ssh.DiscardRequests(requests)
		x11 := sshwire.X11Request{Protocol: "MIT-MAGIC-COOKIE-1", Cookie: "0123abcd", Screen: 1}
		for _, r := range []struct {
			kind    string
			payload []byte
			want    bool
		}{
			{"auth-agent-req@openssh.com", nil, true},
			{"x11-req", x11.Marshal(), true},
			{"x11-req", x11.Marshal(), false},
			{"exec", text("x"), true},
			{"auth-agent-req@openssh.com", nil, false},
		} {
			if ok, err := ch.SendRequest(r.kind, true, r.payload); ok != r.want || err != nil {
				w.t.Errorf("%s: %v, %v, want %v", r.kind, ok, err, r.want)
			}
		}
		p := <-x.started
		if !p.command.Agent || p.command.X11 == nil || *p.command.X11 != x11 {
			w.t.Fatalf("started with agent %v and display %v", p.command.Agent, p.command.X11)
		}
		go func() {
			for nc := range agents {
				_, requests, _ := nc.Accept()
				go ssh.DiscardRequests(requests)
			}
		}()
		var first ssh.Channel
		for i := range maxBack + 1 {
			back, err := p.command.Open("auth-agent@openssh.com", nil)
			if (err == nil) != (i < maxBack) {
				w.t.Fatalf("channel %d: %v", i, err)
			}
			if i == 0 {
				first = back
			}
		}
		p.end(w.t, Exit{})
		_, _ = io.Copy(io.Discard, ch)
		if _, err := io.ReadAll(first); err != nil {
			w.t.Error(err)
		}
		start := w.journal.named(events.SessionStart)
		if len(start) != 1 || start[0].Fields["agent"] != true || start[0].Fields["x11"] != true {
			w.t.Errorf("session.start %v", start)
		}
	})
}

// A session that has the agent ends when the right to that is taken away.
func TestAgentRevoked(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		go ssh.DiscardRequests(requests)
		for _, kind := range []string{"auth-agent-req@openssh.com", "shell"} {
			if ok, err := ch.SendRequest(kind, true, nil); !ok || err != nil {
				w.t.Fatalf("%s: %v, %v", kind, ok, err)
			}
		}
		<-x.started
		w.policy.set(func(p *policy) { p.deny[authz.ActionForwardAgent] = "no agents" })
		b, _ := io.ReadAll(ch.Stderr())
		if want := "accessd: session ended: the policy no longer allows this session: no agents\n"; string(b) != want {
			w.t.Errorf("stderr %q, want %q", b, want)
		}
	})
}
