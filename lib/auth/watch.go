package auth

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// kindSession is the kind, in a watch, of a live session.
const kindSession = "session"

// watchable says, for each kind there is to watch, which resource of the roles it
// takes to read it.
func watchable() map[string]string {
	return map[string]string{
		services.KindRole: "roles", services.KindUser: "users", services.KindCA: "ca",
		services.KindNode: "nodes", services.KindPresence: "nodes", services.KindProxy: "nodes",
		services.KindLock: "locks", kindSession: "sessions",
	}
}

type watchService struct{ *Authority }

// Watch streams resources and their changes. Every message is sent only if the
// caller may still read what is in it.
func (s watchService) Watch(ctx context.Context, req *connect.Request[accessdv1.WatchRequest], stream *connect.ServerStream[accessdv1.PolicyUpdate]) error {
	kinds := req.Msg.GetKinds()
	if len(kinds) == 0 {
		return fault.New(fault.BadInput, "no kind to watch")
	}
	for _, k := range kinds {
		if _, ok := watchable()[k]; !ok {
			return fault.New(fault.BadInput, "no kind %q to watch", clip(k))
		}
	}
	peer, _ := rpc.PeerFrom(ctx)
	if peer.Identity != nil {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, peer.Identity.ValidBefore, fault.New(fault.Denied, "the certificate has expired"))
		defer stop()
	}
	var turn sync.Mutex
	send := func(u *accessdv1.PolicyUpdate) error {
		turn.Lock()
		defer turn.Unlock()
		if err := s.mayWatch(peer.Identity, kinds); err != nil {
			return err
		}
		return stream.Send(u)
	}
	if err := s.mayWatch(peer.Identity, kinds); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	sessions := slices.Contains(kinds, kindSession)
	if policy := slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == kindSession }); len(policy) > 0 {
		g.Go(func() error { return s.watchPolicy(ctx, policy, send) })
	}
	if sessions {
		g.Go(func() error { return s.watchSessions(ctx, send) })
	}
	err := g.Wait()
	if cause := context.Cause(ctx); fault.Is(cause, fault.Denied) {
		return cause
	}
	return err
}

// mayWatch refuses id, unless its roles let it read every one of kinds; nil is the
// admin socket.
func (s watchService) mayWatch(id *sshca.Identity, kinds []string) error {
	if id == nil {
		return nil
	}
	for _, k := range kinds {
		if err := s.cfg.Engine.Resource(id, watchable()[k], "read").Err("you may not watch " + k); err != nil {
			return err
		}
	}
	return nil
}

// watchPolicy sends the resources of kinds and what changes.
func (s watchService) watchPolicy(ctx context.Context, kinds []string, send func(*accessdv1.PolicyUpdate) error) error {
	f := s.feed.follow(func(k resourceKey) bool { return slices.Contains(kinds, k.kind) })
	defer f.close()
	for {
		u, err := f.next(ctx)
		if err != nil {
			return err
		}
		if err := send(u); err != nil {
			return err
		}
	}
}

// watchSessions sends the live sessions and what changes.
func (s watchService) watchSessions(ctx context.Context, send func(*accessdv1.PolicyUpdate) error) error {
	known := map[names.SessionID]bool{}
	first := true
	return s.cfg.Store.WatchSessions(ctx, func(live []services.LiveSession) error {
		u := &accessdv1.PolicyUpdate{Synced: first}
		now := map[names.SessionID]bool{}
		for _, l := range live {
			if now[l.ID] = true; known[l.ID] {
				continue
			}
			text, err := json.Marshal(l)
			if err != nil {
				return err
			}
			u.Put = append(u.Put, &accessdv1.Resource{Key: &accessdv1.ResourceKey{Kind: kindSession, Name: string(l.ID)}, Json: text})
		}
		for id := range known {
			if !now[id] {
				u.Remove = append(u.Remove, &accessdv1.ResourceKey{Kind: kindSession, Name: string(id)})
			}
		}
		known = now
		if !first && len(u.GetPut())+len(u.GetRemove()) == 0 {
			return nil
		}
		first = false
		return send(u)
	})
}
