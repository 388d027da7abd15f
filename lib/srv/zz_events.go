package srv

import "github.com/accessd/accessd/lib/events"

const (
	eventPort  events.Name = "port"
	eventJoin  events.Name = "session.join"
	eventLeave events.Name = "session.leave"
)
