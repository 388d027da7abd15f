//go:build unix

package events

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// defaultLimit is how many events a query returns unless asked otherwise.
	defaultLimit = 1000
	// maxLimit caps what may be asked for at once.
	maxLimit = 10_000
	// pageBytes ends a page or a tail's batch early: what answers a query must fit
	// into one message of the API.
	pageBytes = 2 << 20
)

// Page is some of the events that match a filter, oldest first. A page of very
// long events is shorter than was asked for.
type Page struct {
	Events  [][]byte
	Entries []uint64 // the number in the log of each
	Before  string   // the place that older events are before; "" when no older one matches
	After   string   // the place behind all that was looked at, that newer events are after
	More    bool     // a newer one matched already

	// Archived are the periods that were looked for and are not here, with all that
	// was before them; the page has nothing of theirs.
	Archived []string
}

// Query returns the newest events that match f and came into the log before the
// place that before names. An empty before is the log's end; limit 0 means 1000.
func (l *Log) Query(ctx context.Context, f Filter, limit int, before string) (Page, error) {
	limit, err := checkPage(f, limit)
	if err != nil {
		return Page{}, err
	}
	v := l.view().present()
	end, err := parsePlace("before", before, v.end, v.end)
	if err != nil {
		return Page{}, err
	}
	page := Page{After: formatPlace(end)}
	bytes, oldest := 0, end
	err = l.walk(ctx, v, walk{newSelector(f), span{0, end}, true}, func(at uint64, data []byte) bool {
		if len(page.Events) == limit || len(page.Events) > 0 && bytes+len(data) > pageBytes {
			page.Before = formatPlace(oldest)
			return false
		}
		page.Events, page.Entries = append(page.Events, data), append(page.Entries, at)
		bytes += len(data)
		oldest = at
		return true
	})
	slices.Reverse(page.Events)
	slices.Reverse(page.Entries)
	for _, a := range v.absent() {
		if a.after < end && page.Before == "" && (f.Since.IsZero() || f.Since.Before(a.until)) {
			page.Archived = append(page.Archived, l.originOf(a))
		}
	}
	return page, err
}

// originOf returns the origin of a tree that is not here.
func (l *Log) originOf(a absence) string { return joinOrigin(l.key.Name(), a.name) }

// Read returns the oldest events that match f and came into the log after the
// place that after names. An empty after is the log's beginning, as far as it is
// here; limit 0 means 1000. A place whose followers were archived is a
// [fault.NotFound].
func (l *Log) Read(ctx context.Context, f Filter, limit int, after string) (Page, error) {
	limit, err := checkPage(f, limit)
	if err != nil {
		return Page{}, err
	}
	v := l.view().present()
	from, err := parsePlace("after", after, 0, v.end)
	if err != nil {
		return Page{}, err
	}
	page := Page{Before: formatPlace(from), After: formatPlace(v.end)}
	for _, a := range v.absent() {
		switch {
		case from >= a.end:
		case from > 0:
			return Page{}, fault.New(fault.NotFound, "the events after %s are in the period %s, which is not here", after, l.originOf(a)).
				WithHint("bring it back from the archive, or begin with \"\", which is the oldest that is here")
		case f.Since.IsZero() || f.Since.Before(a.until):
			page.Archived = append(page.Archived, l.originOf(a))
		}
	}
	bytes := 0
	err = l.walk(ctx, v, walk{newSelector(f), span{from, v.end}, false}, func(at uint64, data []byte) bool {
		if len(page.Events) == limit || len(page.Events) > 0 && bytes+len(data) > pageBytes {
			page.After, page.More = formatPlace(at), true
			return false
		}
		page.Events, page.Entries = append(page.Events, data), append(page.Entries, at)
		bytes += len(data)
		return true
	})
	return page, err
}

// Grown returns when events came into the log after the place that after names,
// or with an error when ctx ends or the log closes before.
func (l *Log) Grown(ctx context.Context, after string) error {
	for {
		v, _, changed := l.state()
		from, err := parsePlace("after", after, 0, v.end)
		if err != nil || from < v.end {
			return err
		}
		if l.isClosed() {
			return errLogClosed()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func errLogClosed() error { return fault.New(fault.Unavailable, "the audit log is closed") }

// checkPage checks what a page is asked for by.
func checkPage(f Filter, limit int) (int, error) {
	if limit < 0 || limit > maxLimit {
		return 0, fault.New(fault.BadInput, "limit %d: want 0 to %d", limit, maxLimit)
	}
	if limit == 0 {
		limit = defaultLimit
	}
	return limit, f.Check()
}

// parsePlace reads a place in a log of the given size: the number of the entry
// that follows it.
func parsePlace(what, s string, empty, size uint64) (uint64, error) {
	if s == "" {
		return empty, nil
	}
	at, err := strconv.ParseUint(s, 10, 64)
	if err != nil || at > size {
		return 0, fault.New(fault.BadInput, "%s %q: want what the previous page gave", what, clip(s))
	}
	return at, nil
}

func formatPlace(at uint64) string { return strconv.FormatUint(at, 10) }

// walk is a way through what sel selects of entries or blocks, in their order or
// back.
type walk struct {
	sel  *selector
	span span
	back bool
}

// walk calls fn with the entries of w until fn returns false. What of v is not here
// it passes over.
func (l *Log) walk(ctx context.Context, v view, w walk, fn func(at uint64, data []byte) bool) error {
	s := w.span
	if s.from = max(s.from, v.trees[0].base); s.from >= s.end {
		return nil
	}
	_, indexed, _ := l.state()
	blocks := span{s.from / blockSize, (s.end-1)/blockSize + 1}
	known := span{blocks.from, min(blocks.end, indexed/blockSize)} // whole, and in the index
	if known.from >= known.end {
		known = span{blocks.from, blocks.from}
	}
	visit := func(block uint64) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		entries, _, err := v.bundle(block)
		if err != nil {
			return false, err
		}
		for i := range entries {
			if w.back {
				i = len(entries) - 1 - i
			}
			at := block*blockSize + uint64(i)
			if at >= s.from && at < s.end && w.sel.selects(entries[i]) && !fn(at, entries[i]) {
				return false, nil
			}
		}
		return true, nil
	}
	newest := func() (bool, error) { return eachBlock(span{known.end, blocks.end}, w.back, visit) }
	older := func() (bool, error) { return l.eachFound(ctx, walk{w.sel, known, w.back}, visit) }
	first, second := older, newest
	if w.back {
		first, second = newest, older
	}
	more, err := first()
	if err == nil && more {
		_, err = second()
	}
	return unavailable(err)
}

// eachBlock calls visit with the blocks of s until it returns false.
func eachBlock(s span, back bool, visit func(block uint64) (bool, error)) (more bool, err error) {
	for block := s.from; block < s.end; block++ {
		this := block
		if back {
			this = s.from + s.end - 1 - block
		}
		if more, err := visit(this); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// eachFound calls visit with the blocks of w that may hold what is selected until
// it returns false.
func (l *Log) eachFound(ctx context.Context, w walk, visit func(block uint64) (bool, error)) (more bool, err error) {
	w.span, err = l.index.window(ctx, w.sel.Filter, w.span)
	for err == nil && w.span.from < w.span.end {
		var found []uint64
		if found, w.span, err = l.index.find(ctx, w); err != nil {
			break
		}
		for _, block := range found {
			if more, err := visit(block); err != nil || !more {
				return false, err
			}
		}
	}
	return err == nil, err
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, err, "the audit log cannot be read")
}

// span is the entries, or blocks, from and before end.
type span struct{ from, end uint64 }

// Run watches the log until ctx ends: it says so when events are not signed for
// long, which means that checkpoints cannot be written, and it rotates the log when
// its period ends.
func (l *Log) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.rotateByPeriod(ctx) })
	complained := false
	for {
		v, _, changed := l.state()
		lag, stop := context.WithTimeout(ctx, signTimeout)
		err := awaitSigned(lag, v.newest())
		stop()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !complained:
			l.cfg.Log.Error("audit events are not signed", zap.Error(err))
		case err == nil && complained:
			l.cfg.Log.Info("audit events are signed again")
		}
		if complained = err != nil; complained {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// awaitCheckpoint waits until what there is of p is signed, after a crash for
// example.
func (l *Log) awaitCheckpoint(ctx context.Context, p period) error {
	ctx, stop := context.WithTimeout(ctx, signTimeout)
	defer stop()
	if err := awaitSigned(ctx, p); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be signed")
	}
	return nil
}

// awaitSigned waits until the checkpoint of p covers all of it.
func awaitSigned(ctx context.Context, p period) error {
	t := time.NewTicker(publishPoll)
	defer t.Stop()
	for {
		raw, err := p.signed()
		if err == nil {
			c, parseErr := parseCheckpoint("checkpoint", raw, p.key)
			if parseErr == nil && c.Size >= p.size {
				return nil
			}
			if err = parseErr; err == nil {
				err = fault.New(fault.Unavailable, "the checkpoint covers %d of %d entries", c.Size, p.size)
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}
