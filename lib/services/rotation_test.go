package services_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// caKey returns a fresh key of an authority.
func caKey() services.CAKey {
	_, signer := sshca.Generate()
	return services.CAKey{Public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), Sealed: []byte("sealed")}
}

// TestRotatePhases walks every authority through a rotation, and back from each of
// its phases: which key signs, and which are trusted.
func TestRotatePhases(t *testing.T) {
	now := time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)
	early, late := []string{"ON", "NO", "NO", "N"}, []string{"ON", "ON", "NO", "N"} // O is the old key, N the new one, after each phase
	for kind, want := range map[sshca.Type][]string{sshca.TypeUser: early, sshca.TypeNode: early, sshca.TypeSSHD: early, sshca.TypeHost: late} {
		old, fresh := caKey(), caKey()
		keys := func(ca services.CA) string {
			s := ""
			for _, k := range ca.Keys {
				s += map[string]string{old.Public: "O", fresh.Public: "N"}[k.Public]
			}
			return s
		}
		ca := services.CA{Type: kind, Keys: []services.CAKey{old}}
		for i, phase := range []services.Phase{services.PhaseInit, services.PhaseClients, services.PhaseServers, services.PhaseStandby} {
			next, err := ca.Rotate(phase, fresh, now)
			if err != nil {
				t.Fatal(err)
			}
			if keys(next) != want[i] || next.CurrentPhase() != phase || !next.Since.Equal(now) {
				t.Errorf("%s CA in %s: keys %s since %v, want %s", kind, next.CurrentPhase(), keys(next), next.Since, want[i])
			}
			if phase != services.PhaseStandby {
				back, err := next.Rotate(services.PhaseRollback, services.CAKey{}, now)
				if err != nil || keys(back) != "ON" {
					t.Errorf("%s CA back from %s: keys %s, %v, want ON", kind, phase, keys(back), err)
				}
				end, err := back.Rotate(services.PhaseStandby, services.CAKey{}, now)
				if err != nil || keys(end) != "O" {
					t.Errorf("%s CA back from %s, at the end: keys %s, %v, want O", kind, phase, keys(end), err)
				}
			}
			ca = next
		}
	}
}

func TestRotateRefusesOtherSteps(t *testing.T) {
	allowed := map[services.Phase][]services.Phase{
		"":                     {services.PhaseInit},
		services.PhaseStandby:  {services.PhaseInit},
		services.PhaseInit:     {services.PhaseClients, services.PhaseRollback},
		services.PhaseClients:  {services.PhaseServers, services.PhaseRollback},
		services.PhaseServers:  {services.PhaseStandby, services.PhaseRollback},
		services.PhaseRollback: {services.PhaseStandby},
	}
	for from, list := range allowed {
		ca := services.CA{Type: sshca.TypeUser, Phase: from, Keys: []services.CAKey{caKey(), caKey()}}
		for _, to := range append(services.Phases(), "", "backwards") {
			_, err := ca.Rotate(to, caKey(), time.Now())
			if slices.Contains(list, to) != (err == nil) || err != nil && !fault.Is(err, fault.Conflict) {
				t.Errorf("from %q to %q: %v", from, to, err)
			}
		}
	}
}

func TestStandings(t *testing.T) {
	s, c := newStore(t)
	id := names.NewNodeID()
	note := func(change func(*services.Standing)) {
		t.Helper()
		check(t, s.Stand(t.Context(), sshca.KindNode, id, change))
	}
	note(func(st *services.Standing) { st.Trusts, st.Seen = []string{"SHA256:a"}, c.Now() })
	note(func(st *services.Standing) { st.Member, st.MemberEnds = "SHA256:b", c.Now().Add(time.Hour) })
	check(t, s.Stand(t.Context(), sshca.KindProxy, id, func(st *services.Standing) { st.Host = "SHA256:c" })) // of the same process
	list, err := s.Standings(t.Context())
	if err != nil || len(list) != 2 || list[0].ID != id || list[0].Kind != sshca.KindNode || list[0].Member != "SHA256:b" || !slices.Equal(list[0].Trusts, []string{"SHA256:a"}) ||
		!list[0].MemberEnds.Equal(c.Now().Add(time.Hour)) || list[1].Host != "SHA256:c" {
		t.Errorf("Standings = %+v, %v", list, err)
	}
	for range 2 {
		check(t, s.DeleteStanding(t.Context(), sshca.KindNode, id))
	}
	if list, err = s.Standings(t.Context()); err != nil || len(list) != 1 || list[0].Kind != sshca.KindProxy {
		t.Errorf("after one was deleted: %+v, %v", list, err)
	}
}

// TestHolders: who has a certificate is on record until its end at least, and a
// shorter one changes nothing.
func TestHolders(t *testing.T) {
	s, c := newStore(t)
	key, other := "SHA256:with/slash+and+plus", "SHA256:with"
	hold := func(user names.UserName, d time.Duration) {
		t.Helper()
		check(t, s.Hold(t.Context(), key, user, c.Now().Add(d)))
	}
	hold("bob", time.Hour)
	hold("alice", 2*time.Hour)
	hold("alice", time.Hour)
	list, err := s.Holders(t.Context(), key)
	if err != nil || len(list) != 2 || list[0].User != "alice" || list[1].User != "bob" {
		t.Fatalf("Holders = %+v, %v", list, err)
	}
	if late := list[0].Ends.Sub(c.Now().Add(2 * time.Hour)); late < 0 || late > 10*time.Minute {
		t.Errorf("alice's certificates end at %v, want at most ten minutes after %v", list[0].Ends, c.Now().Add(2*time.Hour))
	}
	before := list[0].Revision
	hold("alice", 2*time.Hour)
	if list, err = s.Holders(t.Context(), key); err != nil || list[0].Revision != before {
		t.Errorf("the same end again was written: %+v, %v", list, err)
	}
	if list, err := s.Holders(t.Context(), other); err != nil || len(list) != 0 {
		t.Errorf("holders of another key = %+v, %v", list, err)
	}
	check(t, s.DeleteHolders(t.Context(), key))
	if list, err = s.Holders(t.Context(), key); err != nil || len(list) != 0 {
		t.Errorf("after they were deleted: %+v, %v", list, err)
	}
}
