package auth

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/seal"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// InitConfig configures [Init]. Every field but Now is required.
type InitConfig struct {
	ID          names.NodeID // this authority's own
	ClusterName string       // of a new cluster, in the grammar of host names; an existing one keeps its name
	Store       *services.Store
	Sealer      *seal.Sealer
	Events      emitter

	Now func() time.Time // nil means time.Now
}

// Keys are what a cluster is: its name, its authorities, and the key with which
// this authority signs its audit log. Private keys do not leave this package.
type Keys struct {
	cfg         InitConfig // what Init was given
	cluster     services.Cluster
	authority   names.NodeID
	audit       note.Signer
	verifierKey string
	decoy       []byte // a sealed second factor that nobody has

	mu  sync.RWMutex // guards what follows
	cas map[sshca.Type]authorityKeys
}

// authorityKeys are the keys of one certificate authority, the one that signs
// first.
type authorityKeys struct {
	signer ssh.Signer // of the first
	public []ssh.PublicKey
	lines  []string // authorized_keys format

	revision int64 // of the authority in the store
}

// ClusterName returns the cluster's name.
func (k *Keys) ClusterName() string { return k.cluster.Name }

// ClusterID returns the cluster's id.
func (k *Keys) ClusterID() string { return k.cluster.ID }

// Trust returns the public keys of the cluster's authorities.
func (k *Keys) Trust() sshca.Trust {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return sshca.Trust{
		User: k.cas[sshca.TypeUser].public,
		Host: k.cas[sshca.TypeHost].public,
		Node: k.cas[sshca.TypeNode].public,
		SSHD: k.cas[sshca.TypeSSHD].public,
	}
}

// AuditSigner returns what signs the checkpoints of this authority's log.
func (k *Keys) AuditSigner() note.Signer { return k.audit }

// AuditVerifierKey returns what checks those checkpoints, in the form of C2SP
// signed-note.
func (k *Keys) AuditVerifierKey() string { return k.verifierKey }

func (k *Keys) signer(t sshca.Type) ssh.Signer {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.cas[t].signer
}

// follow makes k trust and sign with what the store has, when its keys of type t
// are not those of lines, in authorized_keys format. It unseals only what has
// changed.
func (k *Keys) follow(ctx context.Context, t sshca.Type, lines []string) error {
	k.mu.RLock()
	same := slices.Equal(k.cas[t].lines, lines)
	k.mu.RUnlock()
	if same {
		return nil
	}
	ca, err := k.cfg.Store.CA(ctx, t)
	if err != nil {
		return err
	}
	opened, err := k.cfg.openCA(ctx, ca)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if opened.revision > k.cas[t].revision { // else somebody was faster
		k.cas[t] = opened
	}
	return nil
}

// caTypes are the cluster's certificate authorities.
func caTypes() []sshca.Type {
	return []sshca.Type{sshca.TypeUser, sshca.TypeHost, sshca.TypeNode, sshca.TypeSSHD}
}

// Init makes what a new cluster needs and returns the keys of a new or an old
// one. Of several authorities that start at once each thing is made by one, and
// all return the same; only the audit key is each authority's own. A sealer
// with the wrong key is an error, and nothing is changed.
func Init(ctx context.Context, cfg InitConfig) (*Keys, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if _, err := names.ParseNodeName(cfg.ClusterName); err != nil {
		return nil, fault.New(fault.BadInput, "cluster name: %w", err)
	}
	if _, err := names.ParseNodeID(string(cfg.ID)); err != nil {
		return nil, err
	}
	k := &Keys{authority: cfg.ID, cas: map[sshca.Type]authorityKeys{}}
	var err error
	if k.cluster, err = cfg.initCluster(ctx); err != nil {
		return nil, err
	}
	cfg.ClusterName = k.cluster.Name
	k.cfg = cfg
	for _, t := range caTypes() {
		if k.cas[t], err = cfg.initCA(ctx, t); err != nil {
			return nil, err
		}
	}
	if err := cfg.initAudit(ctx, k); err != nil {
		return nil, err
	}
	if k.decoy, err = cfg.Sealer.Seal(ctx, totpPurpose(""), newTOTPKey()); err != nil {
		return nil, err
	}
	return k, cfg.initRoles(ctx)
}

// once returns what load returns, and creates it first when load finds nothing.
// When another process was faster its result counts.
func once[T any](load func() (T, error), create func() error) (T, error) {
	v, err := load()
	if !fault.Is(err, fault.NotFound) {
		return v, err
	}
	if err := create(); err != nil && !fault.Is(err, fault.Conflict) {
		return v, err
	}
	return load()
}

func (cfg InitConfig) initCluster(ctx context.Context) (services.Cluster, error) {
	return once(
		func() (services.Cluster, error) { return cfg.Store.Cluster(ctx) },
		func() error {
			return cfg.Store.CreateCluster(ctx, services.Cluster{Name: cfg.ClusterName, ID: string(names.NewNodeID()), Created: cfg.Now().UTC()})
		})
}

// record writes an event of the first start, before what it is about is done,
// and one that takes it back when it was not.
func (cfg InitConfig) record(ctx context.Context, ev events.Event, effect func() error) error {
	ev.ClusterName, ev.Success = cfg.ClusterName, true
	ev.Fields["by"], ev.Fields["reason"] = "authority:"+string(cfg.ID), "first start"
	if err := cfg.Events.Emit(ctx, ev); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written")
	}
	err := effect()
	if err != nil {
		if again := cfg.Events.Emit(ctx, failed(ev, err)); again != nil {
			return fault.Wrap(fault.Unavailable, again, "the audit log cannot be written")
		}
	}
	return err
}

func (cfg InitConfig) initCA(ctx context.Context, t sshca.Type) (authorityKeys, error) {
	ca, err := once(
		func() (services.CA, error) { return cfg.Store.CA(ctx, t) },
		func() error { return cfg.createCA(ctx, t) })
	if err != nil {
		return authorityKeys{}, err
	}
	return cfg.openCA(ctx, ca)
}

func (cfg InitConfig) createCA(ctx context.Context, t sshca.Type) error {
	key, err := cfg.newKey(ctx, t)
	if err != nil {
		return err
	}
	ca := services.CA{Type: t, Keys: []services.CAKey{key}}
	ev := events.Event{Name: events.CACreate, Fields: map[string]any{"ca_type": string(t), "fingerprint": key.Fingerprint()}}
	return cfg.record(ctx, ev, func() error { return cfg.Store.CreateCA(ctx, ca) })
}

// newKey makes a key for an authority of type t.
func (cfg InitConfig) newKey(ctx context.Context, t sshca.Type) (services.CAKey, error) {
	private, signer := sshca.Generate()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return services.CAKey{}, fault.Wrap(fault.Internal, err, "encode a CA key")
	}
	sealed, err := cfg.Sealer.Seal(ctx, caPurpose(t), der)
	if err != nil {
		return services.CAKey{}, err
	}
	return services.CAKey{Public: keyLine(signer.PublicKey()), Sealed: sealed, Created: cfg.Now().UTC()}, nil
}

// openCA unseals the key of ca that signs and reads the public half of all. A
// private key that does not belong to its public half is refused.
func (cfg InitConfig) openCA(ctx context.Context, ca services.CA) (authorityKeys, error) {
	out := authorityKeys{revision: ca.Revision}
	for _, k := range ca.Keys {
		pub, err := parseKeyLine(k.Public)
		if err != nil {
			return out, fault.New(fault.Internal, "%s CA: %w", ca.Type, err)
		}
		out.public, out.lines = append(out.public, pub), append(out.lines, k.Public)
	}
	if len(out.public) == 0 {
		return out, fault.New(fault.Internal, "%s CA: it has no key", ca.Type)
	}
	der, err := cfg.unseal(ctx, caPurpose(ca.Type), ca.Keys[0].Sealed)
	if err != nil {
		return out, err
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return out, fault.Wrap(fault.Internal, err, "the private key of the "+string(ca.Type)+" CA is malformed")
	}
	if out.signer, err = ssh.NewSignerFromKey(private); err != nil {
		return out, fault.Wrap(fault.Internal, err, "the private key of the "+string(ca.Type)+" CA is of an unknown kind")
	}
	if keyLine(out.signer.PublicKey()) != ca.Keys[0].Public {
		return out, fault.New(fault.Internal, "%s CA: the private key is not that of the public one", ca.Type)
	}
	return out, nil
}

func (cfg InitConfig) unseal(ctx context.Context, purpose string, sealed []byte) ([]byte, error) {
	plain, err := cfg.Sealer.Unseal(ctx, purpose, sealed)
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "the cluster's keys cannot be unsealed: %w", err).
			WithHint("start with the seal key this cluster was made with (keys.file or keys.seal_url)")
	}
	return plain, nil
}

// auditOrigin names this authority's log (https://c2sp.org/tlog-checkpoint).
func (cfg InitConfig) auditOrigin() string { return cfg.ClusterName + "/audit/" + string(cfg.ID) }

// initAudit gives k this authority's audit key. All authorities' keys are in
// one record, so that whoever verifies a log finds them in one place.
func (cfg InitConfig) initAudit(ctx context.Context, k *Keys) error {
	key, err := once(
		func() (services.CAKey, error) { return cfg.auditKey(ctx) },
		func() error { return cfg.createAuditKey(ctx) })
	if err != nil {
		return err
	}
	private, err := cfg.unseal(ctx, cfg.auditPurpose(), key.Sealed)
	if err != nil {
		return err
	}
	if k.audit, err = note.NewSigner(string(private)); err != nil {
		return fault.Wrap(fault.Internal, err, "the audit key is malformed")
	}
	k.verifierKey = key.Public
	return nil
}

func (cfg InitConfig) auditKey(ctx context.Context) (services.CAKey, error) {
	ca, err := cfg.Store.CA(ctx, services.AuditCA)
	if err != nil {
		return services.CAKey{}, err
	}
	for _, k := range ca.Keys {
		if strings.HasPrefix(k.Public, cfg.auditOrigin()+"+") {
			return k, nil
		}
	}
	return services.CAKey{}, fault.New(fault.NotFound, "authority %s has no audit key yet", cfg.ID)
}

// createAuditKey adds a key for this authority. When another authority changes
// the record meanwhile it tries again.
func (cfg InitConfig) createAuditKey(ctx context.Context) error {
	private, public, err := events.NewAuditKey(cfg.auditOrigin())
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make an audit key")
	}
	sealed, err := cfg.Sealer.Seal(ctx, cfg.auditPurpose(), []byte(private))
	if err != nil {
		return err
	}
	key := services.CAKey{Public: public, Sealed: sealed, Created: cfg.Now().UTC()}
	ev := events.Event{Name: events.CACreate, Fields: map[string]any{"ca_type": string(services.AuditCA), "fingerprint": public}}
	return cfg.record(ctx, ev, func() error {
		return retryConflict(func() error {
			ca, err := cfg.Store.CA(ctx, services.AuditCA)
			if fault.Is(err, fault.NotFound) {
				return cfg.Store.CreateCA(ctx, services.CA{Type: services.AuditCA, Keys: []services.CAKey{key}})
			}
			if err != nil {
				return err
			}
			ca.Keys = append([]services.CAKey{key}, ca.Keys...)
			_, err = cfg.Store.UpdateCA(ctx, ca)
			return err
		})
	})
}

func (cfg InitConfig) auditPurpose() string { return "audit/" + string(cfg.ID) }

func caPurpose(t sshca.Type) string { return "ca/" + string(t) }

// initRoles makes the built-in roles that are not there yet.
func (cfg InitConfig) initRoles(ctx context.Context) error {
	for _, role := range services.BuiltinRoles() {
		_, err := once(
			func() (services.Role, error) { return cfg.Store.Role(ctx, role.Name) },
			func() error {
				ev := events.Event{Name: events.RoleCreate, Fields: map[string]any{"name": string(role.Name), "after": string(role.YAML())}}
				return cfg.record(ctx, ev, func() error { return cfg.Store.ApplyRoles(ctx, []services.Role{role}) })
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxConflicts bounds how often a change is tried again because somebody else
// changed the same thing.
const maxConflicts = 8

// retryConflict calls change, which reads and writes, until it meets nobody
// else's change.
func retryConflict(change func() error) error {
	for i := 1; ; i++ {
		err := change()
		if i == maxConflicts || !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}
