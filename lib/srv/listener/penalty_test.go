package listener

import (
	"net/netip"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func source(s string) netip.Prefix { return SourceOf(netip.MustParseAddr(s)) }

// TestPenalties: THREATS 1.1, OpenSSH's PerSourcePenalties: four fast failures
// and the next connection is refused, another source's is not.
func TestPenalties(t *testing.T) {
	b := newPenaltyBox(Penalties{}.withDefaults())
	mallory, alice := source("198.51.100.1"), source("198.51.100.2")
	now := epoch
	for i := range 4 {
		if b.refuses(mallory, now) {
			t.Fatalf("refused after %d failures", i)
		}
		b.add(mallory, OffenceAuthFailed, now)
		now = now.Add(time.Second)
	}
	if !b.refuses(mallory, now) {
		t.Error("not refused after four failures in four seconds")
	}
	if b.refuses(alice, now) {
		t.Error("another source is refused")
	}
	// 20 s of penalties from the first second on: over after 20 s.
	if at := epoch.Add(20*time.Second - 1); !b.refuses(mallory, at) {
		t.Error("not refused until the whole time has passed")
	}
	if b.refuses(mallory, epoch.Add(20*time.Second)) {
		t.Error("still refused when the time has passed")
	}
	if len(b.debts) != 0 {
		t.Errorf("the box remembers %d sources, want none", len(b.debts))
	}
}

func TestPenaltyClasses(t *testing.T) {
	for o, want := range map[Offence]int{ // offences at once until refused
		OffenceNoAuth: 15, OffenceAuthFailed: 3, OffenceInvalidUser: 3, OffenceGrace: 2, OffenceProtocol: 2,
	} {
		b := newPenaltyBox(Penalties{}.withDefaults())
		s, n := source("2001:db8::1"), 0
		for !b.refuses(s, epoch) {
			fresh := b.add(s, o, epoch)
			n++
			if fresh != b.refuses(s, epoch) {
				t.Errorf("%v: add = %v at offence %d", o, fresh, n)
			}
		}
		if n != want {
			t.Errorf("%v: refused after %d, want %d", o, n, want)
		}
	}
	b := newPenaltyBox(Penalties{}.withDefaults())
	b.add(source("192.0.2.1"), Offence(99), epoch)
	if len(b.debts) != 0 {
		t.Error("an unknown offence was booked")
	}
}

func TestPenaltyMax(t *testing.T) {
	b := newPenaltyBox(Penalties{}.withDefaults())
	s := source("192.0.2.1")
	for range 10_000 {
		b.add(s, OffenceProtocol, epoch)
	}
	if end := epoch.Add(10 * time.Minute); !b.refuses(s, end.Add(-1)) || b.refuses(s, end) {
		t.Error("the penalty is not the maximum of 10 minutes")
	}
}

// TestPenaltyTableOverflow: THREATS 1.1, a flood of random sources neither makes
// the table grow nor buys anybody out.
func TestPenaltyTableOverflow(t *testing.T) {
	flood := func(b *penaltyBox, at time.Time) {
		for i := range 5000 {
			s := SourceOf(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}))
			for range 4 {
				b.add(s, OffenceAuthFailed, at)
			}
		}
	}
	mallory, newcomer := source("198.51.100.1"), source("198.51.100.2")
	for _, deny := range []bool{false, true} {
		b := newPenaltyBox(Penalties{Sources: 1000, DenyOverflow: deny}.withDefaults())
		for range 4 {
			b.add(mallory, OffenceAuthFailed, epoch)
		}
		flood(b, epoch)
		if len(b.debts) != 1000 {
			t.Errorf("deny=%v: the table has %d sources, want 1000", deny, len(b.debts))
		}
		if !b.refuses(mallory, epoch) {
			t.Errorf("deny=%v: the flood made the box forget a source", deny)
		}
		if got := b.refuses(newcomer, epoch); got != deny {
			t.Errorf("deny=%v: a newcomer is refused: %v", deny, got)
		}
		later := epoch.Add(time.Minute)
		if b.refuses(newcomer, later) {
			t.Errorf("deny=%v: a newcomer is refused when all penalties have passed", deny)
		}
		b.add(newcomer, OffenceAuthFailed, later)
		if _, ok := b.debts[newcomer]; !ok {
			t.Errorf("deny=%v: no place once all penalties have passed", deny)
		}
	}
}

func TestPenaltiesOff(t *testing.T) {
	b := newPenaltyBox(Penalties{Off: true, DenyOverflow: true}.withDefaults())
	for range 100 {
		b.add(source("192.0.2.1"), OffenceProtocol, epoch)
	}
	if b.refuses(source("192.0.2.1"), epoch) || len(b.debts) != 0 {
		t.Error("penalties were booked though off")
	}
}
