package auth

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// rotator calls the rotation service as a peer.
func (w *world) rotator(p rpc.Peer) accessdv1connect.RotationServiceClient {
	return accessdv1connect.NewRotationServiceClient(rpc.Local(w.Handler(), p), rpc.BaseURL, rpc.ClientOptions()...)
}

// rotate takes an authority to a phase as the administrator.
func (w *world) rotate(kind sshca.Type, phase services.Phase, force bool) (*accessdv1.CertificateAuthority, error) {
	res, err := call(w.t, w.rotator(rpc.Peer{Local: true}).RotateAuthority, &accessdv1.RotateAuthorityRequest{Type: string(kind), Phase: string(phase), Force: force})
	return res.GetAuthority(), err
}

// steps takes an authority through phases, forced.
func (w *world) steps(kind sshca.Type, phases ...services.Phase) {
	w.t.Helper()
	for _, p := range phases {
		if _, err := w.rotate(kind, p, true); err != nil {
			w.t.Fatal(err)
		}
	}
}

// signed returns the fingerprint of the key that signed a certificate.
func signed(t testing.TB, line string) string {
	t.Helper()
	return ssh.FingerprintSHA256(parseCert(t, line).SignatureKey)
}

// TestRotateUserCA: at each step the certificates that should be are good, those
// that are made are of the key that should sign, and all of it is in the log.
func TestRotateUserCA(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	good := func(line string) bool {
		cert := parseCert(t, line)
		_, err := w.cfg.Keys.Trust().CheckUser(cert, sshca.Peer{SSHUser: "alice", Addr: clientAddr.Addr(), Now: w.clock.Now()})
		return err == nil
	}
	first := w.sign("alice")
	before := signed(t, first)
	w.rec.take()
	ca, err := w.rotate(sshca.TypeUser, services.PhaseInit, false)
	if err != nil || len(ca.GetKeys()) != 2 || ca.GetKeys()[0].GetFingerprint() != before || !slices.Equal(ca.GetNext(), []string{"clients", "rollback"}) {
		t.Fatalf("init = %v, %v", ca, err)
	}
	after := ca.GetKeys()[1].GetFingerprint()
	if got := signed(t, w.sign("alice")); got != before {
		t.Errorf("in init %s signs, want the old key", got)
	}
	w.steps(sshca.TypeUser, services.PhaseClients)
	second := w.sign("alice")
	if signed(t, second) != after || !good(first) || !good(second) {
		t.Errorf("in clients: signed by %s, want %s; old good %v, new good %v", signed(t, second), after, good(first), good(second))
	}
	w.steps(sshca.TypeUser, services.PhaseServers)
	_, err = w.rotate(sshca.TypeUser, services.PhaseStandby, false)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Public(err), "user alice: has a certificate of the key that goes, until ") {
		t.Errorf("standby with a certificate that is good still = %v", err)
	}
	w.clock.advance(13 * time.Hour) // certificates are good for 12
	third := w.sign("alice")
	if _, err := w.rotate(sshca.TypeUser, services.PhaseStandby, false); err != nil {
		t.Fatal(err)
	}
	if !good(third) || len(w.cfg.Keys.Trust().User) != 1 {
		t.Errorf("in standby: new good %v, trust %v", good(third), w.cfg.Keys.Trust().User)
	}
	evs := named(w.rec.take(), events.CARotate)
	var told []string
	for _, ev := range evs {
		told = append(told, fmt.Sprint(ev.Fields["phase"], " ", ev.Success))
	}
	if want := []string{"init true", "clients true", "servers true", "standby false", "standby true"}; !slices.Equal(told, want) {
		t.Fatalf("ca.rotate tells %q, want %q", told, want)
	}
	last := evs[4].Fields
	if last["before"] != "phase=servers signs="+after+" trusts="+after+","+before || last["after"] != "phase=standby signs="+after+" trusts="+after || last["by"] != "local:0" {
		t.Errorf("the last event says %v", last)
	}
	if list, ok := evs[3].Fields["behind"].([]string); !ok || !slices.Equal(list, []string{"user:alice"}) || evs[3].Fields["behind_total"] != 1 {
		t.Errorf("the refusal says %v", evs[3].Fields)
	}
}

// TestRotateBack: what was signed meanwhile is good until the end of the rollback,
// and the old key signs again at once.
func TestRotateBack(t *testing.T) {
	w := newWorld(t, plan{})
	old := w.cfg.Keys.Trust().Host[0]
	w.steps(sshca.TypeHost, services.PhaseInit, services.PhaseClients, services.PhaseServers)
	meanwhile := w.join(sshca.KindNode, "web-1")
	if signed(t, meanwhile.joined.GetCertificates().GetHost()) == ssh.FingerprintSHA256(old) {
		t.Error("in servers the old key signs host certificates")
	}
	w.steps(sshca.TypeHost, services.PhaseRollback)
	cert := parseCert(t, meanwhile.joined.GetCertificates().GetHost())
	if err := w.cfg.Keys.Trust().CheckHost(cert, "web-1", w.clock.Now()); err != nil {
		t.Errorf("in rollback a certificate of the new key: %v", err)
	}
	if _, err := w.rotate(sshca.TypeHost, services.PhaseStandby, false); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Public(err), "node web-1: shows a host certificate of the key that goes") {
		t.Errorf("standby with a host certificate of the new key = %v", err)
	}
	renewed := must(t, meanwhile.Renew, &accessdv1.RenewRequest{Trusts: w.trusted()})
	if got := signed(t, renewed.GetCertificates().GetHost()); got != ssh.FingerprintSHA256(old) {
		t.Errorf("in rollback %s signs, want the old key", got)
	}
	if _, err := w.rotate(sshca.TypeHost, services.PhaseStandby, false); err != nil {
		t.Error(err)
	}
	if pins := must(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "host"}).GetPins(); !slices.Equal(pins, []string{sshca.Pin(old)}) {
		t.Errorf("pins after the rollback = %v, want that of the old key", pins)
	}
}

// TestRotateUnrecorded: a step that the log does not take is not made.
func TestRotateUnrecorded(t *testing.T) {
	w := newWorld(t, plan{})
	w.rec.breakFor(events.CARotate)
	if _, err := w.rotate(sshca.TypeUser, services.PhaseInit, false); !fault.Is(err, fault.Unavailable) {
		t.Errorf("init without a log = %v", err)
	}
	ca, err := w.cfg.Store.CA(t.Context(), sshca.TypeUser)
	if err != nil || ca.CurrentPhase() != services.PhaseStandby || len(ca.Keys) != 1 || len(w.cfg.Keys.Trust().User) != 1 {
		t.Errorf("the CA is in %s with %d keys, %v", ca.CurrentPhase(), len(ca.Keys), err)
	}
}

// TestRotateWithSeveralAuthorities: what one authority is told, the other does.
func TestRotateWithSeveralAuthorities(t *testing.T) {
	b, sealKey := backendtest.Open(t), t.TempDir()+"/seal.key"
	one, two := newWorld(t, plan{backend: b, sealKey: sealKey}), newWorld(t, plan{backend: b, sealKey: sealKey})
	one.addUser("alice", "access")
	one.steps(sshca.TypeUser, services.PhaseInit, services.PhaseClients)
	want := one.cfg.Keys.Trust().User
	await(t, two, func() bool {
		got := two.cfg.Keys.Trust().User
		return len(got) == 2 && slices.Equal(pins(got), pins(want))
	})
	if got := signed(t, two.sign("alice")); got != ssh.FingerprintSHA256(want[0]) {
		t.Errorf("the other authority signs with %s, want %s", got, ssh.FingerprintSHA256(want[0]))
	}
	if _, err := two.rotate(sshca.TypeUser, services.PhaseInit, true); !fault.Is(err, fault.Conflict) {
		t.Errorf("another init at the other authority = %v", err)
	}
}

func TestRotateRefusesNonsense(t *testing.T) {
	w := newWorld(t, plan{})
	for _, r := range []*accessdv1.RotateAuthorityRequest{
		{}, {Type: "user"}, {Type: "user", Phase: "backwards"}, {Type: "audit", Phase: "init"}, {Type: "users", Phase: "init"},
	} {
		if _, err := call(t, w.rotator(rpc.Peer{Local: true}).RotateAuthority, r); !fault.Is(err, fault.BadInput) {
			t.Errorf("rotate %v = %v, want bad input", r, err)
		}
	}
	m := w.join(sshca.KindNode, "web-1")
	for _, trusts := range [][]string{{"junk"}, {""}, {"SHA256:short"}, slices.Repeat([]string{signed(t, m.joined.GetCertificates().GetHost())}, 17)} {
		if _, err := call(t, m.Renew, &accessdv1.RenewRequest{Trusts: trusts}); !fault.Is(err, fault.BadInput) {
			t.Errorf("renew trusting %.30q = %v, want bad input", trusts, err)
		}
	}
}

// TestReadTrust: a plain sshd node reads an authority's keys with its certificate,
// and counts as having them. Nobody else does.
func TestReadTrust(t *testing.T) {
	w := newWorld(t, plan{})
	p, accessd := w.join(sshca.KindProxy, "edge-1"), w.join(sshca.KindNode, "web-3")
	d := w.desk(p, "node7")
	done, err := d.answer(d.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
	if err != nil {
		t.Fatal(err)
	}
	read := func(kind, line string) (*accessdv1.ReadTrustResponse, error) {
		return call(t, w.rotator(rpc.Peer{Identity: p.identity, Addr: clientAddr}).ReadTrust, &accessdv1.ReadTrustRequest{Type: kind, Certificate: line, Client: clientAddr.String()})
	}
	w.steps(sshca.TypeSSHD, services.PhaseInit)
	if _, err := w.rotate(sshca.TypeSSHD, services.PhaseClients, false); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Public(err), "sshd node7: has not fetched") {
		t.Errorf("clients before the node has the key = %v", err)
	}
	res, err := read("sshd", done.GetCertificate())
	if want := must(t, w.admin().ExportCA, &accessdv1.ExportCARequest{Type: "sshd"}).GetPublicKeys(); err != nil || len(want) != 2 || !slices.Equal(res.GetPublicKeys(), want) {
		t.Errorf("the node reads %v, %v, want %v", res.GetPublicKeys(), err, want)
	}
	if _, err := w.rotate(sshca.TypeSSHD, services.PhaseClients, false); err != nil {
		t.Errorf("clients when the node has the key: %v", err)
	}
	for _, kind := range []string{"", "user", "node", "audit"} {
		if _, err := read(kind, done.GetCertificate()); !fault.Is(err, fault.BadInput) {
			t.Errorf("reading %q = %v, want bad input", kind, err)
		}
	}
	w.addUser("alice", "access")
	for name, line := range map[string]string{
		"an accessd node's": accessd.joined.GetCertificates().GetMember(), "a proxy's": p.joined.GetCertificates().GetMember(), "a person's": w.sign("alice"),
	} {
		if _, err := read("sshd", line); !fault.Is(err, fault.Denied) {
			t.Errorf("with %s certificate = %v, want denied", name, err)
		}
	}
}

// TestWhoIsBehind: which members a step waits for, by authority.
func TestWhoIsBehind(t *testing.T) {
	now := time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)
	const old, fresh = "SHA256:old", "SHA256:new"
	at := func(name string, kind sshca.Kind, change ...func(*standing)) standing {
		m := standing{name: names.NodeName(name), dials: true, online: true, Standing: services.Standing{
			Kind: kind, ID: names.NodeID(name), Member: old, Host: old, MemberEnds: now.Add(time.Hour), HostEnds: now.Add(time.Hour),
		}}
		for _, c := range change {
			c(&m)
		}
		return m
	}
	away := func(m *standing) { m.online = false }
	expired := func(m *standing) { m.MemberEnds, m.HostEnds = now, now }
	knows := func(m *standing) { m.Trusts = []string{old, fresh} }
	renewed := func(m *standing) { m.Member, m.Host = fresh, fresh }
	sshd := func(m *standing) { m.sshd, m.Host = true, "" }
	dialled := func(m *standing) {
		m.sshd, m.dials, m.online, m.Member, m.Host, m.MemberEnds = true, false, false, "", "", time.Time{}
	}
	f := fleet{now: now, members: []standing{
		at("auth", sshca.KindAuth, away), at("auth-ok", sshca.KindAuth, knows, renewed), at("auth-gone", sshca.KindAuth, away, expired),
		at("proxy", sshca.KindProxy), at("proxy-away", sshca.KindProxy, away), at("proxy-ok", sshca.KindProxy, knows, renewed),
		at("node", sshca.KindNode), at("node-away", sshca.KindNode, away), at("node-gone", sshca.KindNode, away, expired), at("node-ok", sshca.KindNode, knows, renewed),
		at("bare", sshca.KindNode, sshd), at("bare-ok", sshca.KindNode, sshd, knows, renewed), at("bare-gone", sshca.KindNode, sshd, expired), at("dialled", sshca.KindNode, dialled),
	}}
	named := func(list []laggard) string {
		var out []string
		for _, l := range list {
			out = append(out, l.name)
		}
		return strings.Join(out, " ")
	}
	for kind, want := range map[sshca.Type]string{
		sshca.TypeUser: "auth proxy node",
		sshca.TypeNode: "auth proxy",
		sshca.TypeHost: "auth proxy proxy-away node node-away bare",
		sshca.TypeSSHD: "bare bare-gone dialled",
	} {
		if got := named(f.strangers(kind, fresh)); got != want {
			t.Errorf("strangers to a new key of the %s CA: %q, want %q", kind, got, want)
		}
	}
	for kind, want := range map[sshca.Type]string{
		sshca.TypeUser: "",
		sshca.TypeNode: "auth proxy proxy-away node node-away bare",
		sshca.TypeHost: "auth proxy proxy-away node node-away",
		sshca.TypeSSHD: "",
	} {
		if got := named(f.bearers(kind, old)); got != want {
			t.Errorf("bearers of the old key of the %s CA: %q, want %q", kind, got, want)
		}
	}
	both := together(append(f.strangers(sshca.TypeHost, fresh), f.bearers(sshca.TypeHost, old)...))
	if got := named(both); got != "auth proxy proxy-away node node-away bare" || !strings.Contains(both[0].why, ", and ") {
		t.Errorf("together: %q, the first because it %s", got, both[0].why)
	}
}

// TestPrunedStandings: of members that were removed nothing is left at the end of a
// rotation.
func TestPrunedStandings(t *testing.T) {
	w := newWorld(t, plan{})
	gone, stays := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindNode, "web-2")
	must(t, w.admin().RemoveNode, &accessdv1.RemoveNodeRequest{Node: "web-1"})
	w.steps(sshca.TypeUser, services.PhaseInit, services.PhaseRollback, services.PhaseStandby)
	list, err := w.cfg.Store.Standings(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != stays.id {
		t.Errorf("standings = %+v, %v, want that of %s without %s", list, err, stays.id, gone.id)
	}
}
