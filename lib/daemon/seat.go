package daemon

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Pauses of the loops that keep a member in touch with the authority.
const (
	retryPause  = 2 * time.Second  // after a call failed
	renewPause  = time.Minute      // after a renewal failed
	renewSpread = time.Second      // before one that the authorities' keys ask for, at most
	savePause   = 5 * time.Second  // between two copies of the policy on disk
	reportEvery = 30 * time.Second // live sessions, even when none changed
	reportPause = time.Second      // between two reports of live sessions
)

// seat is one role's place in the cluster: who it is, and its way to the
// authority.
type seat struct {
	*member
	calls *http.Client
	trust func() sshca.Trust // the authorities' keys as this process believes them
	cache *services.Cache    // tells when those may have changed
	log   *zap.Logger

	// admit has the authority in this process give the member certificates anew; nil
	// where the authority is elsewhere.
	admit func(ctx context.Context) error
}

func (s *seat) members() accessdv1connect.MemberServiceClient {
	return rpc.Service(s.calls, accessdv1connect.NewMemberServiceClient)
}

// localCalls returns a client that calls h in this process as m, with the
// identity m has at the time of each call.
func localCalls(h http.Handler, m *member, trust func() sshca.Trust) *http.Client {
	return &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
		id, err := m.identity(trust(), time.Now())
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "this process's own certificate is not good")
		}
		return rpc.Local(h, rpc.Peer{Identity: id}).Transport.RoundTrip(req)
	})}
}

// asMember returns a handler whose calls are m's, as of [localCalls].
func asMember(h http.Handler, m *member, trust func() sshca.Trust) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := m.identity(trust(), time.Now())
		if err != nil {
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		h.ServeHTTP(w, r.WithContext(rpc.WithPeer(r.Context(), rpc.Peer{Identity: id})))
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// sleep waits for d or the end of ctx, and reports whether to go on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// drain ships events to the log, for [events.Emitter.Run].
func (s *seat) drain(ctx context.Context, batch [][]byte) error {
	_, err := s.members().AppendEvents(ctx, connect.NewRequest(&accessdv1.AppendEventsRequest{Events: batch}))
	return err
}

// renew keeps the certificates fresh until ctx ends. It also has them renewed
// when the authorities' keys change, so that a rotation has nobody to wait for:
// with each renewal the authority is told which keys this process trusts.
func (s *seat) renew(ctx context.Context) error {
	for {
		state := s.state.Load()
		if !s.untilRenewal(ctx, state) {
			return nil
		}
		trust := s.trust()
		err := s.renewOnce(ctx, state, trust)
		if err == nil && s.state.Load().signedBy(trust) {
			continue
		}
		if err != nil { // else an authority does not sign with the new keys yet
			s.log.Warn("certificates were not renewed", zap.Time("expires", state.Expires), zap.Error(err))
		}
		if !sleep(ctx, renewPause) {
			return nil
		}
	}
}

// renewOnce has the certificates of state renewed. Those of the authority's own
// process may be of a key that is gone already, where somebody forced a rotation
// faster than it could follow: it lets itself in again.
func (s *seat) renewOnce(ctx context.Context, state *memberState, trust sshca.Trust) error {
	if s.admit != nil {
		if _, err := s.identity(trust, time.Now()); err != nil {
			return s.admit(ctx)
		}
	}
	res, err := s.members().Renew(ctx, connect.NewRequest(&accessdv1.RenewRequest{Trusts: trust.Fingerprints()}))
	if err != nil {
		return err
	}
	return s.adopt(state.renewed(res.Msg.GetCertificates()).believing(trust))
}

// untilRenewal waits until it is time to renew the certificates of state, or
// until the authorities' keys are others than the authority was told or than the
// certificates are of, and reports whether to go on. In a large cluster not everybody asks at once.
func (s *seat) untilRenewal(ctx context.Context, state *memberState) bool {
	timer := time.NewTimer(max(time.Until(state.Renew), time.Second))
	defer timer.Stop()
	for seen := s.cache.Revision() + 1; ; { // another than any
		changed := s.cache.Changed()
		if now := s.cache.Revision(); now != seen {
			seen = now
			if trust := s.trust(); !state.believes(trust) || !state.signedBy(trust) {
				return sleep(ctx, rand.N(renewSpread)) //nolint:gosec // spreads load, keeps no secret
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

// policy is a [services.Source]: the policy as the authority streams it.
func (s *seat) policy(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error {
	stream, err := s.members().WatchPolicy(ctx, connect.NewRequest(&accessdv1.WatchPolicyRequest{}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // what went wrong is in stream.Err
	for stream.Receive() {
		if err := fn(stream.Msg()); err != nil {
			return err
		}
	}
	return cmp.Or(stream.Err(), error(fault.New(fault.Unavailable, "the policy stream ended")))
}

// followPolicy keeps cache fed until ctx ends, through losses of the authority.
func (s *seat) followPolicy(ctx context.Context, cache *services.Cache) error {
	for {
		err := cache.Run(ctx, s.policy)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an orderly stop
		}
		s.log.Info("the authority is away; going on with the policy as it was", zap.Error(err))
		if !sleep(ctx, retryPause) {
			return nil
		}
	}
}

// savePolicy keeps a copy of cache at path, so that this member serves after a
// restart while the authority is away.
func (s *seat) savePolicy(ctx context.Context, cache *services.Cache, path string) error {
	select {
	case <-ctx.Done():
		return nil
	case <-cache.Synced():
	}
	for {
		changed := cache.Changed()
		if err := cache.Save(path); err != nil {
			s.log.Warn("the policy was not saved", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if !sleep(ctx, savePause) {
			return nil
		}
	}
}

// instructions hands what the authority asks of this member to fn, until ctx
// ends.
func (s *seat) instructions(ctx context.Context, fn func(*accessdv1.Instruction)) error {
	for {
		stream, err := s.members().Instructions(ctx, connect.NewRequest(&accessdv1.InstructionsRequest{}))
		if err == nil {
			for stream.Receive() {
				fn(stream.Msg())
			}
			_ = stream.Close() // it has ended
		}
		if !sleep(ctx, retryPause) {
			return nil
		}
	}
}

// report tells the authority the live sessions whenever they change, and now
// and then so that it keeps them.
func (s *seat) report(ctx context.Context, live func() []*accessdv1.LiveSession, changed func() (first, second <-chan struct{})) error {
	for {
		first, second := changed()
		_, err := s.members().ReportSessions(ctx, connect.NewRequest(&accessdv1.ReportSessionsRequest{Sessions: live()}))
		pause := reportEvery
		if err != nil {
			pause = retryPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-first:
		case <-second:
		case <-timer.C:
		}
		timer.Stop()
		// A burst of sessions is one report: each replaces the whole list.
		if !sleep(ctx, reportPause) {
			return nil
		}
	}
}
