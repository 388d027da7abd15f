package events

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// A segment of the spool is a file of [segmentMagic] and then records:
//
//	uint32  length of the event in bytes, big endian, 1 to MaxEvent
//	uint32  CRC-32C of the length's four bytes and the event, big endian
//	        the event
//
// A segment is only ever appended to. Whatever stands behind the last whole
// record was never acknowledged.
const (
	segmentMagic = "accspl1\n"
	frameHeader  = 8
	maxFrame     = frameHeader + MaxEvent
)

// errTorn means that no whole record begins here.
var errTorn = errors.New("no whole record")

// castagnoli returns the table of CRC-32C; crc32 makes it once.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// appendFrame appends the record of event to dst.
func appendFrame(dst, event []byte) []byte {
	at := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(event)))
	sum := crc32.Update(crc32.Checksum(dst[at:], castagnoli()), castagnoli(), event)
	dst = binary.BigEndian.AppendUint32(dst, sum)
	return append(dst, event...)
}

// nextFrame returns the event of the record that data begins with and the
// record's length. When the record's length is plausible but its content is not,
// n is that length beside errTorn; otherwise n is 0.
func nextFrame(data []byte) (event []byte, n int, err error) {
	if len(data) < frameHeader {
		return nil, 0, errTorn
	}
	size := binary.BigEndian.Uint32(data)
	if size == 0 || size > MaxEvent || int(size) > len(data)-frameHeader {
		return nil, 0, errTorn
	}
	n = frameHeader + int(size)
	event = data[frameHeader:n]
	sum := crc32.Update(crc32.Checksum(data[:4], castagnoli()), castagnoli(), event)
	if sum != binary.BigEndian.Uint32(data[4:]) {
		return nil, n, errTorn
	}
	return event, n, nil
}
