//go:build !linux

package cli

import (
	"context"
	"net"
	"path/filepath"
)

// dialSocket connects to the unix socket name in dir.
func dialSocket(ctx context.Context, dir, name string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, name))
}
