package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

const sid1 = "77777777-7777-4777-8777-777777777777"

// sessions is the authority's session service; it lists one session, on n1.
type sessions struct {
	accessdv1connect.UnimplementedSessionServiceHandler
}

func (sessions) ListSessions(ctx context.Context, _ *connect.Request[accessdv1.ListSessionsRequest]) (*connect.Response[accessdv1.ListSessionsResponse], error) {
	p, _ := rpc.PeerFrom(ctx)
	if p.Identity == nil || p.Identity.User == "" {
		return nil, fault.New(fault.Denied, "people only")
	}
	return connect.NewResponse(&accessdv1.ListSessionsResponse{Sessions: []*accessdv1.Session{{Id: sid1, User: "bob", NodeId: string(idN1)}}}), nil
}

func sessionsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewSessionServiceHandler(sessions{}, rpc.ServerOptions(nil)...))
	mux.HandleFunc("/whoami", whoami)
	return mux
}

// verbWorld is a world whose proxy runs verbs, as runVerb does.
func verbWorld(t *testing.T) *world {
	t.Helper()
	return newWorld(t, func(w *world) { w.cfg.Authority, w.cfg.Verbs = sessionsHandler(), runVerb })
}

// runVerb stands for the command line.
func runVerb(ctx context.Context, call VerbCall) int {
	fail := func(err error) int {
		if err == nil {
			return 0
		}
		fmt.Fprintf(call.Err, "error: %s\n", fault.Public(err))
		return fault.KindOf(err).ExitCode()
	}
	if len(call.Args) == 0 {
		fmt.Fprintln(call.Out, "help")
		return 0
	}
	switch call.Args[0] {
	case "args":
		fmt.Fprintf(call.Out, "%q\nterminal %v\n", call.Args[1:], call.Terminal)
	case "fail":
		fmt.Fprintln(call.Err, "words")
		return 42
	case "cat":
		_, _ = io.Copy(call.Out, call.In)
	case "whoami":
		resp, err := call.API.Get(rpc.BaseURL + "/whoami")
		if err != nil {
			return fail(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(call.Out, resp.Body)
	case "nodes":
		for _, n := range call.Nodes() {
			fmt.Fprintln(call.Out, n.Name, n.Online, n.Logins)
		}
	case "wait":
		fmt.Fprintln(call.Out, "waiting")
		<-ctx.Done()
		return 1
	case "watch", "join":
		return fail(call.Attach(ctx, names.SessionID(call.Args[1]), call.Args[0] == "join"))
	}
	return 0
}

// TestStockVerbs is "ssh alice@proxy VERB": words, streams, exit codes, and what
// there is without a verb.
func TestStockVerbs(t *testing.T) {
	w := verbWorld(t)
	w.connectNode()
	w.policy.put("presence", string(idProxy)+"/"+string(idN1), services.Presence{Node: idN1, Proxy: idProxy})
	w.policy.node(services.Node{ID: idN2, Name: "n2", Kind: services.NodeSSHD, Address: "192.0.2.1:22"})
	s := newStock(w)
	s.certify("alice")
	s.ssh("proxy", `args a "b c" 'd $e'`).want(t, 0, "[\"a\" \"b c\" \"d $e\"]\nterminal false\n")
	if r := s.ssh("-tt", "proxy", "args"); r.code != 0 || r.stdout != "[]\r\nterminal true\r\n" {
		t.Errorf("with a terminal: %+v", r)
	}
	s.ssh("proxy", "fail").want(t, 42, "", "words\n")
	if r := s.run([]byte("in\n"), "ssh", "-F", s.config, "proxy", "cat"); r.stdout != "in\n" {
		t.Errorf("cat: %+v", r)
	}
	s.ssh("proxy", "whoami").want(t, 0, "user alice from 127.0.0.1")
	s.ssh("proxy", "nodes").want(t, 0, "n1 true [root]\nn2 true [root]\n")
	s.run(nil, "ssh", "-F", s.config, "proxy").want(t, 0, "help\n")
	s.ssh("proxy", "args $HOME").want(t, 2, "", `put '$' into single quotes`)
	s.ssh("-s", "proxy", "sftp").want(t, 2, "", "the proxy has no subsystems")
	s.ssh("proxy", "login").want(t, 5, "", "you are signed in")
	if ev := w.audit.all(events.SessionRejected); len(ev) != 2 {
		t.Errorf("session.rejected = %+v", ev)
	}
	w.policy.user("alice", "auditor")
	s.ssh("proxy", "nodes").want(t, 0, "")
}

// TestVerbsNeedCertificate: who signed in with a password runs login and nothing
// else.
func TestVerbsNeedCertificate(t *testing.T) {
	w := verbWorld(t)
	s := newStock(w)
	for _, args := range [][]string{{"proxy", "whoami"}, {"proxy"}, {"-tt", "proxy"}, {"-tt", "proxy", "menu"}} {
		s.answers("right", "123456")
		if r := s.ssh(args...); r.code != 2 || strings.Contains(r.stdout, "alice") {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

// TestVerbEnds: a verb ends with its channel, with a key, with the server, and
// there are only so many.
func TestVerbEnds(t *testing.T) {
	w := verbWorld(t)
	conn := w.must("alice", pubkey(w.person("alice")))
	begin := func(pty bool) (*ssh.Session, io.Writer) {
		x := must(conn.NewSession())
		if pty {
			if err := x.RequestPty("xterm", 24, 80, nil); err != nil {
				t.Fatal(err)
			}
		}
		in, out := must(x.StdinPipe()), must(x.StdoutPipe())
		if err := x.Start("wait"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("waiting\n"))); err != nil {
			t.Fatal(err)
		}
		return x, in
	}
	x, in := begin(true)
	fmt.Fprint(in, "abc\x03")
	if err, ok := errors.AsType[*ssh.ExitError](x.Wait()); !ok || err.ExitStatus() != exitInterrupted {
		t.Errorf("after Ctrl-C: %v", err)
	}
	var open []*ssh.Session
	for range maxVerbs {
		x, _ := begin(false)
		open = append(open, x)
	}
	var stderr bytes.Buffer
	x = must(conn.NewSession())
	x.Stderr = &stderr
	if err := x.Run("whoami"); err == nil || !strings.Contains(stderr.String(), "commands here already") {
		t.Errorf("one too many: %v, %q", err, &stderr)
	}
	for _, x := range open[1:] {
		x.Close()
	}
	for x = must(conn.NewSession()); x.Run("whoami") != nil; x = must(conn.NewSession()) {
	}
	w.stop() // waits for what is left
	if err := open[0].Wait(); err == nil {
		t.Error("a verb outlived its server")
	}
}

// TestVerbExpired: a certificate that has ended runs nothing on a connection that
// it has opened.
func TestVerbExpired(t *testing.T) {
	late := make(chan struct{})
	w := newWorld(t, func(w *world) {
		w.cfg.Authority, w.cfg.Verbs = sessionsHandler(), runVerb
		w.cfg.Now = func() time.Time {
			select {
			case <-late:
				return time.Now().Add(2 * time.Hour)
			default:
				return time.Now()
			}
		}
	})
	conn := w.must("alice", pubkey(w.person("alice")))
	close(late)
	out, err := must(conn.NewSession()).CombinedOutput("whoami")
	if err == nil || !strings.Contains(string(out), "your certificate expired at") {
		t.Errorf("%q, %v", out, err)
	}
}

// TestVerbThroughProxy: where the authority is elsewhere, it sees the person
// behind the proxy, from where the person is.
func TestVerbThroughProxy(t *testing.T) {
	far := newWorld(t, func(w *world) { w.cfg.Authority = sessionsHandler() })
	edge := far.member(sshca.KindProxy, idProxy, "edge")
	link := far.must("edge", pubkey(edge))
	w := newWorld(t, func(w *world) {
		for kind, ca := range far.ca {
			w.ca[kind] = ca
			w.policy.put("ca", kind, services.CA{Type: kind, Keys: []services.CAKey{{Public: authorizedKey(ca.PublicKey())}}})
		}
		w.host = w.hostKey()
		w.cfg.Authority, w.cfg.Verbs = nil, runVerb
		w.cfg.OpenAuthority = func(_ context.Context, origin netip.AddrPort) (net.Conn, error) { return openAuthority(link, origin) }
	})
	s := newStock(w)
	s.certify("alice")
	s.ssh("proxy", "whoami").want(t, 0, "user alice from 127.0.0.1")
	if ev := far.audit.wait(events.UserLogin, 1)[0]; ev.User != "alice" || !strings.HasPrefix(ev.AddrRemote, "127.0.0.1:") {
		t.Errorf("user.login at the authority = %+v", ev)
	}
	link.Close()
	s.ssh("proxy", "whoami").want(t, 6, "", "error: ")
}

// TestObserve is "sessions watch" and "sessions join" as far as the proxy: the
// node is asked as the person, whatever it then says.
func TestObserve(t *testing.T) {
	w := verbWorld(t)
	w.connectNode()
	s := newStock(w)
	s.certify("alice")
	s.ssh("proxy", "watch "+sid1).want(t, 0, "watch:"+sid1+" of alice\n")
	r := s.run([]byte("typed"), "ssh", "-F", s.config, "proxy", "join "+sid1)
	r.want(t, 0, "join:"+sid1+" of alice\ntyped")
	decision := w.audit.all(events.AccessDecision)
	if len(decision) != 2 || !decision[0].Success || decision[0].Login != "" || decision[0].Fields["node_id"] != idN1 {
		t.Errorf("access.decision = %+v", decision)
	}
	other := "88888888-8888-4888-8888-888888888888"
	s.ssh("proxy", "watch "+other).want(t, 4, "", "error: no live session with that id that you may see")

	s.certify("bob")
	w.policy.user("bob", "auditor") // reaches no node, and reads recordings
	s.ssh("-l", "bob", "proxy", "watch "+sid1).want(t, 0, "watch:"+sid1+" of bob\n")
	s.ssh("-l", "bob", "-W", "n1:22", "proxy").want(t, 255, "", "n1")
	s.certify("eve")
	w.policy.user("eve", "nothing")
	w.audit.reset()
	s.ssh("-l", "eve", "proxy", "watch "+sid1).want(t, 4, "", "that you may reach")
	if ev := w.audit.all(events.AccessDecision); len(ev) != 1 || ev[0].Success {
		t.Errorf("access.decision = %+v", ev)
	}
}

// TestObserverRefused: what the node says to somebody who may not see a session.
func TestObserverRefused(t *testing.T) {
	w := verbWorld(t)
	w.connectNode()
	w.policy.user("mallory", "access")
	s := newStock(w)
	s.certify("mallory")
	s.ssh("-l", "mallory", "proxy", "watch "+sid1).want(t, 3, "", "error: not yours\n")
}

// screen is what a person at a terminal has seen.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return s.text.Write(p)
}

// expect waits until text has come, and forgets what came up to it.
func (s *screen) expect(t *testing.T, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		all := s.text.String()
		if _, rest, ok := strings.Cut(all, text); ok {
			s.text.Reset()
			s.text.WriteString(rest)
			s.mu.Unlock()
			return
		}
		if s.more == nil {
			s.more = make(chan struct{})
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-late:
			t.Fatalf("%q has not come; what has is %q", text, all)
		}
	}
}

// TestMenu: pick a node, work there on a terminal of the size it has, and come
// back.
func TestMenu(t *testing.T) {
	w := verbWorld(t)
	w.connectSSHD()
	w.policy.node(services.Node{ID: idN2, Name: "offline"})
	conn := w.must("alice", pubkey(w.person("alice")))
	x := must(conn.NewSession())
	var see screen
	x.Stdout = &see
	in := must(x.StdinPipe())
	if err := x.RequestPty("dumb", 24, 80, ssh.TerminalModes{ssh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	if err := x.Shell(); err != nil {
		t.Fatal(err)
	}
	see.expect(t, "n1")
	if err := x.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, "n1\r")
	see.expect(t, "root") // what to log in as, or already there
	fmt.Fprint(in, "stty size; echo $TERM-$((40+2))\r")
	see.expect(t, "50 132\r\ndumb-42\r\n")
	if err := x.WindowChange(30, 90); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, "until [ \"$(stty size)\" = '30 90' ]; do :; done; echo now-$((1+1)); exit 3\r")
	see.expect(t, "now-2")
	see.expect(t, "n1: session ended, exit status 3")
	fmt.Fprint(in, "offline\r")
	see.expect(t, `node "offline" is not connected`)
	fmt.Fprint(in, "q\r")
	if err := x.Wait(); err != nil {
		t.Errorf("the menu ended with %v", err)
	}
	if ev := w.audit.all(events.AccessDecision); len(ev) != 2 || ev[0].Login != "root" || !ev[0].Success {
		t.Errorf("access.decision = %+v", ev)
	}
	w.stop()
}

// TestMenuLeft: who hangs up in the middle leaves nothing behind.
func TestMenuLeft(t *testing.T) {
	w := verbWorld(t)
	w.connectSSHD()
	for _, typed := range []string{"", "n1\r"} {
		conn := w.must("alice", pubkey(w.person("alice")))
		x := must(conn.NewSession())
		var see screen
		x.Stdout = &see
		in := must(x.StdinPipe())
		if err := x.RequestPty("dumb", 24, 80, ssh.TerminalModes{}); err != nil {
			t.Fatal(err)
		}
		if err := x.Shell(); err != nil {
			t.Fatal(err)
		}
		see.expect(t, "n1")
		fmt.Fprint(in, typed)
		if typed != "" {
			fmt.Fprint(in, "echo he''re\r")
			see.expect(t, "here")
		}
		conn.Close()
	}
	w.stop()
	w.server.live.mu.Lock()
	defer w.server.live.mu.Unlock()
	if n := len(w.server.live.bridges); n > 0 {
		t.Errorf("%d bridges are left", n)
	}
}
