package sshca

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// Revocations are the certificates of one authority that are not good any more.
type Revocations struct {
	CAs     []ssh.PublicKey // the authority's keys, old and new
	Serials []uint64
	KeyIDs  []string // all certificates with these
	All     bool     // every one
}

// KRL is a key revocation list, as sshd reads it for RevokedKeys.
type KRL struct {
	Version   uint64 // of two lists the newer has the larger
	Generated time.Time
	Comment   string
	Revoked   []Revocations
}

// The numbers of OpenSSH's PROTOCOL.krl.
const (
	krlMagic         = "SSHKRL\n\x00"
	krlFormat        = 1
	krlCertificates  = 1    // section: certificates of one authority
	krlSignature     = 4    // section: who made the list
	krlSerialList    = 0x20 // of such a section: serial numbers, in order
	krlSerialRange   = 0x21 // first and last
	krlKeyIDs        = 0x23
	krlLastSerial    = 1<<64 - 1
	krlFirstSerial   = 1 // a certificate without a serial number has 0, and none of ours is
	maxCommentLength = 256
)

// Marshal returns the list, signed by signer (PROTOCOL.krl, section 5). OpenSSH
// does not ask who signed what it reads from its own disk: the signature is for
// who carries it there.
func (k KRL) Marshal(signer ssh.Signer) ([]byte, error) {
	b := []byte(krlMagic)
	b = binary.BigEndian.AppendUint32(b, krlFormat)
	b = binary.BigEndian.AppendUint64(b, k.Version)
	b = binary.BigEndian.AppendUint64(b, uint64(max(k.Generated.Unix(), 0)))
	b = binary.BigEndian.AppendUint64(b, 0) // flags: none is defined
	b = appendString(b, nil)                // reserved
	b = appendString(b, []byte(k.Comment[:min(len(k.Comment), maxCommentLength)]))
	for _, r := range k.Revoked {
		for _, ca := range r.CAs {
			if section := r.section(ca); section != nil {
				b = appendString(append(b, krlCertificates), section)
			}
		}
	}
	b = appendString(append(b, krlSignature), signer.PublicKey().Marshal())
	sig, err := signer.Sign(rand.Reader, b)
	if err != nil {
		return nil, fmt.Errorf("sign a revocation list: %w", err)
	}
	return appendString(b, ssh.Marshal(sig)), nil
}

// section returns what r says of certificates that ca signed, or nil.
func (r Revocations) section(ca ssh.PublicKey) []byte {
	b := appendString(nil, ca.Marshal())
	b = appendString(b, nil) // reserved
	bare := len(b)
	if r.All {
		body := binary.BigEndian.AppendUint64(nil, krlFirstSerial)
		b = appendString(append(b, krlSerialRange), binary.BigEndian.AppendUint64(body, krlLastSerial))
	} else if serials := slices.Compact(slices.Sorted(slices.Values(r.Serials))); len(serials) > 0 {
		var body []byte
		for _, s := range serials {
			body = binary.BigEndian.AppendUint64(body, s)
		}
		b = appendString(append(b, krlSerialList), body)
	}
	if ids := slices.Compact(slices.Sorted(slices.Values(r.KeyIDs))); len(ids) > 0 {
		var body []byte
		for _, id := range ids {
			body = appendString(body, []byte(id))
		}
		b = appendString(append(b, krlKeyIDs), body)
	}
	if len(b) == bare {
		return nil
	}
	return b
}

// appendString appends s as a string of RFC 4251, section 5.
func appendString(b, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
