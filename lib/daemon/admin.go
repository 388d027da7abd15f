package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

// maxAdminConns bounds administrative connections under way.
const maxAdminConns = 64

// adminSocket serves the authority's API to administrators of this machine: the
// uid of this process, and root.
type adminSocket struct {
	dir     string
	handler http.Handler
	log     *zap.Logger
}

// listen binds admin.sock in the data directory. The path goes through an open
// directory, since a socket's own path may have 107 bytes only.
func (a *adminSocket) listen() (net.Listener, error) {
	path := filepath.Join(a.dir, "admin.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.BadInput, "remove old admin socket: %w", err)
	}
	d, err := os.Open(a.dir)
	if err != nil {
		return nil, fault.New(fault.BadInput, "open data directory: %w", err)
	}
	defer d.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/admin.sock", d.Fd()), Net: "unix"})
	if err != nil {
		return nil, fault.New(fault.BadInput, "listen on admin socket %q: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // its path is gone with the directory's descriptor
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fault.New(fault.BadInput, "protect admin socket: %w", err)
	}
	return ln, nil
}

// Run serves ln until ctx ends, and closes it.
func (a *adminSocket) Run(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer os.Remove(filepath.Join(a.dir, "admin.sock"))
	var live errgroup.Group
	live.SetLimit(maxAdminConns)
	defer func() { _ = live.Wait() }() // its functions return nil
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on admin socket: %w", err)
		}
		live.Go(func() error {
			a.serve(ctx, c)
			return nil
		})
	}
}

// serve answers one connection.
func (a *adminSocket) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	uid, err := peerUID(c)
	if err != nil || (uid != 0 && uid != uint32(os.Geteuid())) {
		a.log.Warn("admin connection refused", zap.Uint32("uid", uid), zap.Error(err))
		return
	}
	if err := rpc.Serve(ctx, c, rpc.Peer{Local: true, UID: uid}, a.handler); err != nil {
		a.log.Debug("admin connection ended", zap.Error(err))
	}
}

// peerUID returns the uid of the process at the other end, as the kernel says.
func peerUID(c net.Conn) (uint32, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}
