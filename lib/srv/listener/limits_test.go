package listener

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

func TestDropPercent(t *testing.T) {
	l := Limits{Start: 10, Rate: 30, Full: 100}
	for n, want := range map[int]int{0: 0, 9: 0, 10: 30, 55: 65, 99: 99, 100: 100, 5000: 100} {
		if got := dropPercent(n, l); got != want {
			t.Errorf("dropPercent(%d) = %d, want %d", n, got, want)
		}
	}
	if got := dropPercent(10, Limits{Start: 10, Rate: 0, Full: 10}); got != 100 {
		t.Errorf("dropPercent with start = full is %d at it, want 100", got)
	}
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":           "192.0.2.7/32",
		"::ffff:192.0.2.7":    "192.0.2.7/32",
		"2001:db8:1:2:3::4":   "2001:db8:1:2::/64",
		"fe80::1%eth0":        "fe80::/64",
		"2001:db8:1:2:ffff::": "2001:db8:1:2::/64",
	} {
		if got := SourceOf(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("SourceOf(%s) = %s, want %s", in, got, want)
		}
	}
	if p := SourceOf(netip.Addr{}); p.IsValid() {
		t.Errorf("SourceOf no address = %v, want none", p)
	}
}

// testGate returns a gate whose dice always show roll.
func testGate(l Limits, roll int) *gate {
	return newGate(l.withDefaults(), func() time.Time { return epoch }, func() int { return roll })
}

func addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// TestGateBoundsOneSource: F11, half-open connections from one source leave all
// places but a few to others.
func TestGateBoundsOneSource(t *testing.T) {
	g := testGate(Limits{}, 0)
	mallory := addr(1)
	var held []*place
	for range 10_000 {
		if p, why := g.admit(mallory); why == "" {
			held = append(held, p)
		} else if why != refusedSource {
			t.Fatalf("admit = %q, want %q", why, refusedSource)
		}
	}
	if len(held) != 50 {
		t.Errorf("one source holds %d places, want 50", len(held))
	}
	p, why := g.admit(addr(2))
	if why != "" {
		t.Fatalf("another source: admit = %q", why)
	}
	for _, h := range append(held, p, p) {
		h.free() // twice frees once
	}
	if open, _, _ := g.figures(); open != 0 || len(g.sources) != 0 {
		t.Errorf("%d places and %d sources are left, want none", open, len(g.sources))
	}
}

func TestGateDropsAtRandom(t *testing.T) {
	l := Limits{Start: 10, Rate: 30, Full: 20}
	lucky, unlucky := testGate(l, 99), testGate(l, 29)
	count := func(g *gate) (n int) {
		for i := range 100 {
			if _, why := g.admit(addr(i)); why == "" {
				n++
			}
		}
		return n
	}
	if got := count(lucky); got != 20 {
		t.Errorf("with luck %d are admitted, want 20", got)
	}
	if got := count(unlucky); got != 10 {
		t.Errorf("without luck %d are admitted, want 10", got)
	}
}

func TestGatePenalises(t *testing.T) {
	g := testGate(Limits{Exempt: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}, 0)
	mallory, office := addr(1), addr(256)
	for _, from := range []netip.Addr{mallory, office} {
		p, why := g.admit(from)
		if why != "" {
			t.Fatal(why)
		}
		var fresh []bool
		for range 4 {
			fresh = append(fresh, p.penalize(OffenceAuthFailed))
		}
		if want := fmt.Sprint([]bool{false, false, from == mallory, false}); fmt.Sprint(fresh) != want {
			t.Errorf("%v: penalize = %v, want %v", from, fresh, want)
		}
		p.free()
	}
	if _, why := g.admit(mallory); why != refusedPenalty {
		t.Errorf("admit of a penalised source = %q, want %q", why, refusedPenalty)
	}
	for range 60 { // an exempt source knows no bound of its own either
		if _, why := g.admit(office); why != "" {
			t.Fatalf("admit of an exempt source = %q", why)
		}
	}
}

// TestGateAttributesLate: a connection through a load balancer gets its source
// when the PROXY header came.
func TestGateAttributesLate(t *testing.T) {
	g := testGate(Limits{PerSource: 1}, 0)
	first, _ := g.admit(netip.Addr{})
	second, _ := g.admit(netip.Addr{})
	if why := first.attribute(addr(7)); why != "" {
		t.Fatal(why)
	}
	if why := second.attribute(addr(7)); why != refusedSource {
		t.Errorf("attribute = %q, want %q", why, refusedSource)
	}
	if second.penalize(OffenceProtocol) {
		t.Error("a connection without a source was penalised")
	}
	second.free()
	if _, why := g.admit(addr(7)); why != refusedSource {
		t.Errorf("admit = %q, want %q: the source still holds its place", why, refusedSource)
	}
	first.free()
	if open, _, _ := g.figures(); open != 0 || len(g.sources) != 0 {
		t.Errorf("%d places and %d sources are left, want none", open, len(g.sources))
	}
}

func TestGateParks(t *testing.T) {
	g := testGate(Limits{Parked: 3, ParkedPerSource: 2, Start: 4, Full: 4}, 0)
	var places []*place
	park := func(from netip.Addr) error {
		p, why := g.admit(from)
		if why != "" {
			t.Fatal(why)
		}
		places = append(places, p)
		return p.park()
	}
	for i, row := range []struct {
		from netip.Addr
		ok   bool
	}{{addr(1), true}, {addr(1), true}, {addr(1), false}, {addr(2), true}, {addr(3), false}} {
		err := park(row.from)
		if (err == nil) != row.ok || (err != nil && !fault.Is(err, fault.Unavailable)) {
			t.Errorf("park %d = %v, want ok: %v", i, err, row.ok)
		}
	}
	if err := places[0].park(); err != nil {
		t.Errorf("parking twice = %v, want nil", err)
	}
	// Three are parked and take none of the four places of the others.
	if open, parked, _ := g.figures(); open != 2 || parked != 3 {
		t.Errorf("open, parked = %d, %d, want 2, 3", open, parked)
	}
	for _, p := range places {
		p.free()
	}
	if open, parked, _ := g.figures(); open != 0 || parked != 0 || len(g.sources) != 0 {
		t.Errorf("open, parked, sources = %d, %d, %d, want none", open, parked, len(g.sources))
	}
}

func TestBadConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":       {},
		"no port":          {Bind: Bind{Addr: "localhost"}},
		"extra":            {Bind: Bind{Addr: "localhost:0"}, Extra: []Bind{{Addr: "x"}}},
		"unknown protocol": {Bind: Bind{Addr: "localhost:0", Protocols: []Protocol{"telnet"}}},
		"start over full":  {Bind: Bind{Addr: "localhost:0"}, Limits: Limits{Start: 10, Full: 5}},
		"rate":             {Bind: Bind{Addr: "localhost:0"}, Limits: Limits{Rate: 101}},
		"per source":       {Bind: Bind{Addr: "localhost:0"}, Limits: Limits{PerSource: -1}},
		"penalty":          {Bind: Bind{Addr: "localhost:0"}, Limits: Limits{Penalties: Penalties{Grace: time.Hour}}},
		"sources":          {Bind: Bind{Addr: "localhost:0"}, Limits: Limits{Penalties: Penalties{Sources: -1}}},
	} {
		if _, err := New(cfg); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: New = %v, want bad input", name, err)
		}
	}
}
