package services

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// SessionsTTL is how long a member's report of its live sessions lasts unless it
	// reports again.
	SessionsTTL = 2 * time.Minute
	// maxLiveSessions bounds the sessions one member reports, so that a report stays
	// below what the state store takes at once.
	maxLiveSessions = 2048
	// seenEvery is how often the nodes of a proxy are noted as seen while their
	// tunnels just stay up.
	seenEvery = time.Hour
	// changesAtOnce bounds the nodes in one change of presences; each takes two of
	// the 128 writes that a change may have.
	changesAtOnce = 60
)

// Announcement is what a proxy tells about itself.
type Announcement struct {
	Proxy    Proxy
	Lease    string // from the answer before; "" at first
	Full     bool   // Up holds every tunnel; what is not in it is gone
	Up, Down []names.NodeID
}

// announcer is what the authority remembers of a proxy while its lease lives.
type announcer struct {
	Lease backend.LeaseID `json:"lease"`
	Seen  time.Time       `json:"seen"` // when all its nodes were noted as seen
}

func proxyKey(id names.NodeID) string           { return dirOf(KindProxy) + string(id) }
func presenceDir(proxy names.NodeID) string     { return dirOf(KindPresence) + string(proxy) + "/" }
func announcerKey(id names.NodeID) string       { return dirAnnouncer + string(id) }
func sessionKey(reporter names.NodeID) string   { return dirSession + string(reporter) }
func instructionDir(member names.NodeID) string { return dirInstruction + string(member) + "/" }

// Announce keeps a proxy and its tunnels known for another ttl, and changes what
// of it has changed. A proxy's first announcement has no lease and is full.
// [fault.NotFound] means that the lease has ended: the proxy begins anew. Nodes
// that are not in the cluster are passed over.
func (s *Store) Announce(ctx context.Context, a Announcement) (lease string, ttl time.Duration, err error) {
	if a.Lease == "" && !a.Full {
		return "", 0, fault.New(fault.BadInput, "the first announcement of a proxy must be full")
	}
	holder, err := s.announcer(ctx, a)
	if err != nil {
		return "", 0, err
	}
	if err := s.announceProxy(ctx, a, holder.Lease); err != nil {
		return "", 0, err
	}
	if err := s.announceTunnels(ctx, a, holder.Lease); err != nil {
		return "", 0, err
	}
	if s.now().Sub(holder.Seen) >= seenEvery {
		err = s.seeAll(ctx, a.Proxy.ID, holder)
	}
	return leaseText(holder.Lease), defaults.PresenceTTL, err
}

func leaseText(id backend.LeaseID) string { return strconv.FormatInt(int64(id), 16) }

// announcer keeps the proxy's lease alive, or grants the first.
func (s *Store) announcer(ctx context.Context, a Announcement) (announcer, error) {
	key := announcerKey(a.Proxy.ID)
	if a.Lease != "" {
		h, _, err := get[announcer](ctx, s, key, KindProxy)
		if err != nil {
			return h, err
		}
		if leaseText(h.Lease) != a.Lease { // it began anew elsewhere, or is not it
			return h, fault.New(fault.NotFound, "the proxy's lease has ended")
		}
		_, err = s.b.KeepAliveOnce(ctx, h.Lease)
		return h, err
	}
	lease, err := s.b.Grant(ctx, defaults.PresenceTTL)
	if err != nil {
		return announcer{}, err
	}
	h := announcer{Lease: lease, Seen: s.now()}
	_, err = s.b.Put(ctx, key, encode(h), backend.WithLease(lease))
	return h, err
}

// announceProxy puts the proxy's own record, if that changes anything.
func (s *Store) announceProxy(ctx context.Context, a Announcement, lease backend.LeaseID) error {
	key, value := proxyKey(a.Proxy.ID), encode(a.Proxy)
	if a.Lease != "" { // else the record that may be there is on another lease
		item, err := s.b.Get(ctx, key)
		if err != nil && !fault.Is(err, fault.NotFound) || err == nil && bytes.Equal(item.Value, value) {
			return err
		}
	}
	_, err := s.b.Put(ctx, key, value, backend.WithLease(lease))
	return err
}

// announceTunnels puts and deletes the proxy's presences. Who has come or gone
// was seen.
func (s *Store) announceTunnels(ctx context.Context, a Announcement, lease backend.LeaseID) error {
	up, down, err := s.tunnelChanges(ctx, a)
	if err != nil || len(up)+len(down) == 0 {
		return err
	}
	nodes, err := s.ids(ctx, dirOf(KindNode))
	if err != nil {
		return err
	}
	dir, now := presenceDir(a.Proxy.ID), encode(s.now())
	for part := range slices.Chunk(up, changesAtOnce) {
		tx := s.b.Txn()
		for _, id := range part {
			if nodes[id] {
				tx.Put(dir+string(id), encode(Presence{Node: id, Proxy: a.Proxy.ID}), backend.WithLease(lease)).Put(seenKey(id), now)
			}
		}
		if _, err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(down, changesAtOnce) {
		tx := s.b.Txn()
		for _, id := range part {
			if tx.Delete(dir + string(id)); nodes[id] {
				tx.Put(seenKey(id), now)
			}
		}
		if _, err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tunnelChanges returns which presences of the proxy to put and which to
// delete, each once.
func (s *Store) tunnelChanges(ctx context.Context, a Announcement) (up, down []names.NodeID, err error) {
	isUp := set(a.Up)
	if !a.Full {
		isDown := set(a.Down)
		return keys(isUp, nil), keys(isDown, isUp), nil
	}
	known, err := s.ids(ctx, presenceDir(a.Proxy.ID))
	if err != nil {
		return nil, nil, err
	}
	down = keys(known, isUp)
	if a.Lease == "" {
		known = nil // those are on another lease
	}
	return keys(isUp, known), down, nil
}

func set(ids []names.NodeID) map[names.NodeID]bool {
	out := make(map[names.NodeID]bool, len(ids))
	for _, id := range ids {
		out[id] = true
	}
	return out
}

// keys returns what is in a set and not in another, sorted.
func keys(in, notIn map[names.NodeID]bool) []names.NodeID {
	out := make([]names.NodeID, 0, len(in))
	for id := range in {
		if !notIn[id] {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// ids returns the last parts of the keys in dir.
func (s *Store) ids(ctx context.Context, dir string) (map[names.NodeID]bool, error) {
	all, err := s.b.Keys(ctx, dir)
	out := make(map[names.NodeID]bool, len(all))
	for _, key := range all {
		out[names.NodeID(lastName(key))] = true
	}
	return out, err
}

// seeAll notes every node the proxy holds a tunnel to as seen.
func (s *Store) seeAll(ctx context.Context, proxy names.NodeID, h announcer) error {
	up, err := s.ids(ctx, presenceDir(proxy))
	if err != nil {
		return err
	}
	h.Seen = s.now()
	for part := range slices.Chunk(keys(up, nil), 2*changesAtOnce) {
		tx := s.b.Txn()
		for _, id := range part {
			tx.Put(seenKey(id), encode(h.Seen))
		}
		if _, err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	_, err = s.b.Put(ctx, announcerKey(proxy), encode(h), backend.WithLease(h.Lease))
	return err
}

// Presences returns which proxy holds a tunnel to which node.
func (s *Store) Presences(ctx context.Context) ([]Presence, error) {
	return list(ctx, s, dirOf(KindPresence), func(p *Presence, revision int64) { p.Revision = revision })
}

// Proxies returns the proxies that are up, by id.
func (s *Store) Proxies(ctx context.Context) ([]Proxy, error) {
	return list(ctx, s, dirOf(KindProxy), func(p *Proxy, revision int64) { p.Revision = revision })
}

// sessionReport is what a node or a proxy said of its live sessions.
type sessionReport struct {
	Lease    backend.LeaseID `json:"lease"`
	Reporter names.NodeID    `json:"reporter"`
	Sessions []LiveSession   `json:"sessions"`
}

// ReportSessions replaces the list of the live sessions that a member serves,
// which is their node unless they have another: it is for the caller to see that
// the member may say so. Without another report within [SessionsTTL] the list is
// empty.
func (s *Store) ReportSessions(ctx context.Context, reporter names.NodeID, sessions []LiveSession) error {
	if len(sessions) > maxLiveSessions {
		return fault.New(fault.BadInput, "%d live sessions: want at most %d", len(sessions), maxLiveSessions)
	}
	key := sessionKey(reporter)
	old, _, err := get[sessionReport](ctx, s, key, KindNode)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if len(sessions) == 0 {
		return s.endReport(ctx, old)
	}
	report := sessionReport{Lease: old.Lease, Reporter: reporter, Sessions: slices.Clone(sessions)}
	for i := range report.Sessions {
		report.Sessions[i].Node = cmp.Or(report.Sessions[i].Node, reporter)
	}
	if report.Lease != 0 {
		_, err := s.b.KeepAliveOnce(ctx, report.Lease)
		switch {
		case fault.Is(err, fault.NotFound):
			report.Lease = 0
		case err != nil:
			return err
		case bytes.Equal(encode(report), encode(old)):
			return nil
		}
	}
	if report.Lease == 0 {
		if report.Lease, err = s.b.Grant(ctx, SessionsTTL); err != nil {
			return err
		}
	}
	_, err = s.b.Put(ctx, key, encode(report), backend.WithLease(report.Lease))
	return err
}

// endReport forgets a report together with its lease.
func (s *Store) endReport(ctx context.Context, old sessionReport) error {
	if old.Lease == 0 {
		return nil
	}
	err := s.b.Revoke(ctx, old.Lease)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Sessions returns the live sessions of all nodes, oldest first.
func (s *Store) Sessions(ctx context.Context) ([]LiveSession, error) {
	reports, err := list[sessionReport](ctx, s, dirSession, nil)
	var out []LiveSession
	for _, r := range reports {
		for _, l := range r.Sessions {
			l.Reporter = cmp.Or(r.Reporter, l.Node) // an older report has none
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b LiveSession) int {
		return cmp.Or(a.Started.Compare(b.Started), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out, err
}

// PutInstruction leaves an instruction for a member, which has ttl to fetch it.
func (s *Store) PutInstruction(ctx context.Context, member names.NodeID, in *accessdv1.Instruction, ttl time.Duration) error {
	value, err := proto.Marshal(in)
	if err != nil {
		return fault.New(fault.Internal, "encode an instruction: %w", err)
	}
	lease, err := s.b.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	_, err = s.b.Create(ctx, instructionDir(member)+uuid.NewString(), value, backend.WithLease(lease))
	return err
}

// WatchInstructions calls fn with each instruction for the member, in the order
// they were left, and forgets it when fn returns nil. It returns when ctx ends,
// when fn fails, or when the state store is away.
func (s *Store) WatchInstructions(ctx context.Context, member names.NodeID, fn func(*accessdv1.Instruction) error) error {
	for {
		items, revision, err := s.b.List(ctx, instructionDir(member))
		if err != nil {
			return err
		}
		slices.SortFunc(items, func(a, b backend.Item) int { return cmp.Compare(a.Revision, b.Revision) })
		for _, item := range items {
			if err := s.instruct(ctx, item, fn); err != nil {
				return err
			}
		}
		err = s.b.Watch(ctx, instructionDir(member), revision+1, func(events []backend.Event) error {
			for _, e := range events {
				if e.Deleted {
					continue
				}
				if err := s.instruct(ctx, e.Item, fn); err != nil {
					return err
				}
			}
			return nil
		})
		if !errors.Is(err, backend.ErrCompacted) {
			return err
		}
	}
}

// instruct hands one instruction over and forgets it.
func (s *Store) instruct(ctx context.Context, item backend.Item, fn func(*accessdv1.Instruction) error) error {
	in := &accessdv1.Instruction{}
	if err := proto.Unmarshal(item.Value, in); err != nil {
		return fault.New(fault.Internal, "the stored %q is damaged: %w", item.Key, err)
	}
	if err := fn(in); err != nil {
		return err
	}
	if err := s.b.Delete(ctx, item.Key); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil // its time was over, but it was done
}
