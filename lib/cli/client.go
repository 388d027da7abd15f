package cli

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

// dir returns the data directory in force.
func (e *env) dir() string {
	return cmp.Or(e.dataDir, os.Getenv("ACCESSD_DATA_DIR"), "/var/lib/accessd")
}

// admin returns a client of the authority: the one of the person at a proxy, else
// one of the admin socket in the data directory.
func (e *env) admin() *http.Client {
	if e.call != nil {
		return e.call.API
	}
	dir := e.dir()
	return rpc.Client(func(ctx context.Context) (net.Conn, error) { return dialAdmin(ctx, dir) })
}

// dialAdmin connects to the admin socket in dir.
func dialAdmin(ctx context.Context, dir string) (net.Conn, error) {
	c, err := dialSocket(ctx, dir, "admin.sock")
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "open admin socket in %q: permission denied", dir).
			WithHint("run as the user that runs accessd, or as root")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fault.New(fault.Unavailable, "no authority is running on data directory %q", dir).
			WithHint("start one with %q, or name its directory with --data-dir", "accessd start --data-dir "+dir)
	}
	return nil, fault.Wrap(fault.Unavailable, err, "open admin socket in "+dir)
}

func (e *env) users() accessdv1connect.UserServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewUserServiceClient)
}

func (e *env) factors() accessdv1connect.FactorServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewFactorServiceClient)
}

func (e *env) roles() accessdv1connect.RoleServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewRoleServiceClient)
}

func (e *env) tokens() accessdv1connect.TokenServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewTokenServiceClient)
}

func (e *env) nodes() accessdv1connect.NodeServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewNodeServiceClient)
}

func (e *env) sessions() accessdv1connect.SessionServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewSessionServiceClient)
}

func (e *env) audit() accessdv1connect.AuditServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewAuditServiceClient)
}

func (e *env) archive() accessdv1connect.ArchiveServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewArchiveServiceClient)
}

func (e *env) ca() accessdv1connect.CAServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewCAServiceClient)
}

func (e *env) rotation() accessdv1connect.RotationServiceClient {
	return rpc.Service(e.admin(), accessdv1connect.NewRotationServiceClient)
}

// writeFile puts data at path whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".accessd-*")
	if err != nil {
		return fault.New(fault.BadInput, "write %q: %w", path, err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fault.New(fault.BadInput, "write %q: %w", path, err)
	}
	return nil
}
