package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// What stands beside the parts of a copy of a recording, in this order of making:
// a copy that has the last is whole, as far as there was anything to copy.
const (
	CopySums  = "SHA256SUMS"      // of the parts, as sha256sum(1) writes and checks them
	CopyProof = "recording.proof" // that the log has the event of the recording's end (C2SP tlog-proof)
	CopyOf    = "recording.json"  // a [Copied]
)

// MaxCopied bounds a [Copied] as written, in bytes.
const MaxCopied = 64 << 10

// copiedVersion is the version of the form of a copy.
const copiedVersion = 1

// Copied says what a copy is of. Nobody signs it; the proof beside it is of an event
// that has the same root.
type Copied struct {
	Version   int             `json:"version"`
	Session   names.SessionID `json:"session"`
	User      names.UserName  `json:"user"`
	Login     names.Login     `json:"login"`
	NodeID    names.NodeID    `json:"node_id"`
	NodeName  names.NodeName  `json:"node_name"`
	Kind      string          `json:"kind"`
	Command   string          `json:"command,omitempty"`
	Terminal  bool            `json:"terminal"`
	Sealed    bool            `json:"sealed"`
	Started   time.Time       `json:"started"`
	Ended     time.Time       `json:"ended"`
	Parts     uint32          `json:"parts"`
	Root      string          `json:"root"`
	Recovered bool            `json:"recovered"`
}

// Encode returns c as it is written: the same bytes for the same recording.
func (c Copied) Encode() ([]byte, error) {
	c.Version = copiedVersion
	c.Started, c.Ended = c.Started.UTC(), c.Ended.UTC()
	data, err := json.MarshalIndent(c, "", "  ")
	return append(data, '\n'), err
}

// ParseCopied reads what [Copied.Encode] wrote, of the session that is named. It takes
// hostile input.
func ParseCopied(data []byte, session names.SessionID) (Copied, error) {
	var c Copied
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&c); err != nil || len(data) > MaxCopied {
		return c, fault.New(fault.BadInput, "%s: want what a copy of a recording has there", CopyOf)
	}
	if c.Version != copiedVersion {
		return c, fault.New(fault.BadInput, "%s has version %d, which this accessd does not know", CopyOf, c.Version)
	}
	if c.Session != session {
		return c, fault.New(fault.Conflict, "%s is of another session", CopyOf)
	}
	return c, nil
}

// PartFile names part number of a recording in a store and in a copy.
func PartFile(number uint32) string { return fmt.Sprintf("%06d.part", number) }

// AppendSum appends a part's line in [CopySums].
func AppendSum(b []byte, number uint32, sum [sha256.Size]byte) []byte {
	return append(append(append(hex.AppendEncode(b, sum[:]), "  "...), PartFile(number)...), '\n')
}
