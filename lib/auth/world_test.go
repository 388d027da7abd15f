package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/seal"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/store"
)

// A recorder is an emitter that remembers, and that fails when told to.
type recorder struct {
	emitter

	mu     sync.Mutex
	list   []events.Event
	refuse func(events.Event) error
}

func (r *recorder) Emit(ctx context.Context, ev events.Event) error {
	r.mu.Lock()
	refuse := r.refuse
	r.mu.Unlock()
	if refuse != nil {
		if err := refuse(ev); err != nil {
			return err
		}
	}
	err := r.emitter.Emit(ctx, ev)
	if err == nil {
		r.mu.Lock()
		r.list = append(r.list, ev)
		r.mu.Unlock()
	}
	return err
}

// break makes every event of these names fail; none repairs it.
func (r *recorder) breakFor(list ...events.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = func(ev events.Event) error {
		if slices.Contains(list, ev.Name) {
			return errors.New("no space left on device")
		}
		return nil
	}
}

// take returns what was recorded since the last call.
func (r *recorder) take() []events.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

// named returns those of list with this name.
func named(list []events.Event, name events.Name) []events.Event {
	return slices.DeleteFunc(slices.Clone(list), func(ev events.Event) bool { return ev.Name != name })
}

// A world is an authority on a store of its own.
type world struct {
	*Authority
	t      testing.TB
	dir    string
	clock  *clock
	back   *backend.Backend
	rec    *recorder
	log    *events.Log
	policy *services.Cache
	stop   func() // ends what runs and closes what is open
}

// A plan says how a world differs from the usual.
type plan struct {
	dir     string           // "": a fresh one
	backend *backend.Backend // nil: one embedded in dir
	id      names.NodeID     // "": a fresh one
	sealKey string           // "": one in dir
	change  func(*Config)
}

// newWorld starts an authority that ends with the test.
func newWorld(t testing.TB, p plan) *world {
	t.Helper()
	w, err := openWorld(t, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	return w
}

func openWorld(t testing.TB, p plan) (*world, error) {
	t.Helper()
	if p.dir == "" {
		p.dir = t.TempDir()
	}
	if p.id == "" {
		p.id = names.NewNodeID()
	}
	if p.sealKey == "" {
		p.sealKey = filepath.Join(p.dir, "seal.key")
	}
	w := &world{t: t, dir: p.dir, clock: newClock(), back: p.backend, policy: services.NewCache()}
	ctx, cancel := context.WithCancel(context.Background())
	var closers []func() error
	var wg sync.WaitGroup
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for _, c := range slices.Backward(closers) {
			if err := c(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	fail := func(err error) (*world, error) {
		w.stop()
		return nil, err
	}
	var err error
	if w.back == nil {
		if w.back, err = backend.Open(ctx, backend.Config{Dir: filepath.Join(p.dir, "state")}); err != nil {
			return fail(err)
		}
		closers = append(closers, w.back.Close)
	}
	sealer, err := seal.Open(ctx, "", p.sealKey)
	if err != nil {
		return fail(err)
	}
	spool, err := events.NewEmitter(events.EmitterConfig{
		Dir: filepath.Join(p.dir, "spool-"+string(p.id)), Cluster: func() string { return "example" },
		ServerID: string(p.id), ServerHostname: "auth-1", Now: w.clock.Now,
	})
	if err != nil {
		return fail(err)
	}
	closers = append(closers, spool.Close)
	w.rec = &recorder{emitter: spool}
	objects, err := store.Open(ctx, store.Folder(filepath.Join(p.dir, "recordings")))
	if err != nil {
		return fail(err)
	}
	closers = append(closers, objects.Close)
	store := services.NewStore(w.back, w.clock.Now)
	keys, err := Init(ctx, InitConfig{ID: p.id, ClusterName: "example", Store: store, Sealer: sealer, Events: w.rec, Now: w.clock.Now})
	if err != nil {
		return fail(err)
	}
	auditDir := filepath.Join(p.dir, "audit-"+string(p.id))
	if w.log, err = events.OpenLog(ctx, events.LogConfig{Dir: auditDir, Signer: keys.AuditSigner(), VerifierKey: keys.AuditVerifierKey()}); err != nil {
		return fail(err)
	}
	closers = append(closers, w.log.Close)
	engine, err := authz.New(authz.Config{Policy: w.policy})
	if err != nil {
		return fail(err)
	}
	cfg := Config{
		Keys: keys, Store: store, Sealer: sealer, Cache: w.policy, Engine: engine, Events: w.rec, Audit: w.log, AuditDir: auditDir,
		Argon2: cheap, Now: w.clock.Now, Recordings: RecordingsConfig{Store: objects, Dir: filepath.Join(p.dir, "lines-"+string(p.id))},
	}
	if p.change != nil {
		p.change(&cfg)
	}
	if w.Authority, err = New(cfg); err != nil {
		return fail(err)
	}
	for _, run := range []func(context.Context) error{
		w.Run, w.log.Run, func(ctx context.Context) error { return spool.Run(ctx, w.log.Append) },
	} {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	<-w.policy.Synced()
	return w, nil
}

// clients calls the authority as one peer.
type clients struct {
	accessdv1connect.UserServiceClient
	accessdv1connect.RoleServiceClient
	accessdv1connect.TokenServiceClient
	accessdv1connect.NodeServiceClient
	accessdv1connect.SessionServiceClient
	accessdv1connect.AuditServiceClient
	accessdv1connect.CAServiceClient
	accessdv1connect.JoinServiceClient
	accessdv1connect.MemberServiceClient
	accessdv1connect.LoginServiceClient
	accessdv1connect.GrantServiceClient
	accessdv1connect.DelegationServiceClient
	accessdv1connect.RecordingServiceClient
	accessdv1connect.ArchiveServiceClient
}

func (w *world) as(p rpc.Peer) clients {
	h, o := rpc.Local(w.Handler(), p), rpc.ClientOptions()
	return clients{
		accessdv1connect.NewUserServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewRoleServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewTokenServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewNodeServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewSessionServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewAuditServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewCAServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewJoinServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewMemberServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewLoginServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewGrantServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewDelegationServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewRecordingServiceClient(h, rpc.BaseURL, o...),
		accessdv1connect.NewArchiveServiceClient(h, rpc.BaseURL, o...),
	}
}

func (w *world) admin() clients { return w.as(rpc.Peer{Local: true}) }

// call makes a unary call with a message and returns the answer's.
func call[Q, R any](t testing.TB, f func(context.Context, *connect.Request[Q]) (*connect.Response[R], error), msg *Q) (*R, error) {
	t.Helper()
	res, err := f(t.Context(), connect.NewRequest(msg))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// must is call for calls that have to succeed.
func must[Q, R any](t testing.TB, f func(context.Context, *connect.Request[Q]) (*connect.Response[R], error), msg *Q) *R {
	t.Helper()
	res, err := call(t, f, msg)
	if err != nil {
		t.Fatalf("%T: %v (hint %q)", msg, err, fault.Hint(err))
	}
	return res
}

// wantFault fails the test unless err is of kind k with this public text.
func wantFault(t testing.TB, err error, k fault.Kind, public string) {
	t.Helper()
	if !fault.Is(err, k) || fault.Public(err) != public {
		t.Errorf("error = %v (%v), want %v %q", err, fault.KindOf(err), k, public)
	}
}

// A member is a node or a proxy that joined, with its keys.
type member struct {
	clients
	id       names.NodeID
	name     string
	kind     sshca.Kind
	key      ssh.Signer
	host     ssh.Signer
	identity *sshca.Identity
	joined   *accessdv1.JoinResponse
}

func (w *world) token(req *accessdv1.AddTokenRequest) string {
	w.t.Helper()
	return must(w.t, w.admin().AddToken, req).GetSecret()
}

var clientAddr = netip.MustParseAddrPort("203.0.113.7:50122")

func (w *world) joiner(key ssh.Signer) clients {
	return w.as(rpc.Peer{Joiner: key.PublicKey(), Addr: clientAddr})
}

// newMember returns somebody who has not joined yet.
func newMember(kind sshca.Kind, name string) *member {
	_, key := sshca.Generate()
	_, host := sshca.Generate()
	return &member{kind: kind, name: name, key: key, host: host}
}

func (m *member) request(token string) *accessdv1.JoinRequest {
	return &accessdv1.JoinRequest{
		Token: token, Role: string(m.kind), Name: m.name, Id: string(m.id),
		HostPublicKey: keyLine(m.host.PublicKey()), Version: "v1.0.0",
	}
}

// join admits a new node or proxy.
func (w *world) join(kind sshca.Kind, name string) *member {
	w.t.Helper()
	m := newMember(kind, name)
	token := w.token(&accessdv1.AddTokenRequest{Role: string(kind)})
	w.admitted(m, must(w.t, w.joiner(m.key).Join, m.request(token)))
	return m
}

// admitted makes m what res says it is.
func (w *world) admitted(m *member, res *accessdv1.JoinResponse) {
	w.t.Helper()
	m.joined, m.id = res, names.NodeID(res.GetId())
	m.identity = w.identify(res.GetCertificates().GetMember(), m.name)
	m.clients = w.as(rpc.Peer{Identity: m.identity, Addr: clientAddr})
}

func parseCert(t testing.TB, line string) *ssh.Certificate {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatalf("certificate %q: %v", line, err)
	}
	c, ok := key.(*ssh.Certificate)
	if !ok {
		t.Fatalf("%q is not a certificate", line)
	}
	return c
}

func (w *world) identify(line, name string) *sshca.Identity {
	w.t.Helper()
	id, err := w.cfg.Keys.Trust().CheckMember(parseCert(w.t, line), sshca.Peer{SSHUser: name, Now: w.clock.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// person returns the identity of a signed certificate for a new key of user.
func (w *world) person(user string) *sshca.Identity {
	w.t.Helper()
	_, key := sshca.Generate()
	res := must(w.t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: user, PublicKey: keyLine(key.PublicKey()), Ttl: durationpb.New(time.Hour)})
	id, err := w.cfg.Keys.Trust().CheckUser(parseCert(w.t, res.GetCertificate()), sshca.Peer{SSHUser: user, Now: w.clock.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// addUser adds a person and returns the invite.
func (w *world) addUser(name string, roles ...string) string {
	w.t.Helper()
	return must(w.t, w.admin().AddUser, &accessdv1.AddUserRequest{Name: name, Roles: roles, Logins: []string{"root", "deploy"}}).GetInvite()
}

// logged returns what the audit log holds of an event.
func (w *world) logged(name events.Name) []map[string]any {
	w.t.Helper()
	res := must(w.t, w.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: &accessdv1.EventFilter{Event: string(name)}})
	var out []map[string]any
	for _, data := range res.GetEvents() {
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func pins(keys []ssh.PublicKey) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = sshca.Pin(k)
	}
	return out
}

func stringOf(v any) string { return fmt.Sprintf("%+v\n", v) }
