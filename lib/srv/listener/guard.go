package listener

// Guard is what a connection owes its listener until its peer has
// authenticated: a place among the few that may be unauthenticated at a time.
// Every [Conn] is one; who wraps a connection passes the Guard on. All methods
// may be called more than once and from any goroutine.
type Guard interface {
	// KexDone tells that the key exchange has ended.
	KexDone()
	// Parked tells that a person now types. The connection leaves the places
	// of the unauthenticated for one of the few places of parked sign-ins; the
	// error, of kind [fault.Unavailable], tells that these are taken.
	Parked() error
	// Authenticated frees the connection's place: the peer has proven who it is.
	Authenticated()
	// Penalize records an offence of the peer's source; enough of them and the
	// source is refused for a while.
	Penalize(o Offence)
}

// Offence is a class of misbehaviour before authentication. The classes are
// those of OpenSSH's PerSourcePenalties.
type Offence uint8

// The offences.
const (
	OffenceNoAuth      Offence = iota + 1 // left without an attempt to authenticate
	OffenceAuthFailed                     // failed to authenticate
	OffenceInvalidUser                    // tried a user that does not exist
	OffenceGrace                          // was still unauthenticated when its time was up
	OffenceProtocol                       // sent what no honest peer sends
)

// String returns the offence's name, as metrics and logs show it.
func (o Offence) String() string {
	switch o {
	case OffenceNoAuth:
		return "no_auth"
	case OffenceAuthFailed:
		return "auth_failed"
	case OffenceInvalidUser:
		return "invalid_user"
	case OffenceGrace:
		return "grace"
	case OffenceProtocol:
		return "protocol"
	}
	return "unknown"
}
