package events

import (
	"time"

	"github.com/accessd/accessd/lib/names"
)

// Filter selects events; every field that is set must match.
type Filter struct {
	Since   time.Time // not before
	Until   time.Time // before
	User    names.UserName
	Node    string // server or node, by name or id
	Event   string // a name, or a family such as "session.*"
	Session names.SessionID
}
