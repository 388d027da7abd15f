package sftp

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"math"
	"sync/atomic"
)

// maxHeld is how many bytes of all files of a session are kept while what
// belongs before them has not come: the requests that stock clients send ahead
// are in order, so that is a short read here and there.
const maxHeld = 512 << 10

// pieceCost is what keeping one piece takes beside its bytes.
const pieceCost = 96

// content follows the bytes of a file in one direction and hashes them in the
// file's order.
type content struct {
	held   *atomic.Int64 // of the session; at most maxHeld
	hash   hash.Hash     // nil before the first byte
	next   uint64        // offset up to which hash has all
	pieces map[uint64][]byte
	spoilt bool // not in order, or not once
}

// add notes that p went through at offset.
func (c *content) add(offset uint64, p []byte) {
	switch {
	case c.spoilt || len(p) == 0:
	case offset == c.next && c.next <= math.MaxInt64-uint64(len(p)):
		c.sum(p)
		for c.pieces != nil {
			p, ok := c.pieces[c.next]
			if !ok {
				return
			}
			c.forget(c.next, p)
			c.sum(p)
		}
	case offset > c.next && c.keep(offset, p):
	default:
		c.spoil()
	}
}

func (c *content) sum(p []byte) {
	if c.hash == nil {
		c.hash = sha256.New()
	}
	_, _ = c.hash.Write(p) // never fails
	c.next += uint64(len(p))
}

// keep holds p until what is before it has come. It reports whether there was
// room for it.
func (c *content) keep(offset uint64, p []byte) bool {
	cost := int64(len(p) + pieceCost)
	if _, twice := c.pieces[offset]; twice {
		return false
	}
	if c.held.Add(cost) > maxHeld {
		c.held.Add(-cost)
		return false
	}
	if c.pieces == nil {
		c.pieces = map[uint64][]byte{}
	}
	c.pieces[offset] = append([]byte(nil), p...)
	return true
}

func (c *content) forget(offset uint64, p []byte) {
	delete(c.pieces, offset)
	c.held.Add(-int64(len(p) + pieceCost))
}

// spoil gives up the hash and what is held for it.
func (c *content) spoil() {
	c.spoilt = true
	c.release()
	c.hash = nil
}

// release gives up what is held.
func (c *content) release() {
	for offset, p := range c.pieces {
		c.forget(offset, p)
	}
}

// sha256 returns the hash of the first n bytes, when just those went through,
// each once.
func (c *content) sha256(n int64) (string, bool) {
	if c.spoilt || len(c.pieces) > 0 || c.next != uint64(n) {
		return "", false
	}
	if c.hash == nil {
		c.hash = sha256.New()
	}
	return hex.EncodeToString(c.hash.Sum(nil)), true
}
