package auth

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// fingerprintGrammar is that of what ssh.FingerprintSHA256 returns.
var fingerprintGrammar = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)

// maxTrusted bounds the keys a member says that it trusts: two of each of four
// authorities are the most there are.
const maxTrusted = 16

// parseTrusts returns the fingerprints of the keys that a member says it trusts.
func parseTrusts(list []string) ([]string, error) {
	if len(list) > maxTrusted {
		return nil, fault.New(fault.BadInput, "%d trusted keys: want at most %d", len(list), maxTrusted)
	}
	for _, s := range list {
		if !fingerprintGrammar.MatchString(s) {
			return nil, fault.New(fault.BadInput, "trusted key %q: want a SHA-256 fingerprint", clip(s))
		}
	}
	return list, nil
}

// trusted returns the fingerprints of all keys that are authorities now.
func (a *Authority) trusted() []string { return a.cfg.Keys.Trust().Fingerprints() }

// noteTrust notes that a plain sshd node has the keys named on its machine, and
// forgets those that are no authority's any more.
func (a *Authority) noteTrust(ctx context.Context, rec *record, keys ...string) error {
	current := a.trusted()
	return a.cfg.Store.Stand(ctx, rec.Kind, rec.ID, func(st *services.Standing) {
		had := slices.DeleteFunc(st.Trusts, func(key string) bool { return !slices.Contains(current, key) })
		st.Trusts = slices.Compact(slices.Sorted(slices.Values(append(had, keys...))))
	})
}

// stand notes that rec gets the certificates given, any of which may be nil, and
// trusts the keys that trusts names; nil is what it did before.
func (a *Authority) stand(ctx context.Context, rec *record, trusts []string, given ...*ssh.Certificate) error {
	return a.cfg.Store.Stand(ctx, rec.Kind, rec.ID, func(st *services.Standing) {
		st.Seen = a.cfg.Now().UTC()
		if trusts != nil {
			st.Trusts = trusts
		}
		for _, c := range given {
			signed, ends := ssh.FingerprintSHA256(c.SignatureKey), certTime(c.ValidBefore)
			if c.CertType == ssh.HostCert {
				st.Host, st.HostEnds = signed, ends
			} else {
				st.Member, st.MemberEnds = signed, ends
			}
		}
	})
}

// A laggard is somebody for whom the next step of a rotation comes too early.
type laggard struct {
	kind, name, id string
	why            string
	online         bool
	until          time.Time // when it settles by itself; zero when it does not
}

// String says so in one line.
func (l laggard) String() string {
	s := l.kind + " " + l.name + ": " + l.why
	if !l.until.IsZero() {
		s += ", until " + l.until.UTC().Format(time.RFC3339)
	}
	return s
}

// A fleet is what is known of the members.
type fleet struct {
	now     time.Time
	members []standing // by kind and name
}

// A standing is a member on record.
type standing struct {
	services.Standing // empty when nothing was noted yet

	name   names.NodeName
	sshd   bool // a plain sshd node
	dials  bool // it dials home, as every member but a plain sshd node with an address
	online bool // connected now, for all that is known
}

// what returns what people call such a member.
func (m standing) what() string {
	if m.sshd {
		return services.NodeSSHD
	}
	return string(m.Kind)
}

func (a *Authority) fleet(ctx context.Context) (fleet, error) {
	f := fleet{now: a.cfg.Now()}
	noted, err := a.cfg.Store.Standings(ctx)
	if err != nil {
		return f, err
	}
	type place struct {
		kind sshca.Kind
		id   names.NodeID
	}
	by := map[place]services.Standing{}
	for _, st := range noted {
		by[place{st.Kind, st.ID}] = st
	}
	add := func(m standing, id names.NodeID, kind sshca.Kind) {
		m.Standing = by[place{kind, id}]
		m.ID, m.Kind = id, kind
		f.members = append(f.members, m)
	}
	members, err := a.cfg.Store.Members(ctx)
	if err != nil {
		return f, err
	}
	for _, m := range members {
		_, up := a.cfg.Cache.Proxy(m.ID)
		add(standing{name: m.Name, dials: true, online: up}, m.ID, m.Kind)
	}
	nodes, err := a.cfg.Store.Nodes(ctx)
	if err != nil {
		return f, err
	}
	for _, n := range nodes {
		add(standing{
			name: n.Name, sshd: n.Kind == services.NodeSSHD, dials: n.Address == "" && n.MemberKey != "", online: len(a.cfg.Cache.Presence(n.ID)) > 0,
		}, n.ID, sshca.KindNode)
	}
	slices.SortStableFunc(f.members, func(x, y standing) int {
		return strings.Compare(x.what()+" "+string(x.name), y.what()+" "+string(y.name))
	})
	return f, nil
}

// pruneStandings forgets members that are on record no more.
func (a *Authority) pruneStandings(ctx context.Context) error {
	noted, err := a.cfg.Store.Standings(ctx)
	if err != nil {
		return err
	}
	for _, st := range noted {
		_, err := a.recordOf(ctx, st.Kind, st.ID)
		if fault.Is(err, fault.NotFound) {
			err = a.cfg.Store.DeleteStanding(ctx, st.Kind, st.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// behind returns for whom the step of ca to phase gate, which [gateOf] returned,
// comes too early.
func (a *Authority) behind(ctx context.Context, ca services.CA, gate services.Phase, f fleet) ([]laggard, error) {
	keys := ca.Fingerprints()
	if gate != services.PhaseStandby {
		return f.strangers(ca.Type, keys[1]), nil
	}
	var late []laggard
	if ca.CurrentPhase() != services.PhaseRollback { // whose key that stays is the one that everybody knows
		late = f.strangers(ca.Type, keys[0])
	}
	for _, old := range keys[1:] {
		late = append(late, f.bearers(ca.Type, old)...)
		if ca.Type != sshca.TypeUser {
			continue
		}
		holders, err := a.cfg.Store.Holders(ctx, old)
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			if f.now.Before(h.Ends) {
				late = append(late, laggard{kind: "user", name: string(h.User), why: "has a certificate of the key that goes", until: h.Ends})
			}
		}
	}
	return together(late), nil
}

// together names everybody once, with all reasons, in the order of their first.
func together(late []laggard) []laggard {
	type who struct{ kind, name, id string }
	at := map[who]int{}
	var out []laggard
	for _, l := range late {
		i, again := at[who{l.kind, l.name, l.id}]
		if !again {
			at[who{l.kind, l.name, l.id}] = len(out)
			out = append(out, l)
			continue
		}
		if o := &out[i]; o.until.IsZero() || l.until.IsZero() {
			o.why, o.until = o.why+", and "+l.why, time.Time{}
		} else {
			o.why, o.until = o.why+", and "+l.why, slices.MaxFunc([]time.Time{o.until, l.until}, time.Time.Compare)
		}
	}
	return out
}

// strangers returns the members that check certificates of authority t and do
// not trust key. A member that is away learns of it when it comes back, over a
// connection that has nothing to do with t: so only those that are there count.
// The host CA is the other way round: that connection itself is what a member
// that does not trust the key would refuse, for as long as it has a certificate
// to come back with. Plain sshd nodes trust what was last put on them, and have
// never told of it unless they asked for it themselves.
func (f fleet) strangers(t sshca.Type, key string) []laggard {
	var late []laggard
	for _, m := range f.members {
		l := laggard{kind: m.what(), name: string(m.name), id: string(m.ID), why: "does not trust the key that signs next", online: m.online}
		good := m.MemberEnds.After(f.now)
		switch {
		case slices.Contains(m.Trusts, key):
			continue
		case m.sshd && t == sshca.TypeSSHD, m.sshd && t == sshca.TypeHost && m.dials && good:
			l.why = "has not fetched the key that signs next"
		case m.sshd:
			continue
		case t == sshca.TypeHost && good:
			l.until = m.MemberEnds
		case t == sshca.TypeUser && good && (m.online || m.Kind == sshca.KindAuth),
			t == sshca.TypeNode && good && (m.online && m.Kind != sshca.KindNode || m.Kind == sshca.KindAuth):
		default:
			continue
		}
		late = append(late, l)
	}
	return late
}

// bearers returns the members whose certificate of authority t was signed with
// key and is good still.
func (f fleet) bearers(t sshca.Type, key string) []laggard {
	var late []laggard
	for _, m := range f.members {
		l := laggard{kind: m.what(), name: string(m.name), id: string(m.ID), online: m.online}
		switch {
		case t == sshca.TypeNode && m.Member == key && m.MemberEnds.After(f.now):
			l.why, l.until = "has a member certificate of the key that goes", m.MemberEnds
		case t == sshca.TypeHost && m.Host == key && m.HostEnds.After(f.now):
			l.why, l.until = "shows a host certificate of the key that goes", m.HostEnds
		default:
			continue
		}
		late = append(late, l)
	}
	return late
}

// hold notes that a person gets c.
func (a *Authority) hold(ctx context.Context, user names.UserName, c *ssh.Certificate) error {
	return a.cfg.Store.Hold(ctx, ssh.FingerprintSHA256(c.SignatureKey), user, certTime(c.ValidBefore))
}
