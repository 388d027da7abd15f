package srv

import (
	"context"
	"net"

	"github.com/accessd/accessd/lib/fault"
)

// Dial implements [Executor].
func (l *Local) Dial(context.Context, Account, Endpoint, Admit) (net.Conn, error) {
	return nil, fault.New(fault.Unavailable, "not available on this node yet")
}

// Listen implements [Executor].
func (l *Local) Listen(context.Context, Account, Endpoint) (net.Listener, error) {
	return nil, fault.New(fault.Unavailable, "not available on this node yet")
}
