package recording

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// version is the version of the format.
const version = 1

const (
	// partBytes bounds the frames of a part, with their lengths, in bytes. Files,
	// commits and uploads cost by the part: at an eighth of it a stream of output takes
	// a node more than twice the time.
	partBytes = 2 << 20
	// fullBytes is where the recorder closes a part. What is left is for a gap and
	// the end, which are written even then.
	fullBytes = partBytes - 4<<10
	// maxData bounds the bytes of one print frame that the recorder writes. It is
	// what a channel of SSH carries at once.
	maxData = 32 << 10
	// maxReason bounds the reason of a gap or an end, in bytes.
	maxReason = 1 << 10
)

// The open part is a journal: a file of records, each of which is
//
//	uint32  length of the frame, big endian, 1 to 2097152
//	uint32  CRC-32C of the length's four bytes and the frame, big endian
//	        the frame
const recordHeader = 8

// errTorn means that no whole record begins here, as after a write that did not
// end; errDamaged that what is here is not what was written.
var (
	errTorn    = errors.New("no whole record")
	errDamaged = errors.New("a damaged record")
)

// castagnoli returns the table of CRC-32C; crc32 makes it once.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// closeRecord fills in the header of the record that begins at from and reaches to
// the end of dst.
func closeRecord(dst []byte, from int) []byte {
	rec := dst[from:]
	binary.BigEndian.PutUint32(rec, uint32(len(rec)-recordHeader))
	sum := crc32.Update(crc32.Checksum(rec[:4], castagnoli()), castagnoli(), rec[recordHeader:])
	binary.BigEndian.PutUint32(rec[4:], sum)
	return dst
}

// nextRecord returns the content of the record that data begins with and the
// record's length. Beside errDamaged the length is 0 unless it is plausible.
func nextRecord(data []byte) (content []byte, n int, err error) {
	if len(data) < recordHeader {
		return nil, 0, errTorn
	}
	size := binary.BigEndian.Uint32(data)
	if size == 0 || size > partBytes {
		return nil, 0, errDamaged
	}
	if int(size) > len(data)-recordHeader {
		return nil, 0, errTorn
	}
	n = recordHeader + int(size)
	content = data[recordHeader:n]
	sum := crc32.Update(crc32.Checksum(data[:4], castagnoli()), castagnoli(), content)
	if sum != binary.BigEndian.Uint32(data[4:]) {
		return nil, n, errDamaged
	}
	return content, n, nil
}

// The fields of accessdv1.Frame and accessdv1.FramePrint by number.
const (
	fieldAt     = 1
	fieldPrint  = 3
	fieldStream = 1
	fieldData   = 2
)

// appendPrint appends the record of a print frame. It is what proto.Marshal makes,
// without its garbage.
func appendPrint(dst []byte, at uint64, s accessdv1.Stream, p []byte) []byte {
	from := len(dst)
	dst = append(dst, make([]byte, recordHeader)...)
	if at != 0 {
		dst = protowire.AppendTag(dst, fieldAt, protowire.VarintType)
		dst = protowire.AppendVarint(dst, at)
	}
	stream := uint64(s)
	body := protowire.SizeTag(fieldStream) + protowire.SizeVarint(stream) + protowire.SizeTag(fieldData) + protowire.SizeBytes(len(p))
	dst = protowire.AppendTag(dst, fieldPrint, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(body))
	dst = protowire.AppendTag(dst, fieldStream, protowire.VarintType)
	dst = protowire.AppendVarint(dst, stream)
	dst = protowire.AppendTag(dst, fieldData, protowire.BytesType)
	dst = protowire.AppendBytes(dst, p)
	return closeRecord(dst, from)
}

// appendFrame appends the record of any frame.
func appendFrame(dst []byte, f *accessdv1.Frame) []byte {
	from := len(dst)
	dst, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append(dst, make([]byte, recordHeader)...), f)
	if err != nil {
		panic("recording: internal error: " + err.Error()) // text that is not UTF-8, which cut excludes
	}
	return closeRecord(dst, from)
}

func startFrame(s *accessdv1.FrameStart) *accessdv1.Frame {
	return &accessdv1.Frame{What: &accessdv1.Frame_Start{Start: s}}
}

func gapFrame(at uint64, reason string, missing uint64) *accessdv1.Frame {
	return &accessdv1.Frame{AtUs: at, What: &accessdv1.Frame_Gap{Gap: &accessdv1.FrameGap{Reason: cut(reason, maxReason), Bytes: missing}}}
}

func endFrame(at uint64, recovered bool, reason string) *accessdv1.Frame {
	return &accessdv1.Frame{AtUs: at, What: &accessdv1.Frame_End{End: &accessdv1.FrameEnd{Recovered: recovered, Reason: cut(reason, maxReason)}}}
}

// unjournal turns whole records into what a part holds, in place: a varint is never
// longer than a record's header.
func unjournal(records []byte) []byte {
	out := records[:0]
	for len(records) > 0 {
		size := binary.BigEndian.Uint32(records)
		content := records[recordHeader : recordHeader+size]
		records = records[recordHeader+size:]
		out = append(protowire.AppendVarint(out, uint64(size)), content...)
	}
	return out
}

// parseFrames returns the frames of a part. Beside an error it returns those that
// are whole before it.
func parseFrames(data []byte) ([]*accessdv1.Frame, error) {
	var frames []*accessdv1.Frame
	for len(data) > 0 {
		size, n := protowire.ConsumeVarint(data)
		if n < 0 || size == 0 || size > uint64(len(data)-n) {
			return frames, io.ErrUnexpectedEOF
		}
		f := new(accessdv1.Frame)
		if err := proto.Unmarshal(data[n:n+int(size)], f); err != nil {
			return frames, errDamaged
		}
		frames = append(frames, f)
		data = data[n+int(size):]
	}
	return frames, nil
}
