package services

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// Phase is how far the rotation of an authority is.
type Phase string

// The phases of a rotation, in their order. From each but the first a rotation
// can be rolled back.
const (
	PhaseStandby  Phase = "standby"  // there is one key
	PhaseInit     Phase = "init"     // there is a second one, which is trusted and signs nothing
	PhaseClients  Phase = "clients"  // those who dial get certificates of the new key
	PhaseServers  Phase = "servers"  // those who answer do, too
	PhaseRollback Phase = "rollback" // the old key signs again; the new one is trusted
)

// Phases returns all phases.
func Phases() []Phase {
	return []Phase{PhaseStandby, PhaseInit, PhaseClients, PhaseServers, PhaseRollback}
}

// CurrentPhase returns how far the rotation of ca is.
func (ca CA) CurrentPhase() Phase {
	if ca.Phase == "" { // never rotated
		return PhaseStandby
	}
	return ca.Phase
}

// SwitchPhase returns the phase in which the new key of an authority of type t
// begins to sign: with the clients where those show its certificates, with the
// servers where only they do.
func SwitchPhase(t sshca.Type) Phase {
	if t == sshca.TypeHost {
		return PhaseServers
	}
	return PhaseClients
}

// NextPhases returns the phases into which ca can go, onwards first.
func (ca CA) NextPhases() []Phase {
	switch ca.CurrentPhase() {
	case PhaseStandby:
		return []Phase{PhaseInit}
	case PhaseInit:
		return []Phase{PhaseClients, PhaseRollback}
	case PhaseClients:
		return []Phase{PhaseServers, PhaseRollback}
	case PhaseServers:
		return []Phase{PhaseStandby, PhaseRollback}
	case PhaseRollback:
		return []Phase{PhaseStandby}
	}
	return nil
}

// CheckPhase returns a [fault.Conflict] error unless ca can go into phase to.
func (ca CA) CheckPhase(to Phase) error {
	next := ca.NextPhases()
	if slices.Contains(next, to) {
		return nil
	}
	list := make([]string, len(next))
	for i, p := range next {
		list[i] = string(p)
	}
	return fault.New(fault.Conflict, "the %s CA is in phase %s: it goes to %s, not to %s", ca.Type, ca.CurrentPhase(), strings.Join(list, " or "), to)
}

// Rotate returns ca in phase to, into which it must be able to go. fresh is the
// key that [PhaseInit] adds; otherwise it means nothing. The first key is always
// the one that signs, and [PhaseStandby] keeps no other: so it is the end of a
// rotation and of one that was rolled back.
func (ca CA) Rotate(to Phase, fresh CAKey, now time.Time) (CA, error) {
	if err := ca.CheckPhase(to); err != nil {
		return CA{}, err
	}
	next := ca
	next.Keys = slices.Clone(ca.Keys)
	next.Phase, next.Since = to, now.UTC()
	switch {
	case to == PhaseInit:
		next.Keys = append(next.Keys[:1:1], fresh)
	case to == PhaseStandby:
		next.Keys = next.Keys[:1:1]
	case to == SwitchPhase(ca.Type), to == PhaseRollback && ca.Switched():
		slices.Reverse(next.Keys)
	}
	return next, nil
}

// Switched reports whether ca is in a rotation whose new key signs.
func (ca CA) Switched() bool {
	p := ca.CurrentPhase()
	return p == PhaseServers || p == PhaseClients && SwitchPhase(ca.Type) == PhaseClients
}

// Fingerprint returns the fingerprint of the public half, "SHA256:…", or "" when
// there is none.
func (k CAKey) Fingerprint() string {
	key, err := publicKey(k)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}

// Fingerprints returns those of ca's keys; the first one's key signs.
func (ca CA) Fingerprints() []string {
	out := make([]string, len(ca.Keys))
	for i, k := range ca.Keys {
		out[i] = k.Fingerprint()
	}
	return out
}

// ParseCA returns the public view of an authority that r carries.
func ParseCA(r *accessdv1.Resource) (CA, error) {
	ca, err := parsed(r, func(v CA) string { return string(v.Type) })
	if err != nil {
		return CA{}, err
	}
	ca = ca.Public() // there is nothing else in it, and never shall be
	ca.Revision = r.GetRevision()
	for _, k := range ca.Keys {
		if _, err := publicKey(k); err != nil {
			return CA{}, fault.New(fault.BadInput, "policy: ca %q: %w", ca.Type, err)
		}
	}
	return ca, nil
}
