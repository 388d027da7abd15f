package passkey

import (
	"crypto/sha256"
	"encoding/binary"
)

// Flags of authenticator data (section 6.1).
const (
	flagPresent  = 1 << 0 // the person was there
	flagVerified = 1 << 2 // and is the right one
	flagEligible = 1 << 3 // the key may be backed up
	flagBackedUp = 1 << 4 // and is
	flagKey      = 1 << 6 // there is a new key
	flagExtended = 1 << 7 // there are extensions
)

// Data is what an authenticator says of itself and of a key, in its parts (section
// 6.1). Security keys of ssh say it in the same form. Nothing of it is judged.
type Data struct {
	Hash    []byte // SHA-256 of the relying party's id, or of the application
	Flags   byte
	Counter uint32
	rest    []byte
}

// headSize is what authenticator data has at least: the hash of the relying party's
// id, flags and the counter (section 6.1).
const headSize = sha256.Size + 1 + 4

// modelSize is the size of an AAGUID (section 6.5.1), in bytes.
const modelSize = 16

// ParseData reads authenticator data. The parts are of data, not copies.
func ParseData(data []byte) (Data, bool) {
	if len(data) < headSize {
		return Data{}, false
	}
	return Data{
		Hash: data[:sha256.Size], Flags: data[sha256.Size], Counter: binary.BigEndian.Uint32(data[sha256.Size+1:]), rest: data[headSize:],
	}, true
}

// Present reports whether somebody was there.
func (d Data) Present() bool { return d.Flags&flagPresent != 0 }

// Extended reports whether extensions are behind the key.
func (d Data) Extended() bool { return d.Flags&flagExtended != 0 }

// NewKey returns what d says of a key that was made (section 6.5.1): the model of the
// authenticator (AAGUID), the key's id, and the key, in COSE's form, with what is
// behind it.
func (d Data) NewKey() (model, id, key []byte, ok bool) {
	const head = modelSize + 2 // and the size of the id
	if d.Flags&flagKey == 0 || len(d.rest) < head {
		return nil, nil, nil, false
	}
	size := int(binary.BigEndian.Uint16(d.rest[modelSize:]))
	if len(d.rest) < head+size {
		return nil, nil, nil, false
	}
	return d.rest[:modelSize], d.rest[head : head+size], d.rest[head+size:], true
}
