package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// noticed is how long a proxy and a node take to find that the other is gone: its
// 45 s, and what a busy machine needs to act on it and to tell.
const noticed = 60 * time.Second

// F07, F20: what a network between a proxy and its nodes does to them. The nodes
// are behind routers that hide them, in networks of their own. What takes as long
// as it takes to miss a peer is for "make fault".
func TestFaultyNetwork(t *testing.T) {
	t.Parallel()
	network := harness.NewNetwork(t)
	w := &faulty{Cluster: harness.NewIn(t, network, "--config", noPenalties(t)), lost: 0.3}
	if !network.Quick {
		w.lost = 0.1
	}
	w.alice = w.User("alice", "access")
	scenarios := map[string]func(*testing.T, *far){"loses": w.loses, "narrow": w.narrow, "moves": w.moves}
	if os.Getenv("ACCESSD_FAULT_ROUNDS") != "" {
		scenarios["forgotten"] = w.forgotten
		scenarios["cut"] = func(t *testing.T, n *far) { t.Helper(); w.cut(t, n, harness.Up, harness.Down) }
		scenarios["mute"] = func(t *testing.T, n *far) { t.Helper(); w.cut(t, n, harness.Up) }
		scenarios["deaf"] = func(t *testing.T, n *far) { t.Helper(); w.cut(t, n, harness.Down) }
	}
	nodes := map[string]*far{}
	for name := range scenarios {
		n := &far{name: name, Line: network.Line()}
		n.process = w.NodeAt(n.Far, name)
		nodes[name] = n
	}
	w.alice.Configure()
	t.Run("at once", func(t *testing.T) {
		for name, scenario := range scenarios {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				scenario(t, nodes[name])
			})
		}
	})
	w.Verify()
}

// faulty is a cluster whose nodes are at the far end of lines that can be spoilt.
type faulty struct {
	*harness.Cluster

	alice *harness.Person
	lost  float64 // share of the packets, where some are
}

// far is a node at the end of a line.
type far struct {
	*harness.Line

	name    string
	process *harness.Process
}

// copies sends bytes to a node and back, and wants them as they were.
func (w *faulty) copies(t *testing.T, node string, size int) {
	t.Helper()
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	r := w.alice.SSHIn(bytes.NewReader(body), node, "cat")
	if r.Code != 0 || r.Stdout != string(body) {
		t.Errorf("%d bytes there and back: exit %d, %d came: %s", size, r.Code, len(r.Stdout), r.Stderr)
	}
}

func (w *faulty) loses(t *testing.T, n *far) {
	n.Lose(harness.Up, w.lost)
	n.Lose(harness.Down, w.lost)
	began := time.Now()
	if r := w.alice.SSH(n.name, "echo out; echo err >&2; exit 7"); r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
		t.Errorf("with %g of the packets lost: ssh = %d %q %q", w.lost, r.Code, r.Stdout, r.Stderr)
	}
	t.Logf("a command took %v", time.Since(began))
	began = time.Now()
	w.copies(t, n.name, 30_000)
	t.Logf("a copy took %v", time.Since(began))
}

func (w *faulty) narrow(t *testing.T, n *far) {
	const rate = 1000
	n.Limit(rate)
	k := harness.Sit(t, w.Command("ssh", "-F", w.alice.Config, "-tt", n.name))
	k.Send("PS1=; stty -echo; echo be''gun")
	k.Expect("begun")
	body := strings.Repeat("0123456789abcdef", 5_000)
	began := time.Now()
	copied := make(chan harness.Result, 1)
	go func() {
		copied <- w.alice.SSHIn(strings.NewReader(body), n.name, "cat >/dev/null; echo; head -c 80000 /dev/zero | tr '\\0' x")
	}()
	strokes := 0
	for r := (harness.Result{Code: -1}); r.Code < 0; strokes++ {
		k.Send(fmt.Sprintf("echo line $((%d+1))", strokes))
		k.Expect(fmt.Sprintf("line %d\r\n", strokes+1))
		select {
		case r = <-copied:
			if want := "\n" + strings.Repeat("x", 80_000); r.Code != 0 || r.Stdout != want {
				t.Errorf("the transfer: exit %d, %d bytes came: %s", r.Code, len(r.Stdout), r.Stderr)
			}
		default:
		}
	}
	t.Logf("%d lines were typed while a transfer took %v", strokes, time.Since(began))
	k.Send("exit 3")
	if r := k.Wait(); r.Code != 3 {
		t.Errorf("the terminal's session ended with %d, want 3", r.Code)
	}
}

// moves: the node has another address from one moment to the next, as a laptop in
// another network. The proxy still believes in the old connection.
func (w *faulty) moves(t *testing.T, n *far) {
	before := w.WaitOnline(n.name)
	began := time.Now()
	n.Far.Shell("ip addr del 192.168.1.2/24 dev eth0; ip addr add 192.168.1.3/24 dev eth0; ip route add default via 192.168.1.1")
	w.Eventually("there is a tunnel from the new address", func() bool { return w.alice.SSH(n.name, "true").Code == 0 })
	t.Logf("back after %v", time.Since(began))
	w.isBack(t, before)
}

// isBack wants a node there once, as it was, and its tunnel never twice.
func (w *faulty) isBack(t *testing.T, before harness.NodeView) {
	t.Helper()
	if after := w.WaitOnline(before.Name); after.ID != before.ID {
		t.Errorf("the node is %s, was %s", after.ID, before.ID)
	}
	found := 0
	for _, v := range w.NodeList() {
		if v.Name == before.Name {
			found++
		}
	}
	if found != 1 {
		t.Errorf("the node is there %d times", found)
	}
	if r := w.alice.SSH(before.Name, "echo", "again"); r.Code != 0 || r.Stdout != "again\n" {
		t.Errorf("afterwards: ssh = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	tunnel := map[string]int{}
	for _, e := range w.Events("--event", "tunnel.*", "--text", before.ID) {
		tunnel[e.Str("event")]++
	}
	if tunnel["tunnel.up"] != 2 || tunnel["tunnel.down"] != 1 {
		t.Errorf("the log has %v, want it gone once and here twice", tunnel)
	}
}

// cut has everything in some directions lost, while a session runs.
func (w *faulty) cut(t *testing.T, n *far, directions ...harness.Direction) {
	t.Helper()
	before := w.WaitOnline(n.name)
	s := begin(t, w.Cluster, w.alice, n.name)
	began := time.Now()
	for _, d := range directions {
		n.Lose(d, 1)
	}
	w.bothNotice(t, n, began)
	if code := s.wait(time.Until(began.Add(noticed))); code != 255 {
		t.Errorf("the session's client exited %d, want 255", code)
	}
	t.Logf("the session ended within %v", time.Since(began))
	n.Heal()
	began = time.Now()
	w.isBack(t, before)
	t.Logf("back after %v", time.Since(began))
	s.endedOnce(w.Cluster)
}

// bothNotice waits until the node is listed as away and has seen that its proxy
// is.
func (w *faulty) bothNotice(t *testing.T, n *far, began time.Time) {
	t.Helper()
	away := func() bool {
		return slices.ContainsFunc(w.NodeList(), func(v harness.NodeView) bool { return v.Name == n.name && !v.Online })
	}
	down := func() bool { return strings.Contains(n.process.Log(), "link down") }
	for what, found := range map[string]func() bool{"the proxy": away, "the node": down} {
		w.Eventually(what+" notices", found)
		took := time.Since(began)
		t.Logf("%s had noticed after %v", what, took)
		if took > noticed {
			t.Errorf("%s needed %v to notice, want at most %v", what, took, noticed)
		}
	}
}

// forgotten: the router drops what belongs to the connections that there are, and
// says nothing. New ones would go through.
func (w *faulty) forgotten(t *testing.T, n *far) {
	before := w.WaitOnline(n.name)
	s := begin(t, w.Cluster, w.alice, n.name)
	began := time.Now()
	n.Forget()
	r := w.alice.SSH(n.name, "true") // comes too early to be told anything but that
	if r.Code != 255 || !strings.Contains(r.Stderr, "closed by remote host") {
		t.Errorf("before anybody has noticed: ssh = %d %q", r.Code, r.Stderr)
	}
	w.Eventually("there is a way to the node", func() bool { return w.alice.SSH(n.name, "true").Code == 0 })
	if took := time.Since(began); took > noticed {
		t.Errorf("there was none for %v, want %v at most", took, noticed)
	}
	if code := s.wait(time.Until(began.Add(noticed))); code != 255 {
		t.Errorf("the session's client exited %d, want 255", code)
	}
	w.isBack(t, before)
	s.endedOnce(w.Cluster)
}
