//go:build unix

package events

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

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

// Query returns the newest events that match f and came into the log before the
// place that before names, oldest first. An empty before is the log's end; limit 0
// means 1000. next is the before of the page of older events, "" when no
// older one matches. A page of very long events is shorter than limit.
func (l *Log) Query(ctx context.Context, f Filter, limit int, before string) (events [][]byte, next string, err error) {
	if err := f.Check(); err != nil {
		return nil, "", err
	}
	if limit < 0 || limit > maxLimit {
		return nil, "", fault.New(fault.BadInput, "limit %d: want 0 to %d", limit, maxLimit)
	}
	if limit == 0 {
		limit = defaultLimit
	}
	size, _, _ := l.state()
	end := size
	if before != "" {
		if end, err = strconv.ParseUint(before, 10, 64); err != nil || end > size {
			return nil, "", fault.New(fault.BadInput, "before %q: want what the previous page gave", clip(before))
		}
	}
	bytes, oldest := 0, end
	err = l.backward(ctx, f, end, func(at uint64, data []byte) bool {
		if len(events) == limit || len(events) > 0 && bytes+len(data) > pageBytes {
			next = strconv.FormatUint(oldest, 10)
			return false
		}
		events = append(events, data)
		bytes += len(data)
		oldest = at
		return true
	})
	slices.Reverse(events)
	return events, next, err
}

// backward calls fn with the entries before end that match f, newest first,
// until fn returns false.
func (l *Log) backward(ctx context.Context, f Filter, end uint64, fn func(at uint64, data []byte) bool) error {
	if end == 0 {
		return nil
	}
	size, indexed, _ := l.state()
	needles := f.needles()
	visit := func(block uint64) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		entries, _, err := l.tiles.bundle(block, size)
		if err != nil {
			return false, err
		}
		for i, data := range slices.Backward(entries) {
			at := block*blockSize + uint64(i)
			if at < end && f.selects(data, needles) && !fn(at, data) {
				return false, nil
			}
		}
		return true, nil
	}
	block := (end - 1) / blockSize
	for ; block > indexed/blockSize || block == indexed/blockSize && size > indexed; block-- { // the index does not know it yet
		more, err := visit(block)
		if err != nil || !more || block == 0 {
			return unavailable(err)
		}
	}
	return unavailable(l.index.find(ctx, f, block, visit))
}

// selects reports whether f selects the event in canonical form that data holds.
func (f Filter) selects(data []byte, needles [][]byte) bool {
	if !containsAll(data, needles) {
		return false
	}
	e, err := ParseEvent(data)
	return err == nil && f.matches(e)
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, err, "the audit log cannot be read")
}

// Tail calls fn with the newest backlog events that match f, oldest first, and
// then with each new one as it comes into the log, until ctx ends, which is no
// error, or fn returns an error, which Tail returns. It misses none and gives none
// twice. What it hands to fn at once is bounded.
func (l *Log) Tail(ctx context.Context, f Filter, backlog int, fn func(events [][]byte) error) error {
	if err := f.Check(); err != nil {
		return err
	}
	if backlog < 0 || backlog > maxLimit {
		return fault.New(fault.BadInput, "backlog %d: want 0 to %d", backlog, maxLimit)
	}
	size, _, changed := l.state()
	cursor := size
	if backlog > 0 {
		found := 0
		if err := l.backward(ctx, f, size, func(at uint64, _ []byte) bool {
			cursor = at
			found++
			return found < backlog
		}); err != nil {
			return ended(ctx, err)
		}
	}
	for {
		if err := l.forward(ctx, f, span{cursor, size}, fn); err != nil {
			return ended(ctx, err)
		}
		cursor = size
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if l.isClosed() {
			return fault.New(fault.Unavailable, "the audit log is closed")
		}
		size, _, changed = l.state()
	}
}

// ended returns err, or nil when it came of the end of ctx.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// span is the entries from and before end.
type span struct{ from, end uint64 }

// forward calls fn with the entries of s that match f.
func (l *Log) forward(ctx context.Context, f Filter, s span, fn func(events [][]byte) error) error {
	needles := f.needles()
	var batch [][]byte
	bytes := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := fn(batch)
		batch, bytes = nil, 0
		return err
	}
	for s.from < s.end {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, _, err := l.tiles.bundle(s.from/blockSize, s.end)
		if err != nil {
			return unavailable(err)
		}
		for _, data := range entries[s.from%blockSize:] {
			s.from++
			if !f.selects(data, needles) {
				continue
			}
			if bytes+len(data) > pageBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			batch = append(batch, data)
			bytes += len(data)
		}
	}
	return flush()
}

// Run watches the log until ctx ends: it says so when events are not signed for
// long, which means that checkpoints cannot be written.
func (l *Log) Run(ctx context.Context) error {
	key, err := note.NewVerifier(l.cfg.VerifierKey)
	if err != nil {
		return fault.New(fault.Internal, "events: internal error: %w", err)
	}
	complained := false
	for {
		size, _, changed := l.state()
		lag, stop := context.WithTimeout(ctx, signTimeout)
		err := l.awaitSigned(lag, key, size)
		stop()
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an orderly stop is not an error
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

// awaitCheckpoint waits until what a crash left unsigned is signed.
func (l *Log) awaitCheckpoint(ctx context.Context, key note.Verifier) error {
	ctx, stop := context.WithTimeout(ctx, signTimeout)
	defer stop()
	size, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return unavailable(err)
	}
	if err := l.awaitSigned(ctx, key, size); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be signed")
	}
	return nil
}

// awaitSigned waits until the checkpoint covers size entries.
func (l *Log) awaitSigned(ctx context.Context, key note.Verifier, size uint64) error {
	t := time.NewTicker(publishPoll)
	defer t.Stop()
	for {
		raw, err := l.Checkpoint()
		if err == nil {
			c, parseErr := parseCheckpoint("checkpoint", raw, key)
			if parseErr == nil && c.Size >= size {
				return nil
			}
			if err = parseErr; err == nil {
				err = fault.New(fault.Unavailable, "the checkpoint covers %d of %d entries", c.Size, size)
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}
