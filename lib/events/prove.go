//go:build unix

package events

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/tessera/client"

	"github.com/accessd/accessd/lib/fault"
)

// Prove returns a proof file of the event with the given uid: the event, its
// place, an inclusion proof and a signed checkpoint. [CheckProof] checks it. Of an
// event that came a moment ago it waits for the signature.
func (l *Log) Prove(ctx context.Context, uid string) ([]byte, error) {
	id, err := uuid.Parse(uid)
	if err != nil {
		return nil, fault.New(fault.BadInput, "uid %q: want a UUID", clip(uid))
	}
	var entry uint64
	switch err := l.index.db.QueryRowContext(ctx, "SELECT entry FROM uids WHERE uid = ?", id[:]).Scan(&entry); {
	case errors.Is(err, sql.ErrNoRows):
		return nil, fault.New(fault.NotFound, "no event %s in this authority's log", id)
	case err != nil:
		return nil, unavailable(err)
	}
	v := l.view().present()
	tree, ok := v.at(entry / blockSize)
	if !ok {
		return nil, fault.New(fault.NotFound, "event %s is in a period of this authority's log that is not here", id).
			WithHint("bring the period back from the archive; \"accessd audit verify\" names it")
	}
	entry -= tree.base
	raw, c, err := tree.awaitSignature(ctx, entry+1)
	if err != nil {
		return nil, err
	}
	raw, c = tree.witnessed(entry+1, raw, c)
	p := tlogProof{entry: entry, checkpoint: raw}
	entries, _, err := tree.tiles.bundle(entry/blockSize, c.Size)
	if err != nil {
		return nil, unavailable(err)
	}
	p.event = entries[entry%blockSize]
	if e, _ := parseEntry(p.event); e.uid != id {
		return nil, fault.New(fault.Internal, "the audit index says that event %s is entry %d, which it is not", id, entry).
			WithHint("run \"accessd audit verify\"")
	}
	builder, err := client.NewProofBuilder(ctx, c.Size, tree.tiles.fetch)
	if err == nil {
		p.hashes, err = builder.InclusionProof(ctx, entry)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	data := p.marshal()
	if _, err := CheckProof(data, l.cfg.VerifierKey); err != nil {
		return nil, fault.New(fault.Internal, "the audit log is damaged: %w", err).WithHint("run \"accessd audit verify\"")
	}
	return data, nil
}

// awaitSignature returns a checkpoint that signs at least size entries, and waits
// for it as long as a running log takes to sign.
func (p period) awaitSignature(ctx context.Context, size uint64) ([]byte, *log.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	for {
		raw, err := p.signed()
		if err != nil {
			return nil, nil, err
		}
		c, err := openCheckpoint(raw, p.key)
		if err != nil {
			return nil, nil, fault.New(fault.Internal, "the audit log's checkpoint does not count: %w", err)
		}
		if c.Size >= size {
			return raw, c, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fault.New(fault.Unavailable, "the event is in the log, but is not signed yet")
		case <-time.After(publishPoll):
		}
	}
}

// witnessed returns the checkpoint of at least size entries that most witnesses
// cosigned, and the given one where none did.
func (p period) witnessed(size uint64, raw []byte, c *log.Checkpoint) ([]byte, *log.Checkpoint) {
	kept, err := p.tiles.cosigned()
	if err != nil {
		return raw, c // "audit verify" says so; the proof holds without
	}
	for _, k := range kept {
		other, err := openCheckpoint(k.raw, p.key)
		if err == nil && other.Size >= size && len(Cosigners(k.raw)) > len(Cosigners(raw)) {
			raw, c = k.raw, other
		}
	}
	return raw, c
}
