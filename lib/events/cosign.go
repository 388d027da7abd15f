package events

import (
	"errors"
	"fmt"
	"slices"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

// Cosignature is a witness's word that it saw a checkpoint, and none before it
// that the checkpoint does not continue.
type Cosignature struct {
	Witness string    // its name
	Time    time.Time // when it signed
	Size    uint64    // entries in the log, or in its period, then
}

// ParseWitnessKey parses the public key of a witness: a verifier key of C2SP
// tlog-cosignature.
func ParseWitnessKey(text string) (note.Verifier, error) {
	v, err := formats.NewVerifierForCosignatureV1(text)
	if err != nil {
		return nil, fault.New(fault.BadInput, "witness key %q: %w", clip(text), err)
	}
	return v, nil
}

// Cosignatures returns for each of the witness keys the newest cosignature in
// checkpoints, which must be signed by one of the log's keys, as those of a
// [Report] are. A witness that has none is a [fault.Conflict].
func Cosignatures(checkpoints [][]byte, logKeys string, witnessKeys []string) ([]Cosignature, error) {
	keys, err := parseKeys(logKeys)
	if err != nil {
		return nil, err
	}
	found := make([]Cosignature, len(witnessKeys))
	for i, text := range witnessKeys {
		w, err := ParseWitnessKey(text)
		if err != nil {
			return nil, err
		}
		for _, raw := range checkpoints {
			c, err := openCheckpoint(raw, pickKey(raw, keys))
			if err != nil {
				return nil, fault.New(fault.Conflict, "a cosigned checkpoint does not count: %w", err)
			}
			at, err := cosigned(raw, w)
			if err == nil && (found[i].Witness == "" || at.After(found[i].Time)) {
				found[i] = Cosignature{Witness: w.Name(), Time: at, Size: c.Size}
			}
		}
		if found[i].Witness == "" {
			return nil, fault.New(fault.Conflict, "no checkpoint of this log is cosigned by the witness %s with this key", w.Name())
		}
	}
	return found, nil
}

// cosigned returns when w cosigned the checkpoint in raw.
func cosigned(raw []byte, w note.Verifier) (time.Time, error) {
	n, err := note.Open(raw, note.VerifierList(w))
	if err != nil {
		return time.Time{}, err
	}
	return formats.CoSigV1Timestamp(n.Sigs[0])
}

// Cosigners returns the names that the checkpoint in raw bears beside the log's,
// unchecked.
func Cosigners(raw []byte) []string {
	_, err := note.Open(raw, note.VerifierList())
	unverified, ok := errors.AsType[*note.UnverifiedNoteError](err)
	if !ok {
		return nil
	}
	var list []string
	for i, s := range unverified.Note.UnverifiedSigs {
		if i > 0 && !slices.Contains(list, s.Name) { // the log's own comes first
			list = append(list, s.Name)
		}
	}
	return list
}

// addSignatures returns the checkpoint in raw with signature lines of witnesses.
func addSignatures(raw []byte, sigs []note.Signature) []byte {
	out := slices.Clone(raw)
	for _, s := range sigs {
		out = fmt.Appendf(out, "— %s %s\n", s.Name, s.Base64)
	}
	return out
}
