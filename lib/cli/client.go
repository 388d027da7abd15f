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
	return accessdv1connect.NewUserServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) factors() accessdv1connect.FactorServiceClient {
	return accessdv1connect.NewFactorServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) roles() accessdv1connect.RoleServiceClient {
	return accessdv1connect.NewRoleServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) tokens() accessdv1connect.TokenServiceClient {
	return accessdv1connect.NewTokenServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) nodes() accessdv1connect.NodeServiceClient {
	return accessdv1connect.NewNodeServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) sessions() accessdv1connect.SessionServiceClient {
	return accessdv1connect.NewSessionServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) audit() accessdv1connect.AuditServiceClient {
	return accessdv1connect.NewAuditServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) archive() accessdv1connect.ArchiveServiceClient {
	return accessdv1connect.NewArchiveServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) ca() accessdv1connect.CAServiceClient {
	return accessdv1connect.NewCAServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
}

func (e *env) rotation() accessdv1connect.RotationServiceClient {
	return accessdv1connect.NewRotationServiceClient(e.admin(), rpc.BaseURL, rpc.ClientOptions()...)
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
