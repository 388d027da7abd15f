package srv

import (
	"context"
	"net"

	"github.com/accessd/accessd/lib/fault"
)

// dialSocket connects to the Unix socket path as the login of a.
func (l *Local) dialSocket(context.Context, Account, string, Admit) (net.Conn, error) {
	return nil, fault.New(fault.Unavailable, "not available on this node yet")
}

// listenSocket listens on the Unix socket path as acct.
func (l *Local) listenSocket(context.Context, account, string) (net.Listener, error) {
	return nil, fault.New(fault.Unavailable, "not available on this node yet")
}
