package auth

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
)

// pageBytes ends a merged page early, as a page of one log ends: it must fit
// into one message.
const pageBytes = 2 << 20

// share is what one log has for a page.
type share struct {
	authorityLog

	page  events.Page
	ranks []rank // of the page's events
	err   error
}

// rank says where an event stands among those of other logs. In one log ranks
// never fall: what was shipped late ranks with what it came in behind, so that to
// leave out what is older by rank leaves out the older end of each log.
type rank struct {
	time time.Time
	uid  string
}

func (r rank) compare(other rank) int {
	if c := r.time.Compare(other.time); c != 0 {
		return c
	}
	return strings.Compare(r.uid, other.uid)
}

// rankAll ranks the events of a page.
func rankAll(list [][]byte) ([]rank, error) {
	ranks := make([]rank, 0, len(list))
	for i, data := range list {
		ev, err := events.ParseEvent(data)
		if err != nil {
			return nil, err
		}
		r := rank{ev.Time, ev.UID}
		if i > 0 && r.compare(ranks[i-1]) < 0 {
			r = ranks[i-1]
		}
		ranks = append(ranks, r)
	}
	return ranks, nil
}

// merge makes one page of several, by rank, of at most limit events and about
// pageBytes. It keeps the newest, or the oldest, of each: kept says how many. An
// event that is in two logs, since its member shipped it twice, comes once.
//
// Behind a page that is cut short its log may have what ranks next, so the
// merged page ends there at the latest.
func merge(shares []share, limit int, newest bool) (list [][]byte, kept []int) {
	kept = make([]int, len(shares))
	seen := map[string]bool{}
	for bytes := 0; len(list) < limit; {
		pick, ended := next(shares, kept, newest)
		if ended || pick < 0 {
			break
		}
		data := shares[pick].at(kept[pick], newest).data
		if len(list) > 0 && bytes+len(data) > pageBytes {
			break
		}
		kept[pick]++
		if !seen[string(data)] {
			seen[string(data)] = true
			list = append(list, data)
			bytes += len(data)
		}
	}
	if newest {
		slices.Reverse(list)
	}
	return list, kept
}

// next returns the share whose event comes next, or none, or that a log's page
// ended before the log did.
func next(shares []share, kept []int, newest bool) (pick int, ended bool) {
	pick = -1
	var best rank
	for i, s := range shares {
		if kept[i] == len(s.page.Events) {
			if s.more(newest) {
				return -1, true
			}
			continue
		}
		r := s.at(kept[i], newest).rank
		order := r.compare(best)
		if newest {
			order = -order
		}
		if pick < 0 || order < 0 {
			pick, best = i, r
		}
	}
	return pick, false
}

// more reports whether the log has more that match, beyond the page.
func (s share) more(newest bool) bool {
	if newest {
		return s.page.Before != ""
	}
	return s.page.More
}

// ranked is an event with its rank.
type ranked struct {
	data []byte
	rank rank
}

// at returns the n-th event of the page, from the end that comes first.
func (s share) at(n int, newest bool) ranked {
	if newest {
		n = len(s.page.Events) - 1 - n
	}
	return ranked{s.page.Events[n], s.ranks[n]}
}

// beside returns the places before and after what was kept of the page.
func (s share) beside(kept int, newest bool) (before, after string) {
	n := len(s.page.Events)
	switch {
	case !newest && kept == n:
		return s.page.Before, s.page.After
	case !newest:
		return s.page.Before, strconv.FormatUint(s.page.Entries[kept], 10)
	case kept == n && s.page.Before == "":
		return logBegin, s.page.After
	case kept == n:
		return s.page.Before, s.page.After
	case kept == 0:
		return s.page.After, s.page.After
	}
	return strconv.FormatUint(s.page.Entries[n-kept], 10), s.page.After
}

// logBegin is the place before a log's first entry.
const logBegin = "0"

// merged is a page of all logs.
type merged struct {
	events        [][]byte
	before, after places
	missing       []*accessdv1.MissingLog
	archived      []string // periods that this page ends at
	older         bool     // there may be older ones
}

// readAll asks every authority for a page, all at once, and merges what they
// give. Only this authority's own log must answer. The place of a log that did
// not is what it was.
func (a *Authority) readAll(ctx context.Context, q query, from places) (merged, error) {
	logs, missing := a.logs(ctx, from)
	shares := make([]share, len(logs))
	var asked sync.WaitGroup
	for i, l := range logs {
		asked.Go(func() { shares[i] = ask(ctx, l, q, from[l.id]) })
	}
	asked.Wait()
	if shares[0].err != nil {
		return merged{}, shares[0].err
	}
	out := merged{before: places{}, after: places{}, missing: missing}
	shares = slices.DeleteFunc(shares, func(s share) bool {
		if s.err != nil {
			out.missing = append(out.missing, a.away(s.authorityLog, s.err))
		}
		return s.err != nil
	})
	for i := range shares {
		var err error
		if shares[i].ranks, err = rankAll(shares[i].page.Events); err != nil {
			return merged{}, err
		}
	}
	var kept []int
	out.events, kept = merge(shares, q.limit, q.newest)
	for i, s := range shares {
		out.before[s.id], out.after[s.id] = s.beside(kept[i], q.newest)
		out.older = out.older || out.before[s.id] != logBegin
		if !q.newest || kept[i] == len(s.page.Events) {
			out.archived = append(out.archived, s.page.Archived...)
		}
	}
	out.older = out.older || !q.newest || len(out.missing) > 0
	keep := out.after
	if q.newest {
		keep = out.before
	}
	for _, m := range out.missing {
		if at, ok := from[names.NodeID(m.GetId())]; ok {
			keep[names.NodeID(m.GetId())] = at
		}
	}
	return out, nil
}

// ask asks one log for a page.
func ask(ctx context.Context, l authorityLog, q query, place string) share {
	s := share{authorityLog: l, err: errPeerSilent}
	q.place = place
	err := l.read(ctx, q, func(p events.Page) error {
		s.page, s.err = p, nil
		return nil
	})
	if err != nil {
		s.err = err
	}
	return s
}

// away names a log that cannot be read, and says so in the log of this process.
func (a *Authority) away(l authorityLog, err error) *accessdv1.MissingLog {
	a.cfg.Log.Warn("another authority's log cannot be read", zap.String("authority", l.name), zap.Error(err))
	return l.missing(err)
}
