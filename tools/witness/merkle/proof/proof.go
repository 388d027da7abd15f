// Package proof stands in for the package of that name, with as much of it as the
// witness compiles with. Consistency is checked by golang.org/x/mod/sumdb/tlog.
package proof

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/transparency-dev/merkle/rfc6962"
)

// VerifyConsistency checks that the tree of size2 begins with that of size1.
func VerifyConsistency(_ *rfc6962.Hasher, size1, size2 uint64, proof [][]byte, root1, root2 []byte) error {
	if size1 == size2 {
		if len(proof) > 0 || string(root1) != string(root2) {
			return errors.New("two roots of one size")
		}
		return nil
	}
	if len(root1) != tlog.HashSize || len(root2) != tlog.HashSize {
		return errors.New("a root is no SHA-256")
	}
	hashes := make(tlog.TreeProof, len(proof))
	for i, h := range proof {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("hash %d is no SHA-256", i)
		}
		hashes[i] = tlog.Hash(h)
	}
	return tlog.CheckTree(hashes, int64(size2), tlog.Hash(root2), int64(size1), tlog.Hash(root1))
}

// VerifySubtreeConsistency refuses: what asks for it is not served here.
func VerifySubtreeConsistency(_ *rfc6962.Hasher, _, _, _ uint64, _ [][]byte, _, _ []byte) error {
	return errors.New("subtrees are not signed here")
}
