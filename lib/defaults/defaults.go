// Package defaults holds the figures that several packages share, each with its
// unit and its reason. A figure that one package uses alone lives there.
package defaults

import "time"

// Listener.
const (
	// ListenAddr is where people, members and browsers connect.
	ListenAddr = "0.0.0.0:3022"
	// KexTimeout bounds the time from accept to the end of the key exchange.
	KexTimeout = 10 * time.Second
	// LoginTimeout bounds the time from accept to a certificate login.
	LoginTimeout = 30 * time.Second
	// SignInTimeout bounds an interactive sign-in, in which a person types.
	SignInTimeout = 5 * time.Minute
)

// Liveness of tunnels .
const (
	// KeepaliveInterval is the time between two keepalives of one connection.
	KeepaliveInterval = 15 * time.Second
	// KeepaliveMisses is how many unanswered keepalives end a connection.
	KeepaliveMisses = 3
	// PresenceTTL is how long a proxy's announcement of its tunnels lives.
	PresenceTTL = 45 * time.Second
)

// Certificates.
const (
	// UserCertTTL is the lifetime of a person's certificate unless asked otherwise.
	UserCertTTL = 12 * time.Hour
	// BotCertTTL is the lifetime of a bot's certificate unless asked otherwise.
	BotCertTTL = 10 * time.Minute
	// MaxUserCertTTL caps what may be asked for.
	MaxUserCertTTL = 30 * 24 * time.Hour
	// MemberCertTTL is the lifetime of a node's or a proxy's certificates; they
	// are renewed over the tunnel when half of it is gone.
	MemberCertTTL = 24 * time.Hour
	// ClockSkew is how far a certificate's start is set back, for peers whose
	// clock is behind.
	ClockSkew = time.Minute
	// InviteTTL is the lifetime of a one-time invite.
	InviteTTL = 24 * time.Hour
	// GatewayPortTTL is how long a node that is away keeps its gateway port.
	GatewayPortTTL = 7 * 24 * time.Hour
)

// AuthorityName is the host name that authorities' host certificates carry
// beside their own: whoever is relayed to "the authority" checks for it. No
// member can have it.
const AuthorityName = "accessd-authority"

// Shutdown.
const (
	// Grace is how long live sessions may go on after a stop was asked for.
	Grace = 10 * time.Second
)

// Version names the build; the linker sets it.
var Version = "devel" //nolint:gochecknoglobals // the linker can set only a variable
