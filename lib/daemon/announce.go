package daemon

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// announcer keeps the cluster told of a proxy's addresses and tunnels, under a
// lease that ends when the proxy does.
type announcer struct {
	seat      *seat
	addresses []string
	up        func() []names.NodeID
	changed   func() <-chan struct{}

	lease string
	told  map[names.NodeID]bool // what the authority believes
}

// Run announces until ctx ends, then says that the proxy is leaving. It calls
// done after each announcement.
func (a *announcer) Run(ctx context.Context, done func()) error {
	for {
		changed := a.changed()
		ttl, err := a.announce(ctx, false)
		if err == nil {
			done()
		}
		pause := ttl / 3
		if err != nil {
			if ctx.Err() == nil {
				a.seat.log.Warn("tunnels were not announced", zap.Error(err))
			}
			pause = retryPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			a.leave(ctx)
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// leave tells that this proxy drains and holds no tunnels any more.
func (a *announcer) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryPause)
	defer cancel()
	a.up = func() []names.NodeID { return nil }
	if _, err := a.announce(ctx, true); err != nil {
		a.seat.log.Info("the leave was not announced; the lease will end by itself", zap.Error(err))
	}
}

// announce tells what changed, or everything when the authority knows nothing.
func (a *announcer) announce(ctx context.Context, draining bool) (time.Duration, error) {
	req := a.difference(draining)
	res, err := a.seat.members().Announce(ctx, connect.NewRequest(req))
	if fault.Is(err, fault.NotFound) && a.lease != "" {
		a.lease, a.told = "", nil
		req = a.difference(draining)
		res, err = a.seat.members().Announce(ctx, connect.NewRequest(req))
	}
	if err != nil {
		return 0, err
	}
	if a.told == nil {
		a.told = map[names.NodeID]bool{}
	}
	for _, id := range req.GetUp() {
		a.told[names.NodeID(id)] = true
	}
	for _, id := range req.GetDown() {
		delete(a.told, names.NodeID(id))
	}
	a.lease = res.Msg.GetLease()
	ttl := res.Msg.GetTtl().AsDuration()
	if ttl <= 0 {
		ttl = defaults.PresenceTTL
	}
	return ttl, nil
}

// difference returns the announcement that brings the authority up to date.
func (a *announcer) difference(draining bool) *accessdv1.AnnounceRequest {
	req := &accessdv1.AnnounceRequest{Lease: a.lease, Addresses: a.addresses, Draining: draining, Full: a.lease == ""}
	up := a.up()
	for _, id := range up {
		if !a.told[id] {
			req.Up = append(req.Up, string(id))
		}
	}
	for id := range a.told {
		if !slices.Contains(up, id) {
			req.Down = append(req.Down, string(id))
		}
	}
	return req
}
