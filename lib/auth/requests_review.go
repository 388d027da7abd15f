package auth

import (
	"context"
	"slices"
	"strconv"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshsig"
)

// namespace is that of signatures under reviews: in that of another cluster, or
// of another purpose, they mean nothing here.
func (s requestService) namespace() string { return "accessd-request@" + s.cfg.Keys.ClusterName() }

// reviewable refuses unless sub may give this verdict on r now.
func (s requestService) reviewable(r services.AccessRequest, sub subject, verdict string) error {
	switch {
	case verdict != services.VerdictApprove && verdict != services.VerdictDeny:
		return fault.New(fault.BadInput, "verdict %q: want %s or %s", clip(verdict), services.VerdictApprove, services.VerdictDeny)
	case sub.Name == r.User:
		return fault.New(fault.Denied, "the request is yours: nobody reviews their own")
	case sub.Bot != nil:
		return fault.New(fault.Denied, "a bot reviews nothing: a request needs a person's consent")
	case !mayReview(sub, r):
		return fault.New(fault.Denied, "no role of yours lets you review requests for %s", roleList(r.Roles)).
			WithHint("the section \"review\" of a role says which requests its holders review")
	case !r.Open(), !s.cfg.Now().Before(r.Ends()):
		return over(r)
	case verdict == services.VerdictApprove && r.State == services.RequestApproved:
		return fault.New(fault.Conflict, "the request is approved already")
	case verdict == services.VerdictApprove && slices.ContainsFunc(r.Reviews, func(v services.Review) bool { return v.By == sub.Name }):
		return fault.New(fault.Conflict, "you have approved the request already")
	}
	return nil
}

// PrepareReview returns the text that the caller would sign.
func (s requestService) PrepareReview(ctx context.Context, req *connect.Request[accessdv1.PrepareReviewRequest]) (*connect.Response[accessdv1.PrepareReviewResponse], error) {
	m := req.Msg
	if err := services.CheckRequestText("note", m.GetNote()); err != nil {
		return nil, err
	}
	r, sub, err := s.request(ctx, m.GetId())
	if err != nil {
		return nil, err
	}
	if err := s.reviewable(r, sub, m.GetVerdict()); err != nil {
		return nil, err
	}
	t, _, err := s.requestTerms(ctx, r)
	if err != nil && m.GetVerdict() == services.VerdictApprove {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.PrepareReviewResponse{
		Statement: r.Statement(s.cfg.Keys.ClusterName(), sub.Name, m.GetVerdict(), m.GetNote()),
		Namespace: s.namespace(), SignatureRequired: t.signature && m.GetVerdict() == services.VerdictApprove,
	}), nil
}

// ReviewRequest approves or denies. The last approval that was missing makes the
// request good; one denial ends it, also after that.
func (s requestService) ReviewRequest(ctx context.Context, req *connect.Request[accessdv1.ReviewRequestRequest]) (*connect.Response[accessdv1.ReviewRequestResponse], error) {
	m := req.Msg
	if err := services.CheckRequestText("note", m.GetNote()); err != nil {
		return nil, err
	}
	r, err := s.amend(ctx, m.GetId(), func(r *services.AccessRequest, sub subject) (events.Event, error) {
		v := services.Review{
			By: sub.Name, Verdict: m.GetVerdict(), Note: m.GetNote(), Time: s.cfg.Now().UTC(), Client: callerOf(ctx).addr,
			Statement: r.Statement(s.cfg.Keys.ClusterName(), sub.Name, m.GetVerdict(), m.GetNote()),
		}
		serial := uint64(0)
		err := s.reviewable(*r, sub, m.GetVerdict())
		if err == nil {
			serial, err = s.prove(ctx, m, sub, &v)
		}
		if err == nil {
			err = s.apply(ctx, r, v)
		}
		ev := reviewEvent(ctx, *r, v, serial)
		if err != nil {
			s.note(ctx, failed(ev, err))
		}
		return ev, err
	})
	if err != nil {
		return nil, err
	}
	msg, err := s.requestMessage(ctx, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ReviewRequestResponse{Request: msg}), nil
}

// apply makes v one of r's reviews and draws the conclusion.
func (s requestService) apply(ctx context.Context, r *services.AccessRequest, v services.Review) error {
	r.Reviews = append(slices.Clone(r.Reviews), v)
	if v.Verdict == services.VerdictDeny {
		r.State, r.Ended, r.EndedBy = services.RequestDenied, v.Time, string(v.By)
		return nil
	}
	t, missing, err := s.requestTerms(ctx, *r)
	if err != nil {
		return err
	}
	if t.signature && v.Proof != services.ProofSignature {
		return fault.New(fault.Denied, "an approval of this request must be signed").
			WithHint("with your agent: ssh -A …; without: pipe the text that --text prints through ssh-keygen -Y sign -n %s, and give the result with --signature -", s.namespace())
	}
	if len(missing) == 0 {
		r.State, r.Until = services.RequestApproved, v.Time.Add(min(r.TTL, t.longest))
	}
	return nil
}

// prove fills in what proves v to be sub's: a signature of the statement by a key
// of sub's or, without one, the certificate that let the connection in. It
// returns that certificate's serial number.
//
// A certificate comes with the request because a proxy that is not this process
// calls with one of its own key, made for this person; the person's says whose
// key has signed, in the words of this cluster's authority. One that has signed
// nothing is that of the connection, or what that one's stands for.
func (s requestService) prove(ctx context.Context, m *accessdv1.ReviewRequestRequest, sub subject, v *services.Review) (serial uint64, err error) {
	peer, _ := rpc.PeerFrom(ctx)
	id := peer.Identity
	var key ssh.PublicKey
	if line := m.GetCertificate(); line != "" {
		cert, err := parseCertLine(line)
		if err != nil {
			return 0, err
		}
		id, err = s.cfg.Keys.Trust().CheckUser(cert, sshca.Peer{SSHUser: string(sub.Name), Addr: peer.Addr.Addr(), Now: s.cfg.Now()})
		if err == nil {
			err = s.checkShown(ctx, id) // it need not be what let the connection in
		}
		if err != nil {
			return 0, err
		}
		if m.GetSignature() == "" && id.Serial != peer.Identity.Serial && !slices.Contains(peer.Identity.For.Serials, id.Serial) {
			return id.Serial, fault.New(fault.Denied, "the certificate is not the one that let the connection in").WithHint("sign the review with its key")
		}
		key, v.Certificate, v.PublicKey = cert.Key, keyLine(cert), keyLine(cert.Key)
	}
	v.Proof, v.Fingerprint = services.ProofConnection, id.Fingerprint
	if _, held := tokenOf(ctx); held {
		v.Proof = services.ProofAPIToken // nobody has shown the certificate's key
	}
	if m.GetSignature() == "" {
		return id.Serial, nil
	}
	sig, err := sshsig.Parse([]byte(m.GetSignature()))
	if err != nil {
		return id.Serial, err
	}
	signer := sshsig.Plain(sig.Key)
	v.Signature, v.Fingerprint, v.PublicKey = m.GetSignature(), ssh.FingerprintSHA256(signer), keyLine(signer)
	enrolled := slices.ContainsFunc(sub.Keys, func(k services.UserKey) bool { return k.Fingerprint == v.Fingerprint })
	if !enrolled && (key == nil || ssh.FingerprintSHA256(key) != v.Fingerprint) {
		return id.Serial, fault.New(fault.Denied, "the signature is by key %s, which is not the one of your certificate, and not enrolled for you", v.Fingerprint)
	}
	if err := sig.Verify(s.namespace(), []byte(v.Statement)); err != nil {
		return id.Serial, err
	}
	v.Proof = services.ProofSignature
	return id.Serial, nil
}

func reviewEvent(ctx context.Context, r services.AccessRequest, v services.Review, serial uint64) events.Event {
	ev := requestEvent(ctx, events.AccessRequestReview, r)
	ev.User = v.By
	ev.Fields["requester"], ev.Fields["verdict"], ev.Fields["proof"] = string(r.User), v.Verdict, v.Proof
	ev.Fields["state"], ev.Fields["statement"], ev.Fields["fingerprint"] = string(r.State), v.Statement, v.Fingerprint
	set(ev, "signature", v.Signature)
	set(ev, "certificate", v.Certificate)
	set(ev, "public_key", v.PublicKey)
	set(ev, "note", v.Note)
	if serial != 0 {
		ev.Fields["cert_serial"] = strconv.FormatUint(serial, 10)
	}
	return ev
}

// elevated returns sub with what approved requests give sub now, which the next
// sign-in brings along.
func (a *Authority) elevated(ctx context.Context, sub subject) (subject, error) {
	all, err := a.cfg.Store.Elevations(ctx)
	if err != nil {
		return sub, err
	}
	for _, g := range all {
		if g.Is(sub.User) {
			if sub, err = a.with(ctx, sub, g); err != nil {
				return sub, err
			}
		}
	}
	return sub, nil
}

// with returns sub with what g gives.
func (a *Authority) with(ctx context.Context, sub subject, g services.Elevation) (subject, error) {
	sub.Roles, sub.roles, sub.requests = slices.Clone(sub.Roles), slices.Clone(sub.roles), append(slices.Clone(sub.requests), g.ID)
	for _, name := range g.Roles {
		if slices.Contains(sub.Roles, name) {
			continue
		}
		role, err := a.cfg.Store.Role(ctx, name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return sub, err
		}
		sub.Roles, sub.roles = append(sub.Roles, name), append(sub.roles, role)
	}
	return sub, nil
}

// bound makes r end with the first of the access requests whose roles it has. One
// that has ended, or is another's, is a refusal: this is the last to look.
func (a *Authority) bound(ctx context.Context, r *sshca.UserRequest) error {
	for _, id := range r.Requests {
		g, err := a.cfg.Store.Elevation(ctx, id)
		if fault.Is(err, fault.NotFound) || err == nil && g.User != r.User {
			return fault.New(fault.Denied, "access request %s has ended", clip(id)).WithHint("sign in again")
		}
		if err != nil {
			return err
		}
		if g.Until.Before(r.ValidBefore) {
			r.ValidBefore = g.Until
		}
	}
	return nil
}

// standingRequests returns which of the requests that a certificate of user's names still
// give something, and what roles they give.
func (a *Authority) standingRequests(ctx context.Context, user names.UserName, requests []string) (live []string, roles []names.RoleName, err error) {
	for _, id := range requests {
		g, err := a.cfg.Store.Elevation(ctx, id)
		if fault.Is(err, fault.NotFound) || err == nil && g.User != user {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		live, roles = append(live, id), append(roles, g.Roles...)
	}
	return live, roles, nil
}
