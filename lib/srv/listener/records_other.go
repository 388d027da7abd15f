//go:build !unix

package listener

import (
	"errors"
	"net"
	"syscall"
)

// rawOf returns nil: here TLS reads the socket by itself.
func rawOf(net.Conn) syscall.RawConn { return nil }

func (r *records) fill() error { return errors.ErrUnsupported }
