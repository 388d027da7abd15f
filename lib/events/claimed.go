package events

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"

	"github.com/accessd/accessd/lib/names"
)

// claims are names that somebody typed and did not prove. One that stands for
// nothing may be a password that went into the wrong field, and the log keeps what
// it has for ever. What is written in its place is the same for the same name while
// this process lives, so that tries are seen to belong together, and of no use to
// who guesses: the key is never written.
type claims struct {
	known func(name string) bool // nil: all are
	key   [32]byte
}

func newClaims(known func(name string) bool) claims {
	c := claims{known: known}
	_, _ = rand.Read(c.key[:]) // which never fails
	return c
}

// veil returns ev without the user, when that is only claimed and unknown.
func (c *claims) veil(ev Event) Event {
	name := string(ev.User)
	if c.known == nil || ev.Success || name == "" || !claimed(ev) || c.known(name) {
		return ev
	}
	mac := hmac.New(sha256.New, c.key[:])
	mac.Write([]byte(name))
	ev.User = names.UserName("(unknown:" + hex.EncodeToString(mac.Sum(nil)[:4]) + ")")
	return ev
}

// claimed reports whether the user of an event that went badly is what somebody
// typed. Whom a provider named is not.
func claimed(ev Event) bool {
	switch ev.Name { //nolint:exhaustive // the others come after somebody was let in
	case UserLogin, AuthRejected, InviteUse:
		connector, _ := ev.Fields["connector"].(string)
		return connector == ""
	}
	return false
}
