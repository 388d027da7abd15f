// Package rfc6962 stands in for the package of that name.
package rfc6962

import "crypto/sha256"

// Hasher is the hasher of RFC 6962.
type Hasher struct{}

// DefaultHasher is a [Hasher].
var DefaultHasher = &Hasher{}

// EmptyRoot returns the root of the empty tree.
func (*Hasher) EmptyRoot() []byte {
	h := sha256.Sum256(nil)
	return h[:]
}

// Size returns the length of a hash.
func (*Hasher) Size() int { return sha256.Size }
