package daemon

import (
	"cmp"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/auth"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/seal"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/store"
)

// authorityRole is the auth role of this process.
type authorityRole struct {
	auth    *auth.Authority
	keys    *auth.Keys
	handler http.Handler
}

// startAuthority opens the state, the keys and the audit log and serves the
// admin socket.
func (d *Daemon) startAuthority(ctx context.Context) error {
	e := d.cfg.Storage.Etcd
	store, err := backend.Open(ctx, backend.Config{
		Dir: d.path("cluster"), Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile,
		Prefix: e.Prefix, Log: d.log.Named("backend"),
	})
	if err != nil {
		return err
	}
	d.run.atStop(ctx, rankStore, "store", store.Close)
	sealer, err := seal.Open(ctx, d.cfg.Keys.SealURL, cmp.Or(d.cfg.Keys.File, d.path("keys", "seal.key")))
	if err != nil {
		return err
	}
	d.run.atStop(ctx, rankStore, "seal", sealer.Close)
	resources := services.NewStore(store, time.Now)
	keys, err := auth.Init(ctx, auth.InitConfig{ID: d.id, ClusterName: d.clusterName(), Store: resources, Sealer: sealer, Events: d.events})
	if err != nil {
		return err
	}
	d.cluster.Store(new(keys.ClusterName()))
	log, err := d.openLog(ctx, keys)
	if err != nil {
		return err
	}
	if err := d.startCopies(ctx, log); err != nil {
		return err
	}
	if err := d.startSinks(ctx, log); err != nil {
		return err
	}
	if d.engine, err = authz.New(authz.Config{Policy: d.cache}); err != nil {
		return err
	}
	cfg := d.authConfig(keys, resources, sealer, log)
	d.peers = &peers{cache: d.cache, trust: d.trust}
	cfg.Peers = d.peers
	if cfg.Recordings, err = d.openRecordings(ctx); err != nil {
		return err
	}
	a, err := auth.New(cfg)
	if err != nil {
		return err
	}
	d.authority = &authorityRole{auth: a, keys: keys, handler: a.Handler()}
	d.run.start(ctx, rankAuthority, "authority", a.Run)
	return d.serveAdmin(ctx)
}

// openLog opens the audit log and lets it run until nobody appends any more.
func (d *Daemon) openLog(ctx context.Context, keys *auth.Keys) (*events.Log, error) {
	log, err := events.OpenLog(ctx, events.LogConfig{
		Dir: d.path("audit"), Signer: keys.AuditSigner(), VerifierKey: keys.AuditVerifierKey(), Log: d.log.Named("audit"),
		Rotate: events.Rotation(d.cfg.Audit.Rotate), By: "authority:" + string(d.id),
		Stamp: events.Event{ClusterName: keys.ClusterName(), ServerID: string(d.id), ServerHostname: hostName()},
	})
	if err != nil {
		return nil, err
	}
	d.run.start(ctx, rankLog, "audit log", func(ctx context.Context) error {
		defer func() {
			if err := log.Close(); err != nil {
				d.log.Error("the audit log did not close cleanly", zap.Error(err))
			}
		}()
		return log.Run(ctx)
	})
	return log, nil
}

func (d *Daemon) authConfig(keys *auth.Keys, store *services.Store, sealer *seal.Sealer, log *events.Log) auth.Config {
	c := d.cfg.Auth
	return auth.Config{
		Keys: keys, Store: store, Sealer: sealer, Cache: d.cache, Engine: d.engine, Events: d.events, Audit: log, AuditDir: d.path("audit"),
		Argon2:     auth.Argon2{Time: c.Argon2.Time, MemoryKiB: c.Argon2.MemoryKiB, Threads: c.Argon2.Threads},
		MaxHashing: c.MaxHashing, UserTTL: c.UserTTL, MaxUserTTL: c.MaxUserTTL, MemberTTL: c.MemberTTL,
		PublicURL: c.PublicURL, Parked: c.Parked, ParkedPerSource: c.ParkedPerAddr, Log: d.log,
	}
}

// serveAdmin opens the admin socket.
func (d *Daemon) serveAdmin(ctx context.Context) error {
	admin := &adminSocket{dir: d.cfg.DataDir, handler: d.authority.handler, log: d.log.Named("admin")}
	ln, err := admin.listen()
	if err != nil {
		return err
	}
	d.run.start(ctx, rankAuthority, "admin socket", func(ctx context.Context) error { return admin.Run(ctx, ln) })
	return nil
}

// clusterName is the name of a new cluster: the configured one, or the host's.
func (d *Daemon) clusterName() string {
	return cmp.Or(d.cfg.ClusterName, hostName())
}

// hostName returns the host's name as a node name.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "accessd"
	}
	name = strings.ToLower(name)
	if _, err := names.ParseNodeName(name); err != nil {
		return "accessd"
	}
	return name
}

// admit gives m its certificates from the authority in this process.
func (d *Daemon) admit(ctx context.Context, m *member, kind sshca.Kind) error {
	req := auth.Self{
		Kind: kind, ID: d.id, Name: string(d.name), MemberKey: m.key.PublicKey(), HostKey: m.hostKey.PublicKey(),
		Version: defaults.Version,
	}
	if kind == sshca.KindNode {
		req.Labels = d.labels.current(ctx)
	} else {
		req.Addresses = d.publicAddresses()
	}
	a, err := d.authority.auth.AdmitSelf(ctx, req)
	if err != nil {
		return err
	}
	state := &memberState{ID: a.ID, Name: a.Name, Kind: kind, Cluster: d.authority.keys.ClusterName(), GatewayPort: a.GatewayPort}
	return m.adopt(state.renewed(a.Certificates).believing(d.authority.keys.Trust()))
}

// Admin returns a client with the rights of admin.sock, for programs that embed
// a daemon with the auth role. It is valid once [Daemon.Ready] is closed.
func (d *Daemon) Admin() *http.Client {
	return rpc.Local(d.authority.handler, rpc.Peer{Local: true, UID: uint32(os.Geteuid())})
}

// path returns a path inside the data directory.
func (d *Daemon) path(elem ...string) string {
	return filepath.Join(append([]string{d.cfg.DataDir}, elem...)...)
}

// openRecordings opens the store of recordings, and says how long they are kept.
func (d *Daemon) openRecordings(ctx context.Context) (auth.RecordingsConfig, error) {
	r := d.cfg.Recordings
	objects, err := store.Open(ctx, cmp.Or(r.Store, store.Folder(d.path("recordings"))))
	if err != nil {
		return auth.RecordingsConfig{}, err
	}
	d.run.atStop(ctx, rankStore, "recordings", objects.Close)
	cfg := auth.RecordingsConfig{
		Store: objects, Dir: d.path("recordings-index"), Retain: r.Retain, MaxSize: r.MaxSize,
		Settings:   services.RecordingSettings{Recipients: r.Recipients, MaxSession: r.MaxSession},
		Registerer: d.metrics,
	}
	if r.Mirror == "" {
		return cfg, nil
	}
	mirror, err := store.Open(ctx, r.Mirror)
	if err != nil {
		return cfg, err
	}
	d.run.atStop(ctx, rankStore, "mirror of the recordings", mirror.Close)
	cfg.Mirror, cfg.MirrorDelete = mirror, r.Erase
	return cfg, nil
}
