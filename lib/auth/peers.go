package auth

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of asking other authorities.
const (
	maxPeers    = 16               // logs beside this authority's own
	peerTimeout = 5 * time.Second  // until a peer says that it is there
	peerSilence = time.Minute      // between two answers of one that was there
	peerBeat    = 20 * time.Second // between two answers to who follows a log
	peerRetry   = time.Second      // before a peer that was away is followed again
	maxArchived = 1000             // periods of a log that are not there
)

// peers reaches the other authorities of the cluster.
type peers interface {
	// Peer returns a client of the authority's services. Its calls fail when the
	// authority cannot be reached.
	Peer(id names.NodeID) *http.Client
}

// noPeers reaches nobody.
type noPeers struct{}

// Peer implements [peers].
func (noPeers) Peer(names.NodeID) *http.Client { return &http.Client{Transport: noPeers{}} }

// RoundTrip implements [http.RoundTripper].
func (noPeers) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fault.New(fault.Unavailable, "this process has no way to other authorities")
}

// A query is what a reader wants of one log.
type query struct {
	filter  *accessdv1.EventFilter
	limit   int    // one page of so many; 0: pages to the end
	newest  bool   // the page before place, else what is after it
	place   string // "": the end for the newest, else the beginning
	follow  bool   // without a limit: go on behind the end
	askedBy string
}

// An eventLog is what one authority has written.
type eventLog interface {
	// read calls fn with what q asks for. Who follows is called now and then, even
	// when there is nothing new.
	read(ctx context.Context, q query, fn func(events.Page) error) error
}

// authorityLog is the log of an authority.
type authorityLog struct {
	eventLog

	id   names.NodeID
	name string
}

// missing names the log as one that is not among those read.
func (l authorityLog) missing(err error) *accessdv1.MissingLog {
	return &accessdv1.MissingLog{Id: string(l.id), Name: l.name, Reason: fault.Public(err)}
}

// logs returns the logs of the cluster that can be asked for, this authority's
// first, and names those that cannot. One whose authority was retired is neither.
func (a *Authority) logs(ctx context.Context, from places) (list []authorityLog, missing []*accessdv1.MissingLog) {
	own := a.cfg.Keys.authority
	list = []authorityLog{{ownLog{a}, own, string(own)}}
	unknown := maps.Clone(from)
	delete(unknown, own)
	for _, m := range a.cfg.Cache.Members() {
		if m.Kind != sshca.KindAuth || m.ID == own {
			continue
		}
		delete(unknown, m.ID)
		l := authorityLog{a.peerLog(m), m.ID, string(m.Name)}
		if len(list) > maxPeers {
			missing = append(missing, l.missing(fault.New(fault.Unavailable, "more than %d authorities are not asked", maxPeers)))
			continue
		}
		list = append(list, l)
	}
	for id := range unknown {
		if a.retired(ctx, id) {
			continue
		}
		l := authorityLog{id: id, name: string(id)}
		missing = append(missing, l.missing(fault.New(fault.NotFound, "no authority has this id")))
	}
	return list, missing
}

// ownLog is the log of this authority.
type ownLog struct{ *Authority }

func (l ownLog) read(ctx context.Context, q query, fn func(events.Page) error) error {
	filter, err := parseFilter(q.filter)
	if err != nil {
		return err
	}
	if q.newest {
		page, err := l.cfg.Audit.Query(ctx, filter, q.limit, q.place)
		if err != nil {
			return err
		}
		return fn(page)
	}
	limit := q.limit
	if limit == 0 {
		limit = maxEvents
	}
	for after := q.place; ; {
		page, err := l.cfg.Audit.Read(ctx, filter, limit, after)
		if err != nil {
			return err
		}
		if err := fn(page); err != nil {
			return err
		}
		after = page.After
		switch {
		case q.limit > 0, !page.More && !q.follow:
			return nil
		case !page.More:
			if err := l.grown(ctx, after); err != nil {
				return err
			}
		}
	}
}

// grown waits until there is more after a place, for a while.
func (l ownLog) grown(ctx context.Context, after string) error {
	beat, cancel := context.WithTimeout(ctx, peerBeat)
	defer cancel()
	err := l.cfg.Audit.Grown(beat, after)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil
	}
	return err
}

// peerLog is the log of another authority.
type peerLog struct {
	id    names.NodeID
	calls accessdv1connect.PeerServiceClient
}

// peerLog returns the log of another authority.
func (a *Authority) peerLog(m services.Member) peerLog {
	return peerLog{m.ID, rpc.Service(a.cfg.Peers.Peer(m.ID), accessdv1connect.NewPeerServiceClient)}
}

// What is wrong with a peer, other than that it is away.
var (
	errPeerSilent = fault.New(fault.Unavailable, "it does not answer")
	errPeerOther  = fault.New(fault.Unavailable, "another authority answers at its addresses")
	errPeerBroken = fault.New(fault.Unavailable, "its answer is malformed")
)

func (l peerLog) read(ctx context.Context, q query, fn func(events.Page) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(peerTimeout, func() { cancel(errPeerSilent) })
	defer late.Stop()
	stream, err := l.calls.ReadEvents(ctx, connect.NewRequest(&accessdv1.ReadEventsRequest{
		Filter: q.filter, Limit: int32(q.limit), Newest: q.newest, Place: q.place, Follow: q.follow, AskedBy: q.askedBy,
	}))
	if err != nil {
		return whyLost(ctx, err)
	}
	defer func() {
		cancel(nil)
		_ = stream.Close() // what went wrong is in stream.Err
	}()
	for first := true; stream.Receive(); first = false {
		late.Stop()
		if first {
			if stream.Msg().GetAuthority() != string(l.id) {
				return errPeerOther
			}
		} else if err := l.give(stream.Msg(), q, fn); err != nil {
			return err
		}
		late.Reset(peerSilence)
	}
	return whyLost(ctx, stream.Err())
}

// give checks what a peer answered, which is input, and hands it on.
func (l peerLog) give(msg *accessdv1.ReadEventsResponse, q query, fn func(events.Page) error) error {
	page := events.Page{
		Events: msg.GetEvents(), Entries: msg.GetEntries(), Before: msg.GetBefore(), After: msg.GetAfter(), More: msg.GetMore(),
		Archived: msg.GetArchived(),
	}
	if err := checkPage(page, q); err != nil {
		return err
	}
	return fn(page)
}

// whyLost returns err, or the better reason why ctx ended.
func whyLost(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errPeerSilent) {
		return errPeerSilent
	}
	return err
}

// checkPage refuses a page of another authority that no log could give.
func checkPage(p events.Page, q query) error {
	more := p.More
	if q.newest {
		more = p.Before != ""
	}
	if len(p.Entries) != len(p.Events) || len(p.Events) > maxEvents || q.limit > 0 && len(p.Events) > q.limit || more && len(p.Events) == 0 || len(p.Archived) > maxArchived {
		return errPeerBroken
	}
	if !isPlace(p.After) || p.Before != "" && !isPlace(p.Before) {
		return errPeerBroken
	}
	for i, data := range p.Events {
		if _, err := events.ParseEvent(data); err != nil || i > 0 && p.Entries[i] <= p.Entries[i-1] {
			return errPeerBroken
		}
	}
	return nil
}

// isPlace reports whether s is a place in one log.
func isPlace(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// places are places in several logs.
type places map[names.NodeID]string

// parsePlaces reads what format wrote: the place in the only log, which is own,
// or "ID:PLACE" for each, with commas between.
func parsePlaces(what, s string, own names.NodeID) (places, error) {
	out := places{}
	if s == "" {
		return out, nil
	}
	if !strings.Contains(s, ":") {
		out[own] = s // the log says whether there is such a place
		return out, nil
	}
	malformed := fault.New(fault.BadInput, "%s %q: want what the previous page gave", what, clip(s))
	for part := range strings.SplitSeq(s, ",") {
		text, at, _ := strings.Cut(part, ":")
		id, err := names.ParseNodeID(text)
		if _, twice := out[id]; err != nil || twice || !isPlace(at) || len(out) > maxPeers {
			return nil, malformed
		}
		out[id] = at
	}
	return out, nil
}

// format writes the places for [parsePlaces].
func (p places) format(own names.NodeID) string {
	if at, ok := p[own]; ok && len(p) == 1 {
		return at
	}
	parts := make([]string, 0, len(p))
	for id, at := range p {
		parts = append(parts, string(id)+":"+at)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// peerService answers other authorities from this authority's log.
type peerService struct{ *Authority }

// ReadEvents streams what the log has. The first message says at once who
// answers, so that the caller knows whom it waits for.
func (s peerService) ReadEvents(ctx context.Context, req *connect.Request[accessdv1.ReadEventsRequest], stream *connect.ServerStream[accessdv1.ReadEventsResponse]) error {
	m := req.Msg
	if m.GetLimit() < 0 || m.GetLimit() > maxEvents || m.GetNewest() && m.GetLimit() == 0 {
		return fault.New(fault.BadInput, "limit %d: want 1 to %d", m.GetLimit(), maxEvents)
	}
	if err := stream.Send(&accessdv1.ReadEventsResponse{Authority: string(s.cfg.Keys.authority)}); err != nil {
		return err
	}
	s.cfg.Log.Debug("another authority reads events", zap.String("caller", callerOf(ctx).by), zap.String("asked_by", clip(m.GetAskedBy())))
	s.flush(ctx)
	q := query{filter: m.GetFilter(), limit: int(m.GetLimit()), newest: m.GetNewest(), place: m.GetPlace(), follow: m.GetFollow()}
	return ownLog(s).read(ctx, q, func(p events.Page) error {
		return stream.Send(&accessdv1.ReadEventsResponse{
			Events: p.Events, Entries: p.Entries, Before: p.Before, After: p.After, More: p.More, Archived: p.Archived,
		})
	})
}

// ProvePeerEvent proves that this authority's log has an event.
func (s peerService) ProvePeerEvent(ctx context.Context, req *connect.Request[accessdv1.ProvePeerEventRequest]) (*connect.Response[accessdv1.ProvePeerEventResponse], error) {
	s.flush(ctx)
	proof, err := s.cfg.Audit.Prove(ctx, req.Msg.GetUid())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.ProvePeerEventResponse{Authority: string(s.cfg.Keys.authority), Proof: string(proof)}), nil
}
