//go:build linux

package main

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		in   float64
		want string
	}{
		{0.0123, "0.012"},
		{0.5, "0.50"},
		{12.34, "12.3"},
		{123.4, "123"},
		{1234.6, "1,235"},
		{1234567, "1,234,567"},
		{-1234, "-1,234"},
		{math.NaN(), "–"},
	} {
		if got := number(c.in); got != c.want {
			t.Errorf("number(%v) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	if got, want := median(values), 3.0; got != want {
		t.Errorf("median = %v, want %v", got, want)
	}
	if got, want := quantile(values, 0.99), 5.0; got != want {
		t.Errorf("quantile 0.99 = %v, want %v", got, want)
	}
	if !slices.Equal(values, []float64{5, 1, 4, 2, 3}) {
		t.Error("quantile changed the order of its argument")
	}
}

func TestFigureHoldsToItsGoal(t *testing.T) {
	f := figure{accessd: 0.9, openssh: 0.5, ratios: []float64{1.7, 1.9, 1.8}}
	for _, c := range []struct {
		goal       goal
		text, want string
	}{
		{goal{}, "–", "–"},
		{atMost(1), "≤ 1 ms", "yes"},
		{atMost(0.8), "≤ 0.8 ms", "**no**"},
		{atLeast(20_000), "≥ 20,000 ms", "**no**"},
		{ratioAtLeast(1.8), "≥ 1.8×", "yes"},
		{ratioAtMost(1.5), "≤ 1.5×", "**no**"},
	} {
		g := f.named("1", "x", millis, c.goal)
		if g.met() != c.want || g.goalText() != c.text {
			t.Errorf("goal %v: met %q, text %q, want %q and %q", c.goal, g.met(), g.goalText(), c.want, c.text)
		}
	}
	if f := (figure{accessd: math.NaN()}).named("1", "x", millis, atMost(1)); f.met() == "yes" {
		t.Error("a figure without a value meets its goal")
	}
}

func TestPairedAlternates(t *testing.T) {
	var order []string
	a, b := &side{name: "a"}, &side{name: "b"}
	all, err := paired(t.Context(), 3, []*side{a, b}, func(_ context.Context, s *side) (sample, error) {
		order = append(order, s.name)
		return sample{"n": float64(len(order))}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, ""), "abbaab"; got != want {
		t.Errorf("order = %q, want %q", got, want)
	}
	f := all.compare(0, 1, "n")
	if want := []float64{1.0 / 2, 4.0 / 3, 5.0 / 6}; !slices.Equal(f.ratios, want) {
		t.Errorf("ratios = %v, want %v: each round's own", f.ratios, want)
	}
}

func TestRateEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	_, _, err := rate(t.Context(), 4, time.Hour, func(context.Context) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("rate = %v, want %v", err, broken)
	}
}

func TestLaneSharesTheLink(t *testing.T) {
	p := &lane{queues: map[uint64][][]byte{}}
	for range 2 * wireQueue {
		p.put(1, []byte("bulk"))
	}
	p.put(2, []byte("key"))
	if got, want := string(p.take())+" "+string(p.take()), "bulk key"; got != want {
		t.Errorf("sent %q, want %q: a flow waits for one packet of another", got, want)
	}
	n := 0
	for p.take() != nil {
		n++
	}
	if want := wireQueue - 1; n != want {
		t.Errorf("%d packets were left, want %d: a full queue drops", n, want)
	}
}

func TestFlowIsTheConnection(t *testing.T) {
	packet := func(from, to byte) []byte {
		b := make([]byte, 40)
		b[0], b[9], b[21], b[23] = 0x45, 6, from, to // IPv4 without options, TCP
		return b
	}
	one, again, other := flow(packet(1, 2)), flow(packet(1, 2)), flow(packet(3, 2))
	if one != again || one == other {
		t.Errorf("flows of a connection = %d and %d, of another %d", one, again, other)
	}
	if got := flow([]byte{0x45}); got != 0 {
		t.Errorf("flow of a torn packet = %d, want 0", got)
	}
}

func TestReportSaysWhatIsMissing(t *testing.T) {
	r := report{quick: true, only: "bulk"}
	r.add(scenario{name: "bulk", budget: "3"}, nil, errors.New("no sshd on this machine"))
	var b strings.Builder
	r.write(&b)
	for _, want := range []string{"**Quick run**", "**Partial run**", "- bulk (goal 3): no sshd on this machine"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page does not say %q:\n%s", want, b.String())
		}
	}
}

func TestQueryTimes(t *testing.T) {
	got := queryTimes("goos: linux\nBenchmarkQueryDay/none:_user-2   \t       5\t   1500000 ns/op\t         0 found\nBenchmarkQueryDay/all-2 5 20 ns/op\nBenchmarkQueryDay/whole_log-2 5 99 ns/op\nPASS\n")
	if want := map[string]float64{"none: user": 1.5, "all": 0.00002}; !maps.Equal(got, want) {
		t.Errorf("times = %v, want %v", got, want)
	}
}
