//go:build unix

package recording

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/names"
)

// The files of a session, in a directory of its id.
const (
	stateName     = "state"
	journalSuffix = ".journal"
	partSuffix    = ".part"
	tmpSuffix     = ".tmp"
	// keptSuffix marks what could not be used; it stays for whoever looks into it.
	keptSuffix = ".kept"
)

func partName(number uint32) string    { return PartFile(number) }
func journalName(number uint32) string { return fmt.Sprintf("%06d%s", number, journalSuffix) }

// The state of a session is a file of records as in a journal, whose content
// begins with one of these bytes.
const (
	stateStart     = 'S' // then an accessdv1.FrameStart
	statePart      = 'P' // then a partRecord: the part is on disk, or was
	stateCompleted = 'C' // the store has all of it
	stateReleased  = 'R' // its session.end is in the log
)

// Flags of a part.
const (
	flagSealed    = 1 << iota // with age
	flagLast                  // ends with the end frame
	flagRecovered             // which a later process wrote
)

// partRecord is what the state keeps of a part.
type partRecord struct {
	number uint32
	flags  byte
	size   int64  // as stored, in bytes
	at     uint64 // of the last frame, in microseconds
	digest [sha256.Size]byte
}

// partRecordSize is the size of a partRecord in the state, with its first byte.
const partRecordSize = 1 + 4 + 1 + 8 + 8 + sha256.Size

// append appends the record of p to dst.
func (p partRecord) append(dst []byte) []byte {
	from := len(dst)
	dst = append(dst, make([]byte, recordHeader)...)
	dst = append(dst, statePart)
	dst = binary.BigEndian.AppendUint32(dst, p.number)
	dst = append(dst, p.flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.size))
	dst = binary.BigEndian.AppendUint64(dst, p.at)
	dst = append(dst, p.digest[:]...)
	return closeRecord(dst, from)
}

func parsePartRecord(content []byte) (partRecord, bool) {
	if len(content) != partRecordSize {
		return partRecord{}, false
	}
	p := partRecord{
		number: binary.BigEndian.Uint32(content[1:]), flags: content[5],
		size: int64(binary.BigEndian.Uint64(content[6:])), at: binary.BigEndian.Uint64(content[14:]),
	}
	copy(p.digest[:], content[22:])
	return p, p.number > 0 && p.size >= 0
}

// appendMark appends a record without content to dst.
func appendMark(dst []byte, mark byte) []byte {
	from := len(dst)
	dst = append(dst, make([]byte, recordHeader)...)
	return closeRecord(append(dst, mark), from)
}

// appendStart appends the record of start to dst.
func appendStart(dst []byte, start *accessdv1.FrameStart) []byte {
	from := len(dst)
	dst = append(dst, make([]byte, recordHeader)...)
	dst, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append(dst, stateStart), start)
	if err != nil {
		panic("recording: internal error: " + err.Error()) // text that is not UTF-8, which cut excludes
	}
	return closeRecord(dst, from)
}

// session is a recording in the spool, from Begin until the store has it all and
// its session.end is in the log.
type session struct {
	r     *Recorder
	id    names.SessionID
	start *accessdv1.FrameStart

	mu        sync.Mutex
	chain     Chain
	bytes     int64        // of all parts
	flags     byte         // of all parts
	at        uint64       // of the last frame
	published uint32       // parts handed to the uploads
	queue     []partRecord // of them, what the store has not confirmed
	stateSize int64
	synced    uint32 // the state is durable up to this part
	completed bool
	released  bool
	queued    bool // is waiting for an upload, or in one
	attempts  int  // uploads that failed since one succeeded
	retry     *time.Timer
}

func (s *session) path(name string) string { return string(s.id) + "/" + name }

// addLocked takes a part that is on disk, or was.
func (s *session) addLocked(p partRecord) {
	s.chain.add(p.digest)
	s.bytes += p.size
	s.flags |= p.flags
	s.at = max(s.at, p.at)
}

// summary returns what session.end says.
func (s *session) summary() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.summaryLocked()
}

func (s *session) summaryLocked() Summary {
	return Summary{Parts: s.chain.parts, Root: s.chain.Root(), Bytes: s.bytes, Sealed: s.flags&flagSealed != 0}
}

// unconfirmedLocked reports whether all parts were handed to the uploads, and the
// store was not told so.
func (s *session) unconfirmedLocked() bool {
	return s.flags&flagLast != 0 && s.published == s.chain.parts && !s.completed
}

// ofLocked returns what lists say of s.
func (s *session) ofLocked() *accessdv1.RecordingOf {
	return recordingOf(s.start, s.flags&flagSealed != 0)
}

// completeLocked returns what the store is told of s after the last part.
func (s *session) completeLocked() *accessdv1.CompleteRecordingRequest {
	ended := s.start.GetStarted().AsTime().Add(time.Duration(s.at) * time.Microsecond)
	return &accessdv1.CompleteRecordingRequest{
		Session: string(s.id), Parts: s.chain.parts, Root: s.chain.Root(), Ended: timestamppb.New(ended),
		Recovered: s.flags&flagRecovered != 0, Of: s.ofLocked(),
	}
}

// appendStateLocked appends records to the state; all of them, or none.
func (s *session) appendStateLocked(records []byte) error {
	f, err := s.r.dir.OpenFile(s.path(stateName), os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(records); err != nil {
		_ = f.Truncate(s.stateSize) // else a torn tail, which the next reader passes over
		return err
	}
	s.stateSize += int64(len(records))
	s.r.used.Add(int64(len(records)))
	return nil
}

// syncStateLocked makes the state durable up to part number at least.
func (s *session) syncStateLocked(number uint32) error {
	if number <= s.synced {
		return nil
	}
	parts := s.chain.parts
	f, err := s.r.dir.OpenFile(s.path(stateName), os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	s.synced = parts
	return nil
}
