package events

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// proofHeader begins a proof file (https://c2sp.org/tlog-proof).
	proofHeader = "c2sp.org/tlog-proof@v1"
	// maxProofHashes bounds an inclusion proof: one hash for each level of a tree
	// whose size has 64 bits.
	maxProofHashes = 64
	// MaxProof bounds a proof file, in bytes: the event in base64, the hashes, the
	// checkpoint, and 1 KiB for the rest.
	MaxProof = (MaxEvent+2)/3*4 + maxProofHashes*45 + maxCheckpoint + 1<<10
)

// tlogProof is a proof file: an event, where it is in a log, and why that is so.
type tlogProof struct {
	event      []byte // the entry itself, as the format's extra data
	entry      uint64
	hashes     [][]byte // from the leaf's sibling up (RFC 6962, Section 2.1.1)
	checkpoint []byte   // a signed note, verbatim
}

func (p tlogProof) marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHeader, base64.StdEncoding.EncodeToString(p.event), p.entry)
	for _, h := range p.hashes {
		b.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
	}
	b.WriteByte('\n')
	b.Write(p.checkpoint)
	return b.Bytes()
}

// parseProof takes what marshal returns and nothing else.
func parseProof(data []byte) (tlogProof, error) {
	var p tlogProof
	malformed := func(format string, args ...any) (tlogProof, error) {
		return tlogProof{}, fault.New(fault.BadInput, "not a proof: "+format, args...)
	}
	if len(data) > MaxProof {
		return malformed("%d bytes, want at most %d", len(data), MaxProof)
	}
	head, checkpoint, found := bytes.Cut(data, []byte("\n\n"))
	if !found {
		return malformed("no empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if lines[0] != proofHeader {
		return malformed("its first line is %q, want %q", clip(lines[0]), proofHeader)
	}
	if len(lines) < 3 || len(lines) > 3+maxProofHashes {
		return malformed("%d lines before the checkpoint, want 3 to %d", len(lines), 3+maxProofHashes)
	}
	extra, isExtra := strings.CutPrefix(lines[1], "extra ")
	event, err := base64.StdEncoding.Strict().DecodeString(extra)
	if !isExtra || err != nil {
		return malformed("its second line is not the event: want \"extra \" and base64")
	}
	index, isIndex := strings.CutPrefix(lines[2], "index ")
	if p.entry, err = strconv.ParseUint(index, 10, 64); !isIndex || err != nil || strconv.FormatUint(p.entry, 10) != index {
		return malformed("line 3 is %q, want \"index \" and a number", clip(lines[2]))
	}
	for i, line := range lines[3:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != rfc6962.DefaultHasher.Size() {
			return malformed("line %d is %q, want a SHA-256 in base64", i+4, clip(line))
		}
		p.hashes = append(p.hashes, h)
	}
	if len(event) > MaxEvent || len(checkpoint) == 0 || len(checkpoint) > maxCheckpoint {
		return malformed("an event of %d bytes and a checkpoint of %d, want at most %d and %d", len(event), len(checkpoint), MaxEvent, maxCheckpoint)
	}
	p.event, p.checkpoint = event, checkpoint
	if !bytes.Equal(p.marshal(), data) { // base64 skips line ends, among others
		return malformed("not in canonical form")
	}
	return p, nil
}

// Proven is what a proof proves: the entry of that number, in the log of that
// origin and size, is the event.
type Proven struct {
	Event    []byte // in canonical form
	Entry    uint64
	Size     uint64
	RootHash string // base64
	Origin   string

	Checkpoint []byte // the signed note; [Cosignatures] says which witnesses saw it
}

// CheckProof checks a proof file as [Log.Prove] makes it against the log's public
// key, without the log. Of several keys, one a line, that of the proof's log
// counts. An error says what is wrong: a [fault.BadInput] is no proof at all, a
// [fault.Conflict] one that does not hold.
func CheckProof(data []byte, verifierKeys string) (Proven, error) {
	keys, err := parseKeys(verifierKeys)
	if err != nil {
		return Proven{}, err
	}
	p, err := parseProof(data)
	if err != nil {
		return Proven{}, err
	}
	c, err := openCheckpoint(p.checkpoint, pickKey(p.checkpoint, keys))
	if err != nil {
		return Proven{}, fault.New(fault.Conflict, "the proof's checkpoint does not count: %w", err)
	}
	if p.entry >= c.Size {
		return Proven{}, fault.New(fault.Conflict, "the proof is of entry %d, but its checkpoint signs %d entries only", p.entry, c.Size)
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(p.event)
	root, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, p.entry, c.Size, leaf, p.hashes)
	if err != nil {
		return Proven{}, fault.New(fault.Conflict, "the proof has %d hashes, which is not what entry %d of %d takes", len(p.hashes), p.entry, c.Size)
	}
	if !bytes.Equal(root, c.Hash) {
		return Proven{}, fault.New(fault.Conflict,
			"this event is not entry %d of the log that was signed: the event, its number or a hash of the proof was changed", p.entry)
	}
	if _, err := ParseEvent(p.event); err != nil {
		return Proven{}, fault.New(fault.Conflict, "entry %d is in the log, but is not an event: %w", p.entry, err)
	}
	return Proven{
		Event: p.event, Entry: p.entry, Size: c.Size, Origin: c.Origin,
		RootHash: base64.StdEncoding.EncodeToString(c.Hash), Checkpoint: p.checkpoint,
	}, nil
}

// logKey is a log's public key, with the text that it was made of.
type logKey struct {
	note.Verifier

	text string
}

// parseKeys parses verifier keys of C2SP signed-note, one a line.
func parseKeys(text string) ([]logKey, error) {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return nil, fault.New(fault.BadInput, "there is no verifier key").WithHint("\"accessd ca export --type audit\" prints it")
	}
	keys := make([]logKey, len(fields))
	for i, f := range fields {
		v, err := note.NewVerifier(f)
		if err != nil {
			return nil, fault.New(fault.BadInput, "verifier key %q: %w", clip(f), err)
		}
		keys[i] = logKey{v, f}
	}
	return keys, nil
}

// pickKey returns the one of keys that signed the checkpoint in raw; else one of
// its log's name, or the first, for which [openCheckpoint] says what is wrong. A
// log's key is that of its periods, too, under their names.
func pickKey(raw []byte, keys []logKey) logKey {
	origin := originOf(raw)
	base, _ := splitOrigin(origin)
	picked := keys[0]
	for _, k := range keys {
		if its, _ := splitOrigin(k.Name()); its == base {
			if own, err := k.as(origin); err == nil {
				k = own
			}
		}
		if _, err := openCheckpoint(raw, k); err == nil {
			return k
		}
		if k.Name() == origin {
			picked = k
		}
	}
	return picked
}

// openCheckpoint returns the checkpoint in raw, which key must have signed. Its
// error says whose it is instead.
func openCheckpoint(raw []byte, key note.Verifier) (*log.Checkpoint, error) {
	if len(raw) > maxCheckpoint {
		return nil, fmt.Errorf("it has more than %d bytes", maxCheckpoint)
	}
	n, err := note.Open(raw, note.VerifierList(key))
	if bad, ok := errors.AsType[*note.InvalidSignatureError](err); ok {
		return nil, fmt.Errorf("its signature by %q is wrong: it was changed after it was signed", bad.Name)
	}
	if other, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		by := make([]string, 0, len(other.Note.UnverifiedSigs))
		for _, s := range other.Note.UnverifiedSigs {
			by = append(by, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
		}
		return nil, fmt.Errorf("it is signed by %q, not by %q", strings.Join(by, ", "), fmt.Sprintf("%s+%08x", key.Name(), key.KeyHash()))
	}
	if err != nil {
		return nil, fmt.Errorf("it is not a signed note: %w", err)
	}
	c := &log.Checkpoint{}
	rest, err := c.Unmarshal([]byte(n.Text))
	switch {
	case err != nil || len(rest) > 0 || len(c.Hash) != rfc6962.DefaultHasher.Size():
		return nil, errors.New("it is malformed")
	case c.Origin != key.Name():
		return nil, fmt.Errorf("it is of the log %q, not of %q", clip(c.Origin), key.Name())
	}
	return c, nil
}
