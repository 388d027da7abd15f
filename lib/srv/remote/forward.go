package remote

import (
	"context"
	"errors"
	"net"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv"
)

// maxReason bounds what is repeated of why the sshd refused, in bytes.
const maxReason = 200

// openError returns why the sshd did not open a channel, in its own words.
func openError(err error) (string, bool) {
	o, ok := errors.AsType[*ssh.OpenChannelError](err)
	if !ok {
		return "", false
	}
	text := o.Reason.String()
	if o.Message != "" {
		text = events.Display(o.Message[:min(len(o.Message), maxReason)])
	}
	return text, true
}

type forwards struct{}

// Dial implements [srv.Executor].
func (x *Executor) Dial(context.Context, srv.Account, srv.Endpoint, srv.Admit) (net.Conn, error) {
	return nil, fault.New(fault.Unavailable, "forwarding to sshd nodes is not built yet")
}

// Listen implements [srv.Executor].
func (x *Executor) Listen(context.Context, srv.Account, srv.Endpoint) (net.Listener, error) {
	return nil, fault.New(fault.Unavailable, "forwarding to sshd nodes is not built yet")
}
