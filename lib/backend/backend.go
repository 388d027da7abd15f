// Package backend keeps a cluster's state in etcd: one that is embedded in the
// process, or an external cluster. Both are reached through the same client, so
// there is one code path, and backendtest runs one suite on both.
//
// State is a flat map from keys to small values (1.4 MB at most). A key is a
// path such as "role/admin", without a leading slash; [Config.Prefix] goes before
// all of them. Every change has a revision, and revisions of the whole store
// increase: [Backend.CompareAndSwap] and [Txn] make a change only if what it was
// based on still holds, and [Backend.Watch] tells every change after a revision.
// A lease ends the keys that were put with it unless somebody keeps it alive.
//
// # Promises
//
// What a function reported as done is on disk (fsynced by etcd) and survives a
// kill of the process. A function that fails with [fault.Unavailable] may have
// done its work or not; reading tells. Errors are [fault.NotFound] and
// [fault.Conflict] where the documentation says so, [fault.Unavailable] when the
// store does not answer within [Config.Timeout], and the caller's own
// cancellation.
//
// # The embedded etcd
//
// It listens nowhere: no TCP port, no socket. Its directory belongs to one
// process at a time, which a file lock holds; another gets [fault.Conflict]. It
// keeps half an hour of history and [Config.Quota] bytes. When its disk is full
// it ends the process, since it cannot tell any more what is acknowledged.
//
// # An external etcd
//
// Connections use TLS, with a client certificate when there is one; plain HTTP
// is for this machine only. Its operator sets quota, history and backups. What
// it stores is public or sealed or hashed, but whoever can write to it rules the
// cluster.
package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// defaultPrefix goes before every key.
	defaultPrefix = "/accessd"
	// defaultTimeout bounds one operation. etcd elects a new leader within a
	// second or two and answers in milliseconds otherwise.
	defaultTimeout = 5 * time.Second
	// defaultQuota bounds the embedded database, in bytes: 10,000 nodes and users
	// with their history take well under a tenth of it.
	defaultQuota = 2 << 30
	// maxTxnOps is how many conditions or changes one transaction takes; etcd's
	// default, which an external one has too.
	maxTxnOps = 128
	// maxTxnBytes bounds the keys and values of one transaction; etcd refuses
	// requests of 1.5 MiB, with what it adds.
	maxTxnBytes = 1400 << 10
)

// Config configures a [Backend].
type Config struct {
	Dir   string // directory of the embedded etcd; required without Endpoints
	Quota int64  // bytes the embedded database may take; 0 means 2 GiB

	Endpoints []string // "https://host:2379" of an external etcd's members
	CAFile    string   // PEM file of the CA of their certificates; "" means the system's
	CertFile  string   // PEM file of our client certificate; "" means none
	KeyFile   string   // PEM file of its key

	Prefix  string        // before every key; "" means "/accessd"
	Timeout time.Duration // of one operation; 0 means 5 s
	Log     *zap.Logger   // nil discards
}

// Backend is a connection to etcd. It is safe for concurrent use.
type Backend struct {
	client  *clientv3.Client
	prefix  string // ends in "/"
	timeout time.Duration
	stop    func() error // ends what the connection stands on
}

// Open opens the store: the embedded one in cfg.Dir, which it makes, or the
// external one at cfg.Endpoints. It returns once the store answers. A directory
// that another process has open is a [fault.Conflict].
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b := &Backend{prefix: cfg.Prefix + "/", timeout: cfg.Timeout}
	open := b.openExternal
	if len(cfg.Endpoints) == 0 {
		open = b.openEmbedded
	}
	if err := open(ctx, cfg); err != nil {
		return nil, err
	}
	if _, err := b.Get(ctx, "probe"); err != nil && !fault.Is(err, fault.NotFound) {
		return nil, errors.Join(fmt.Errorf("open the state store: %w", err), b.Close())
	}
	return b, nil
}

// check refuses what cannot work and fills in defaults.
func (cfg *Config) check() error {
	if len(cfg.Endpoints) == 0 && cfg.Dir == "" {
		return fault.New(fault.BadInput, "state store: want a directory or endpoints")
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return fault.New(fault.BadInput, "state store: a client certificate and its key come together")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	cfg.Prefix = strings.TrimRight(cfg.Prefix, "/")
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Quota == 0 {
		cfg.Quota = defaultQuota
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return nil
}

// Close ends the connection and the embedded etcd. Watches end with it.
func (b *Backend) Close() error {
	err := b.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // an in-process client has no connection of which to say more
	}
	return errors.Join(err, b.stop())
}

// limit returns ctx with the time one operation has.
func (b *Backend) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, b.timeout)
}

// classify returns err, which an operation under ctx met while doing act, with
// its kind.
func classify(ctx context.Context, act string, err error) error {
	err = fmt.Errorf("%s: %w", act, err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: %w", act, context.Cause(ctx))
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return fault.Wrap(fault.NotFound, err, "the lease is gone")
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.Wrap(fault.Unavailable, err, "the state store is full").WithHint("raise its quota, or compact and defragment it")
	}
	return fault.Wrap(fault.Unavailable, err, "the state store is away")
}
