package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"regexp"
	"strings"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// invitePrefix begins every invite, so that a sign-in can tell one from a
// password without asking the person which it is.
const invitePrefix = "invite-"

// A secret of [names.NewSecret] is 52 characters of lower-case base32. A
// token's id is random too, but it is no secret.
var (
	inviteGrammar = regexp.MustCompile(`^invite-[a-z2-7]{52}$`)
	tokenGrammar  = regexp.MustCompile(`^([a-z2-7]{12})\.([a-z2-7]{52})$`)

	tokenIDGrammar = regexp.MustCompile(`^[a-z2-7]{12}$`)
)

// tokenIDSize is the length of a token's id in characters: 60 random bits,
// enough that no two tokens share one.
const tokenIDSize = 12

// newInvite returns an invite for a person and its hash for the store.
func newInvite() (invite, hash string) {
	invite = invitePrefix + names.NewSecret()
	return invite, hashSecret(invite)
}

// parseInvite returns the hash of s if s has the form of an invite. Blanks
// around it, which come along when it is pasted, do not count.
func parseInvite(s string) (hash string, err error) {
	s = strings.TrimSpace(s)
	if !inviteGrammar.MatchString(s) {
		return "", fault.New(fault.BadInput, "invite: want %q and 52 letters or digits", invitePrefix)
	}
	return hashSecret(s), nil
}

// newToken returns the id of a join token, or of what else is one, the text its user
// is given and the hash for the store.
func newToken() (id, text, hash string) {
	id, secret := names.NewSecret()[:tokenIDSize], names.NewSecret()
	return id, id + "." + secret, hashSecret(secret)
}

// parseToken splits the text of a join token into its id and its secret's hash.
// The error never holds the text.
func parseToken(s string) (id, hash string, err error) {
	id, hash, ok := splitToken(strings.TrimSpace(s))
	if !ok {
		return "", "", fault.New(fault.BadInput, "join token: want ID.SECRET as \"accessd tokens add\" printed it")
	}
	return id, hash, nil
}

// splitToken splits the text of [newToken] into the id and the secret's hash.
func splitToken(s string) (id, hash string, ok bool) {
	m := tokenGrammar.FindStringSubmatch(s)
	if m == nil {
		return "", "", false
	}
	return m[1], hashSecret(m[2]), true
}

// hashSecret hashes a secret of 256 random bits. Nobody can try them all, so
// one SHA-256 is enough at rest.
func hashSecret(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// sameHash compares two hashes in constant time; an empty one equals none.
func sameHash(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
