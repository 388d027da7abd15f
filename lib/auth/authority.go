package auth

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/seal"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// emitter records events; *events.Emitter is one.
type emitter interface {
	// Emit returns once the event is durable.
	Emit(ctx context.Context, ev events.Event) error
	// Flush waits until the log has all that was emitted before.
	Flush(ctx context.Context) error
}

// auditLog is the transparency log of this authority; *events.Log is one.
type auditLog interface {
	Append(ctx context.Context, events [][]byte) error
	Query(ctx context.Context, f events.Filter, limit int, before string) (events.Page, error)
	Read(ctx context.Context, f events.Filter, limit int, after string) (events.Page, error)
	Grown(ctx context.Context, after string) error
	Prove(ctx context.Context, uid string) ([]byte, error)
	Rotate(ctx context.Context, by, reason string) (verifierKey string, err error)
	Archive(ctx context.Context, a events.Archiving) (events.Archived, error)
	Held(ctx context.Context, events [][]byte, before string) ([]bool, error)
	VerifierKeys() []string
	VerifyIndex(ctx context.Context) error
}

// Config configures an [Authority]. The fields up to Audit are required.
type Config struct {
	Keys   *Keys           // from Init, on the same store
	Store  *services.Store // the cluster's state
	Sealer *seal.Sealer    // seals second factors
	Cache  *services.Cache // Run feeds it
	Engine *authz.Engine   // decides about people who administer; reads Cache
	Events emitter         // this process's own events
	Audit  auditLog        // the log that members' events go to

	AuditDir string // Audit's files, for VerifyLog
	Peers    peers  // the way to other authorities; nil means none

	Recordings RecordingsConfig // required

	Argon2          Argon2        // cost of a password hash
	MaxHashing      int           // passwords hashed at once; 0 means 2
	PublicURL       string        // https://HOST[:PORT] where browsers find the proxies; "" means the proxy's own address
	UserTTL         time.Duration // a person's certificate; 0 means defaults.UserCertTTL
	MaxUserTTL      time.Duration // the longest one; 0 means defaults.MaxUserCertTTL
	MemberTTL       time.Duration // a member's certificates; 0 means defaults.MemberCertTTL
	Parked          int           // sign-ins under way; 0 means 1000
	ParkedPerSource int           // of these, per source address; 0 means 10

	Now func() time.Time // nil means time.Now
	Log *zap.Logger      // nil discards
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.UserTTL, defaults.UserCertTTL},
		{&c.MaxUserTTL, defaults.MaxUserCertTTL},
		{&c.MemberTTL, defaults.MemberCertTTL},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *int
		value int
	}{{&c.MaxHashing, 2}, {&c.Parked, 1000}, {&c.ParkedPerSource, 10}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	c.Argon2 = c.Argon2.withDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	c.Log = c.Log.Named("auth")
	if c.Peers == nil {
		c.Peers = noPeers{}
	}
	return c
}

func (c Config) check() error {
	if c.Keys == nil || c.Store == nil || c.Sealer == nil || c.Cache == nil || c.Engine == nil || c.Events == nil || c.Audit == nil {
		return fault.New(fault.Internal, "authority: keys, store, sealer, cache, engine, events and audit log are required")
	}
	if c.UserTTL < 0 || c.MemberTTL < 0 || c.MaxUserTTL < c.UserTTL {
		return fault.New(fault.BadInput, "certificate lifetimes: want user %v of at most %v, member %v above zero", c.UserTTL, c.MaxUserTTL, c.MemberTTL)
	}
	if c.MaxHashing < 0 || c.Parked < 0 || c.ParkedPerSource < 0 {
		return fault.New(fault.BadInput, "sign-in limits: negative")
	}
	if err := c.Recordings.check(); err != nil {
		return err
	}
	return c.Argon2.check()
}

// An Authority answers for one cluster; several may, on one store.
type Authority struct {
	cfg Config // checked, with defaults

	access  map[string]rule            // by procedure
	writers map[events.Name]sshca.Kind // who may write which event
	hasher  *hasher
	backoff *backoff
	codes   *backoff // of second factors for connections
	lobby   *lobby
	grants  *grants
	links   *factorLinks
	feed    *feed
	archive *archive

	providers *providers

	tokens    *tokenStreams
	tokenBeat time.Duration

	deadlines chan struct{} // holds a token when there may be a nearer end of an access request
}

// New returns an authority that answers but does none of its own work yet; see
// [Authority.Run].
func New(cfg Config) (*Authority, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	a := &Authority{
		cfg:     cfg,
		access:  accessTable(),
		writers: writers(),
		hasher:  newHasher(cfg.Argon2, cfg.MaxHashing),
		backoff: newBackoff("sign-in", cfg.Store, cfg.Now, cfg.Log),
		codes:   newBackoff("code", cfg.Store, cfg.Now, cfg.Log),
		lobby:   newLobby(cfg.Now, cfg.Parked, cfg.ParkedPerSource),
		grants:  newGrants(cfg.Now, cfg.Parked),
		links:   newFactorLinks(cfg.Now),
		feed:    newFeed(),

		providers: newProviders(cfg.Now),

		tokens: newTokenStreams(), tokenBeat: tokenBeat,
	}
	a.deadlines = make(chan struct{}, 1)
	var err error
	a.archive, err = newArchive(a)
	return a, err
}

// Handler returns the handler of every service, for connections whose peer
// package rpc has put into the context.
func (a *Authority) Handler() http.Handler {
	opts := append(rpc.ServerOptions(a.cfg.Log), connect.WithInterceptors(gatekeeper{a}))
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewUserServiceHandler(userService{a}, opts...))
	mux.Handle(accessdv1connect.NewRoleServiceHandler(roleService{a}, opts...))
	mux.Handle(accessdv1connect.NewBotServiceHandler(botService{a}, opts...))
	mux.Handle(accessdv1connect.NewBotSignInServiceHandler(botSignInService{a}, opts...))
	mux.Handle(accessdv1connect.NewPolicyServiceHandler(policyService{a}, opts...))
	mux.Handle(accessdv1connect.NewWatchServiceHandler(watchService{a}, opts...))
	mux.Handle(accessdv1connect.NewTokenServiceHandler(tokenService{a}, opts...))
	mux.Handle(accessdv1connect.NewNodeServiceHandler(nodeService{a}, opts...))
	mux.Handle(accessdv1connect.NewSessionServiceHandler(sessionService{a}, opts...))
	mux.Handle(accessdv1connect.NewRequestServiceHandler(requestService{a}, opts...))
	mux.Handle(accessdv1connect.NewLockServiceHandler(lockService{a}, opts...))
	mux.Handle(accessdv1connect.NewAuditServiceHandler(auditService{a}, opts...))
	mux.Handle(accessdv1connect.NewPeerServiceHandler(peerService{a}, opts...))
	mux.Handle(accessdv1connect.NewCAServiceHandler(caService{a}, opts...))
	mux.Handle(accessdv1connect.NewRotationServiceHandler(rotationService{a}, opts...))
	mux.Handle(accessdv1connect.NewJoinServiceHandler(joinService{a}, opts...))
	mux.Handle(accessdv1connect.NewMemberServiceHandler(memberService{a}, opts...))
	mux.Handle(accessdv1connect.NewLoginServiceHandler(loginService{a}, opts...))
	mux.Handle(accessdv1connect.NewFactorServiceHandler(factorService{a}, opts...))
	mux.Handle(accessdv1connect.NewGrantServiceHandler(grantService{a}, opts...))
	mux.Handle(accessdv1connect.NewDelegationServiceHandler(delegationService{a}, opts...))
	mux.Handle(accessdv1connect.NewRecordingServiceHandler(recordingService{a}, opts...))
	mux.Handle(accessdv1connect.NewArchiveServiceHandler(archiveService{a}, opts...))
	mux.Handle(accessdv1connect.NewConnectorServiceHandler(connectorService{a}, opts...))
	mux.Handle(accessdv1connect.NewSignOnServiceHandler(signOnService{a}, opts...))
	mux.Handle(accessdv1connect.NewAPITokenServiceHandler(apiTokenService{a}, opts...))
	all := http.NewServeMux()
	all.Handle("/", mux)
	all.Handle(rpc.TokenPrefix+"/", rpc.Bearers(mux))
	return all
}

// sweepInterval is how often Run forgets sign-ins that nobody goes on with.
const sweepInterval = time.Minute

// Run keeps the cache and every member's policy stream fed from the store, and
// forgets sign-ins and grants that have expired, and looks after recordings, until
// ctx ends, and ends access requests whose time is over and streams whose API token
// has gone. What recorders are told is in the policy from the beginning.
func (a *Authority) Run(ctx context.Context) error {
	if err := a.putSettings(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.cfg.Cache.Run(ctx, a.source) })
	g.Go(func() error { return a.sweep(ctx) })
	g.Go(func() error { return a.archive.run(ctx) })
	g.Go(func() error { return a.keepRequests(ctx) })
	g.Go(func() error { return a.followTokens(ctx) })
	return g.Wait()
}

// source is the store's policy for the cache, with the feed listening in.
func (a *Authority) source(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error {
	var beating sync.WaitGroup
	defer beating.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beating.Go(func() { a.beat(ctx, fn) })
	return a.cfg.Store.Watch(ctx, nil, func(u *accessdv1.PolicyUpdate) error {
		a.followKeys(ctx, u)
		if err := fn(u); err != nil {
			return err
		}
		a.feed.apply(u)
		return nil
	})
}

// beat says that there is nothing new, as often as everybody wants to hear so and
// as long as the store answers: an authority that has lost it knows nothing of what
// others have locked.
func (a *Authority) beat(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) {
	tick := time.NewTicker(services.PolicyBeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := a.cfg.Store.Cluster(ctx); err != nil {
			a.cfg.Log.Warn("the state store does not answer", zap.Error(err))
			continue
		}
		nothing := &accessdv1.PolicyUpdate{}
		if err := fn(nothing); err == nil {
			a.feed.apply(nothing)
		}
	}
}

func (a *Authority) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.refreshKeys(ctx)
			a.lobby.sweep()
			a.grants.sweep()
			a.links.sweep()
		}
	}
}
