package auth

import (
	"context"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// prove returns a proof from whichever authority's log has the event, this one's
// first.
func (a *Authority) prove(ctx context.Context, uid string) ([]byte, error) {
	proof, err := a.cfg.Audit.Prove(ctx, uid)
	if !fault.Is(err, fault.NotFound) {
		return proof, err
	}
	if id, err := uuid.Parse(uid); err == nil {
		uid = id.String() // as events have it
	}
	logs, missing := a.logs(ctx, nil)
	proofs, faults := make([][]byte, len(logs)), make([]error, len(logs))
	var asked sync.WaitGroup
	for i, l := range logs[1:] {
		asked.Go(func() { proofs[i], faults[i] = a.proveAt(ctx, l, uid) })
	}
	asked.Wait()
	for i, l := range logs[1:] {
		switch {
		case faults[i] == nil:
			return proofs[i], nil
		case !fault.Is(faults[i], fault.NotFound):
			missing = append(missing, a.away(l, faults[i]))
		case fault.Hint(faults[i]) != "":
			err = faults[i] // it is in a part of that log that is not there
		}
	}
	if len(missing) == 0 {
		return nil, err
	}
	away := make([]string, 0, len(missing))
	for _, m := range missing {
		away = append(away, m.GetName()+" ("+m.GetReason()+")")
	}
	return nil, fault.New(fault.NotFound, "no log that can be read has the event %q; not read: %s", clip(uid), strings.Join(away, ", "))
}

// proveAt asks another authority for a proof. It counts only when it is one, of
// that event, by the key of a log of this cluster.
func (a *Authority) proveAt(ctx context.Context, l authorityLog, uid string) ([]byte, error) {
	peer, ok := l.eventLog.(peerLog)
	if !ok {
		return nil, errPeerBroken
	}
	ctx, cancel := context.WithTimeout(ctx, 2*peerTimeout)
	defer cancel()
	res, err := peer.calls.ProvePeerEvent(ctx, connect.NewRequest(&accessdv1.ProvePeerEventRequest{Uid: uid, AskedBy: callerOf(ctx).by}))
	if err != nil {
		return nil, err
	}
	if res.Msg.GetAuthority() != string(l.id) {
		return nil, errPeerOther
	}
	keys, err := a.cfg.Store.CA(ctx, services.AuditCA)
	if err != nil {
		return nil, err
	}
	var lines strings.Builder
	for _, k := range keys.Keys {
		lines.WriteString(k.Public + "\n")
	}
	proof := []byte(res.Msg.GetProof())
	proven, err := events.CheckProof(proof, lines.String())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "its proof does not hold")
	}
	if ev, err := events.ParseEvent(proven.Event); err != nil || ev.UID != uid {
		return nil, errPeerBroken
	}
	return proof, nil
}
