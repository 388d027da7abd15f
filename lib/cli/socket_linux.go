package cli

import (
	"context"
	"fmt"
	"net"
	"os"
)

// dialSocket connects to the unix socket name in dir. The path goes through an
// open directory, since a socket's own path may have 107 bytes only.
func dialSocket(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}
