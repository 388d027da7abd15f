package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// tickMs is etcd's tick in milliseconds. A lone member waits electionMs before
	// it elects itself, and nobody can take longer than it to answer.
	tickMs     = 10
	electionMs = 5 * tickMs // the least etcd takes

	// history is how long superseded revisions are kept; a watch that is behind
	// by more gets [ErrCompacted].
	history = "30m"

	// keepFiles is how many snapshots and how many segments of the write-ahead
	// log, 64 MB each, are kept; etcd itself needs the newest only.
	keepFiles = 2

	// defragAbove is how much space an old database must be able to give back to
	// be rewritten at start, in MB.
	defragAbove = 64

	memberName = "accessd"
	lockFile   = "lock"
	etcdDir    = "etcd"
)

// etcd keeps the changes since its last snapshot in memory, for members that are
// behind; there are none here. In changes.
const (
	snapshotEvery = 1000
	catchUp       = 100
)

// openEmbedded starts etcd in cfg.Dir.
func (b *Backend) openEmbedded(ctx context.Context, cfg Config) error {
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	etcd, err := start(cfg)
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	b.stop = func() error {
		etcd.Close()
		return lock.Close()
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case <-etcd.Server.StopNotify():
		err = fault.New(fault.Internal, "the state store in %q stopped while starting", cfg.Dir)
	case <-ctx.Done():
		err = fmt.Errorf("start the state store in %q: %w", cfg.Dir, context.Cause(ctx))
	}
	if err != nil {
		return errors.Join(err, b.stop())
	}
	b.client = v3client.New(etcd.Server)
	return nil
}

// lockDir makes dir and takes its lock, which ends with the process at the
// latest.
func lockDir(dir string) (*fileutil.LockedFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Internal, "make the state directory: %w", err)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fault.New(fault.Conflict, "another process is using the state in %q", dir).
			WithHint("stop it, or start this one with another data directory")
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "lock the state directory %q: %w", dir, err)
	}
	return lock, nil
}

// start starts etcd without any listener. etcd panics where its files are
// damaged; that becomes an error.
func start(cfg Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "the state in %q is damaged: %v", cfg.Dir, p)
		}
	}()
	ec := embed.NewConfig()
	ec.Name = memberName
	ec.Dir = filepath.Join(cfg.Dir, etcdDir)
	ec.TickMs, ec.ElectionMs = tickMs, electionMs
	ec.QuotaBackendBytes = cfg.Quota
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, history
	ec.MaxSnapFiles, ec.MaxWalFiles = keepFiles, keepFiles
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotEvery, catchUp
	ec.BootstrapDefragThresholdMegabytes = defragAbove
	ec.AuthToken = "" // nobody connects, so nobody authenticates
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quiet(cfg.Log))

	// The member's address is a name only: it listens nowhere.
	nowhere := url.URL{Scheme: "unix", Host: memberName + ":0"}
	ec.ListenPeerUrls, ec.ListenClientUrls = nil, nil
	ec.AdvertisePeerUrls, ec.AdvertiseClientUrls = []url.URL{nowhere}, []url.URL{nowhere}
	ec.InitialCluster = memberName + "=" + nowhere.String()

	if err = probe(filepath.Join(ec.Dir, "member", "snap", "db")); err == nil {
		etcd, err = embed.StartEtcd(ec)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "start the state store in %q: %w", cfg.Dir, err)
	}
	return etcd, nil
}

// probe opens the database file, if there is one, as etcd is going to: where it
// finds damage etcd panics in a goroutine of its own.
func probe(file string) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	return db.Close()
}

// quiet returns a logger for etcd: its warnings and errors, but not those that
// every start of a lone member gives, and no exit of its own from the process.
func quiet(log *zap.Logger) *zap.Logger {
	return log.Named("etcd").WithOptions(
		zap.IncreaseLevel(zapcore.WarnLevel),
		zap.WithFatalHook(zapcore.WriteThenPanic),
		zap.WrapCore(func(c zapcore.Core) zapcore.Core { return quietCore{c} }),
	)
}

// quietCore leaves out messages that mean nothing here.
type quietCore struct{ zapcore.Core }

// Check adds c to the cores that write e, unless e is noise.
func (c quietCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if isNoise(e.Message) {
		return ce
	}
	return c.Core.Check(e, ce)
}

// With keeps the filter on the child.
func (c quietCore) With(f []zapcore.Field) zapcore.Core { return quietCore{c.Core.With(f)} }

func isNoise(message string) bool {
	// A member that is alone asks again a moment later.
	if strings.Contains(message, "cannot campaign at term") {
		return true
	}
	return slices.Contains([]string{
		// There is no port at all.
		"Running http and grpc server on single port. This is not recommended for production.",
		// A new store has no version until its first snapshot.
		"Failed to detect schema version",
		"failed to update storage version",
		// While a member goes through a long log again it asks thousands of times, and
		// is not ready until it was told yes.
		"failed to publish local member to cluster through raft",
		// Closing soon after a first start cancels it; the next start does it.
		"failed to update cluster version",
	}, message)
}
