package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

type rotationService struct{ *Authority }

// followKeys makes this authority sign with, and trust, what u says of the
// authorities' keys, before anybody hears of it. Keys that cannot be unsealed now
// are tried again later; meanwhile the old ones sign.
func (a *Authority) followKeys(ctx context.Context, u *accessdv1.PolicyUpdate) {
	for _, r := range u.GetPut() {
		t := sshca.Type(r.GetKey().GetName())
		if r.GetKey().GetKind() != services.KindCA || !slices.Contains(caTypes(), t) {
			continue
		}
		ca, err := services.ParseCA(r)
		if err == nil {
			err = a.followCA(ctx, ca)
		}
		if err != nil {
			a.cfg.Log.Error("the new keys of an authority cannot be used yet", zap.String("ca", string(t)), zap.Error(err))
		}
	}
}

func (a *Authority) followCA(ctx context.Context, ca services.CA) error {
	lines := make([]string, len(ca.Keys))
	for i, k := range ca.Keys {
		lines[i] = k.Public
	}
	return a.cfg.Keys.follow(ctx, ca.Type, lines)
}

// refreshKeys is followKeys for what the store has now.
func (a *Authority) refreshKeys(ctx context.Context) {
	for _, t := range caTypes() {
		ca, err := a.cfg.Store.CA(ctx, t)
		if err == nil {
			err = a.followCA(ctx, ca)
		}
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("the keys of an authority cannot be used yet", zap.String("ca", string(t)), zap.Error(err))
		}
	}
}

// parseCAType returns the authority that is called s.
func parseCAType(s string) (sshca.Type, error) {
	t := sshca.Type(s)
	if !slices.Contains(caTypes(), t) {
		return "", fault.New(fault.BadInput, "CA type %q: want user, host, node or sshd", clip(s))
	}
	return t, nil
}

// ListAuthorities tells how far each authority's rotation is.
func (s rotationService) ListAuthorities(ctx context.Context, _ *connect.Request[accessdv1.ListAuthoritiesRequest]) (*connect.Response[accessdv1.ListAuthoritiesResponse], error) {
	res := &accessdv1.ListAuthoritiesResponse{}
	fleet, err := s.fleet(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range caTypes() {
		ca, err := s.cfg.Store.CA(ctx, t)
		if err != nil {
			return nil, err
		}
		m, err := s.authorityMessage(ctx, ca, fleet)
		if err != nil {
			return nil, err
		}
		res.Authorities = append(res.Authorities, m)
	}
	return connect.NewResponse(res), nil
}

// maxBehind bounds those who are named behind in one answer; all are counted.
const maxBehind = 100

func (a *Authority) authorityMessage(ctx context.Context, ca services.CA, f fleet) (*accessdv1.CertificateAuthority, error) {
	m := &accessdv1.CertificateAuthority{Type: string(ca.Type), Phase: string(ca.CurrentPhase())}
	if !ca.Since.IsZero() {
		m.Since = timestamppb.New(ca.Since)
	}
	for i, k := range ca.Keys {
		m.Keys = append(m.Keys, &accessdv1.AuthorityKey{Fingerprint: k.Fingerprint(), Created: timestamppb.New(k.Created), Signs: i == 0})
	}
	for _, p := range ca.NextPhases() {
		m.Next = append(m.Next, string(p))
	}
	gate, ok := gateOf(ca)
	if !ok {
		return m, nil
	}
	m.Gate = string(gate)
	behind, err := a.behind(ctx, ca, gate, f)
	if err != nil {
		return nil, err
	}
	m.BehindTotal = int32(len(behind))
	for _, l := range behind[:min(len(behind), maxBehind)] {
		b := &accessdv1.Laggard{Kind: l.kind, Name: l.name, Id: l.id, Why: l.why, Online: l.online}
		if !l.until.IsZero() {
			b.Until = timestamppb.New(l.until)
		}
		m.Behind = append(m.Behind, b)
	}
	return m, nil
}

// gateOf returns the next phase of ca's rotation for which somebody could be
// behind: that in which the new key begins to sign, or that which ends the trust
// in a key. The others take nothing from anybody.
func gateOf(ca services.CA) (services.Phase, bool) {
	switch {
	case ca.CurrentPhase() == services.PhaseStandby:
		return "", false
	case ca.CurrentPhase() == services.PhaseRollback || ca.Switched():
		return services.PhaseStandby, true
	}
	return services.SwitchPhase(ca.Type), true
}

// RotateAuthority takes an authority to another phase. Unless it is forced, it
// refuses while somebody would be left behind.
func (s rotationService) RotateAuthority(ctx context.Context, req *connect.Request[accessdv1.RotateAuthorityRequest]) (*connect.Response[accessdv1.RotateAuthorityResponse], error) {
	t, err := parseCAType(req.Msg.GetType())
	if err != nil {
		return nil, err
	}
	to := services.Phase(req.Msg.GetPhase())
	if !slices.Contains(services.Phases(), to) {
		return nil, fault.New(fault.BadInput, "phase %q: want init, clients, servers, standby or rollback", clip(string(to)))
	}
	ca, err := s.cfg.Store.CA(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := ca.CheckPhase(to); err != nil {
		return nil, err
	}
	f, err := s.fleet(ctx)
	if err != nil {
		return nil, err
	}
	late, err := s.left(ctx, ca, to, f)
	if err != nil {
		return nil, err
	}
	if len(late) > 0 && !req.Msg.GetForce() {
		return nil, s.refuseRotation(ctx, ca, to, late)
	}
	next, err := s.rotate(ctx, ca, to, late)
	if err != nil {
		return nil, err
	}
	m, err := s.authorityMessage(ctx, next, f)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.RotateAuthorityResponse{Authority: m}), nil
}

// left returns who would be left behind by the step to phase to.
func (s rotationService) left(ctx context.Context, ca services.CA, to services.Phase, f fleet) ([]laggard, error) {
	if gate, ok := gateOf(ca); !ok || gate != to {
		return nil, nil
	}
	return s.behind(ctx, ca, to, f)
}

// rotate takes ca to phase to and has this authority follow at once.
func (s rotationService) rotate(ctx context.Context, ca services.CA, to services.Phase, late []laggard) (services.CA, error) {
	var fresh services.CAKey
	var err error
	if to == services.PhaseInit {
		if fresh, err = s.cfg.Keys.cfg.newKey(ctx, ca.Type); err != nil {
			return ca, err
		}
	}
	next, err := ca.Rotate(to, fresh, s.cfg.Now())
	if err != nil {
		return ca, err
	}
	evs := []events.Event{rotateEvent(ctx, ca, &next, late)}
	if to == services.PhaseInit {
		evs = append([]events.Event{{Name: events.CACreate, AddrRemote: callerOf(ctx).addr, Fields: map[string]any{
			"by": callerOf(ctx).by, "ca_type": string(ca.Type), "fingerprint": fresh.Fingerprint(), "reason": "rotation",
		}}}, evs...)
	}
	err = s.changeAll(ctx, evs, func() error {
		next, err = s.cfg.Store.UpdateCA(ctx, next)
		return err
	})
	if err != nil {
		return ca, err
	}
	if err := s.followCA(ctx, next); err != nil {
		return ca, err
	}
	if to == services.PhaseStandby {
		s.forgetKeys(ctx, ca, next)
	}
	return next, nil
}

// forgetKeys forgets who had certificates of the keys that ca had and next has
// not, and those members that are on record no more. What cannot be forgotten now
// is in nobody's way.
func (s rotationService) forgetKeys(ctx context.Context, ca, next services.CA) {
	kept := next.Fingerprints()
	for _, key := range ca.Fingerprints() {
		if slices.Contains(kept, key) {
			continue
		}
		if err := s.cfg.Store.DeleteHolders(ctx, key); err != nil {
			s.cfg.Log.Info("holders of an old key are still on record", zap.Error(err))
		}
	}
	if err := s.pruneStandings(ctx); err != nil {
		s.cfg.Log.Info("members that were removed are still on record", zap.Error(err))
	}
}

// refuseRotation records and returns that late would be left behind.
func (s rotationService) refuseRotation(ctx context.Context, ca services.CA, to services.Phase, late []laggard) error {
	err := fault.New(fault.Conflict, "%d would be left behind by phase %s of the %s CA:\n%s", len(late), to, ca.Type, describe(late)).
		WithHint("wait for them, or remove them, or leave them behind with --force; \"accessd ca status\" shows the list as it is")
	ev := rotateEvent(ctx, ca, nil, late)
	ev.Fields["phase"], ev.Error, ev.Fields["reason"] = string(to), "somebody is behind", "somebody is behind"
	s.note(ctx, ev)
	return err
}

// maxDescribed bounds those who are named in an error or an event.
const maxDescribed = 20

// describe names laggards, one on a line.
func describe(late []laggard) string {
	var b strings.Builder
	for i, l := range late[:min(len(late), maxDescribed)] {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("  " + l.String())
	}
	if more := len(late) - maxDescribed; more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", more)
	}
	return b.String()
}

// rotateEvent describes a step of a rotation; after is nil when it is refused.
func rotateEvent(ctx context.Context, before services.CA, after *services.CA, late []laggard) events.Event {
	c := callerOf(ctx)
	ev := events.Event{Name: events.CARotate, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "ca_type": string(before.Type), "before": caText(before),
	}}
	if after != nil {
		ev.Fields["phase"], ev.Fields["after"] = string(after.Phase), caText(*after)
	}
	if len(late) > 0 {
		named := make([]string, 0, maxDescribed)
		for _, l := range late[:min(len(late), maxDescribed)] {
			named = append(named, l.kind+":"+l.name)
		}
		ev.Fields["behind"], ev.Fields["behind_total"], ev.Fields["forced"] = named, len(late), after != nil
	}
	return ev
}

// caText says in one line how far an authority's rotation is, for events.
func caText(ca services.CA) string {
	keys := ca.Fingerprints()
	return fmt.Sprintf("phase=%s signs=%s trusts=%s", ca.CurrentPhase(), keys[0], strings.Join(keys, ","))
}

// ReadTrust returns an authority's keys to a plain sshd node that puts them into
// its files, and notes that it has them. A node reads what such files are for:
// whose host certificates it believes, and whose session certificates it takes.
func (s rotationService) ReadTrust(ctx context.Context, req *connect.Request[accessdv1.ReadTrustRequest]) (*connect.Response[accessdv1.ReadTrustResponse], error) {
	t := sshca.Type(req.Msg.GetType())
	if t != sshca.TypeHost && t != sshca.TypeSSHD {
		return nil, fault.New(fault.BadInput, "CA type %q: a node has a use for host and sshd only", clip(string(t)))
	}
	client, err := parseClient(req.Msg.GetClient())
	if err != nil {
		return nil, err
	}
	rec, err := loginService(s).provenNode(ctx, req.Msg.GetCertificate(), client)
	if err != nil {
		return nil, err
	}
	ca, err := s.cfg.Store.CA(ctx, t)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ReadTrustResponse{}
	for _, k := range ca.Keys {
		res.PublicKeys = append(res.PublicKeys, k.Public)
	}
	return connect.NewResponse(res), s.noteTrust(ctx, rec, ca.Fingerprints()...)
}
