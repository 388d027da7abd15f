package harness

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

// Place is a machine as far as the network goes: what runs there has interfaces,
// addresses, routes and packet filters of its own. Its files and accounts are
// this machine's.
type Place struct {
	t   testing.TB
	pid string
}

// quick has the kernel repeat what was lost after 20 ms at first and a second at
// last, and not its usual 200 ms and two minutes: no round trip takes even one,
// and a scenario has no time for bad luck. Linux before 6.15 has no such settings.
const quick = "net.ipv4.tcp_rto_min_us=20000 net.ipv4.tcp_rto_max_ms=1000"

// NewPlace makes a place that is connected to nothing. It goes when the test
// ends, also when that is killed, and everything in it with it.
func NewPlace(t testing.TB) *Place {
	t.Helper()
	needRoot(t, "a network of its own")
	holder := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && sysctl -e -q -w "+quick+" && echo ready && exec cat")
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := holder.StdinPipe() // that it ends is what ends the holder
	if err != nil {
		t.Fatal(err)
	}
	var words bytes.Buffer
	holder.Stderr = &words
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = holder.Wait()
	})
	if _, err := io.ReadFull(stdout, make([]byte, len("ready"))); err != nil {
		_ = holder.Wait() // what it said is there when this returns
		t.Fatalf("a network of its own: %v %s", err, words.String())
	}
	return &Place{t: t, pid: fmt.Sprint(holder.Process.Pid)}
}

func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s needs root, and CI has to be it", what)
	}
	t.Skipf("NOT RUN: %s needs root", what)
}

func (p *Place) words(name string, args []string) (string, []string) {
	if p == nil {
		return name, args
	}
	return "nsenter", append([]string{"--target", p.pid, "--net", "--", name}, args...)
}

// Command returns a command that will run at the place; at none, on this machine.
func (p *Place) Command(name string, args ...string) *exec.Cmd {
	name, args = p.words(name, args)
	return exec.Command(name, args...)
}

// Run runs a command at the place to its end.
func (p *Place) Run(stdin io.Reader, name string, args ...string) Result {
	p.t.Helper()
	name, args = p.words(name, args)
	return Run(p.t, stdin, name, args...)
}

// Shell runs a script at the place that has to succeed.
func (p *Place) Shell(script string) {
	p.t.Helper()
	if r := p.Run(nil, "sh", "-ec", script); r.Code != 0 {
		p.t.Fatalf("%s\nexit %d: %s", script, r.Code, r.Stderr)
	}
}

// Network is a place where servers and clients are, and lines from it to other
// places. Addresses are from the network set aside for benchmarks (RFC 2544).
type Network struct {
	Centre *Place
	Addr   string // of the centre, on every line
	Quick  bool   // what is lost is repeated at once

	lines int
}

// NewNetwork makes a network without lines.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{Centre: NewPlace(t), Addr: "198.18.0.1"}
	n.Centre.Shell("ip addr add " + n.Addr + "/32 dev lo")
	n.Quick = n.Centre.Run(nil, "sysctl", "-n", "net.ipv4.tcp_rto_max_ms").Code == 0
	return n
}

// Line leads from the centre to a place behind a router that hides it: it has an
// address that the centre cannot reach, and only connections from it go through
// (NAT). The far end's interface is eth0.
type Line struct {
	Far *Place

	router *Place
}

// Line lays a line of its own to a new place.
func (n *Network) Line() *Line {
	t := n.Centre.t
	t.Helper()
	n.lines++
	l := &Line{Far: NewPlace(t), router: NewPlace(t)}
	near, out := fmt.Sprintf("198.18.%d.1", n.lines), fmt.Sprintf("198.18.%d.2", n.lines)
	line := fmt.Sprintf("line%d", n.lines)
	n.Centre.Shell(fmt.Sprintf("ip link add %s type veth peer name out netns %s", line, l.router.pid))
	l.router.Shell(fmt.Sprintf("ip link add in type veth peer name eth0 netns %s", l.Far.pid))
	n.Centre.Shell(fmt.Sprintf("ip link set %[1]s up; ip addr add %[2]s/30 dev %[1]s", line, near))
	l.Far.Shell("ip link set eth0 up; ip addr add 192.168.1.2/24 dev eth0; ip route add default via 192.168.1.1")
	l.router.Shell(fmt.Sprintf(`ip link set in up; ip addr add 192.168.1.1/24 dev in
		ip link set out up; ip addr add %s/30 dev out; ip route add default via %s
		sysctl -q -w net.ipv4.ip_forward=1
		iptables -t nat -A POSTROUTING -o out -j MASQUERADE`, out, near))
	return l
}

// Direction is where packets on a line go.
type Direction string

// The directions: from the far end to the centre, and to the far end.
const (
	Up   Direction = "in"
	Down Direction = "out"
)

// Lose has the router drop a share of the packets in a direction, silently; 1 is
// all of them.
func (l *Line) Lose(d Direction, share float64) {
	l.Far.t.Helper()
	l.router.Shell(fmt.Sprintf("iptables -A FORWARD -i %s -m statistic --mode random --probability %g -j DROP", d, share))
}

// Limit has the line carry so many kilobits a second in each direction.
func (l *Line) Limit(kbit int) {
	l.Far.t.Helper()
	l.router.Shell(fmt.Sprintf("for dev in out in; do tc qdisc replace dev $dev root tbf rate %dkbit burst 8kb latency 300ms; done", kbit))
}

// Heal has the router drop nothing any more.
func (l *Line) Heal() {
	l.Far.t.Helper()
	l.router.Shell("iptables -F FORWARD")
}

// Forget has the router drop, silently, every packet of the connections that
// there are, as one does that has forgotten them. New ones go through.
func (l *Line) Forget() {
	l.Far.t.Helper()
	l.router.Shell(`iptables -t mangle -A PREROUTING -m conntrack --ctstate NEW -j CONNMARK --set-mark 1
		iptables -A FORWARD -m connmark ! --mark 1 -j DROP`)
}
