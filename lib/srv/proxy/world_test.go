package proxy

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	idN1    names.NodeID = "11111111-1111-4111-8111-111111111111"
	idN2    names.NodeID = "22222222-2222-4222-8222-222222222222"
	idProxy names.NodeID = "33333333-3333-4333-8333-333333333333"

	portN1 = 20001
)

// policy is a cache that a test fills.
type policy struct {
	*services.Cache
	t testing.TB
}

func newPolicy(t testing.TB) policy {
	t.Helper()
	return policy{services.NewCache(), t}
}

// put puts a resource of kind under name.
func (p policy) put(kind string, name any, v any) {
	p.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		p.t.Fatal(err)
	}
	p.apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{{
		Key: &accessdv1.ResourceKey{Kind: kind, Name: fmt.Sprint(name)}, Json: text,
	}}})
}

func (p policy) remove(kind string, name any) {
	p.t.Helper()
	p.apply(&accessdv1.PolicyUpdate{Remove: []*accessdv1.ResourceKey{{Kind: kind, Name: fmt.Sprint(name)}}})
}

func (p policy) apply(u *accessdv1.PolicyUpdate) {
	p.t.Helper()
	if err := p.Apply(u); err != nil {
		p.t.Fatal(err)
	}
}

func (p policy) node(n services.Node) {
	p.t.Helper()
	n.Kind = cmp.Or(n.Kind, services.NodeAccessd)
	p.put("node", n.ID, n)
}

func (p policy) user(name names.UserName, roles ...names.RoleName) {
	p.t.Helper()
	p.put("user", name, services.User{Name: name, Roles: roles, Logins: []names.Login{"root"}})
}

// enrol enrols key for a user, and for nobody else.
func (w *world) enrol(user names.UserName, key ssh.PublicKey) {
	w.t.Helper()
	w.policy.put("user", user, services.User{
		Name: user, Roles: []names.RoleName{"access"}, Logins: []names.Login{"root"},
		Keys: []services.UserKey{{Fingerprint: ssh.FingerprintSHA256(key), Public: authorizedKey(key)}},
	})
}

// world is a proxy with everything around it that is not under test: policy,
// authority, nodes and audit log.
type world struct {
	t      testing.TB
	ca     map[sshca.Type]ssh.Signer
	host   ssh.Signer
	policy policy
	audit  *recorder
	login  *fakeLogin
	tunnel *fakeTunnels
	sshd   *fakeForwarder
	offend *offences
	server *Server
	addr   string
	cfg    Config
	stop   func() // stops the proxy and waits for it
}

// newWorld returns a world whose proxy serves on loopback; change may change
// its configuration first.
func newWorld(t testing.TB, change ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, ca: map[sshca.Type]ssh.Signer{}, policy: newPolicy(t), audit: &recorder{t: t}, offend: &offences{}}
	for _, kind := range []sshca.Type{sshca.TypeUser, sshca.TypeHost, sshca.TypeNode, sshca.TypeSSHD} {
		_, w.ca[kind] = sshca.Generate()
		w.policy.put("ca", kind, services.CA{Type: kind, Keys: []services.CAKey{{Public: authorizedKey(w.ca[kind].PublicKey())}}})
	}
	for _, r := range services.BuiltinRoles() {
		w.policy.put("role", r.Name, r)
	}
	w.policy.user("alice", "access")
	w.host = w.hostKey()
	w.login = newFakeLogin(w)
	w.tunnel = newFakeTunnels(w)
	engine, err := authz.New(authz.Config{Policy: w.policy.Cache})
	if err != nil {
		t.Fatal(err)
	}
	w.sshd = &fakeForwarder{w: w}
	w.cfg = Config{
		HostKeys: func() []ssh.Signer { return []ssh.Signer{w.host} },
		Policy:   w.policy.Cache, Engine: engine, Events: w.audit, People: w.login.people(), Tunnels: w.tunnel, Forwarder: w.sshd,
		Authority: http.NotFoundHandler(),
		Limits:    sshserver.Limits{FailureDelay: time.Millisecond},
		Grace:     time.Second,
	}
	for _, f := range change {
		f(w)
	}
	w.serve()
	return w
}

func (w *world) serve() {
	w.t.Helper()
	var err error
	if w.server, err = New(w.cfg); err != nil {
		w.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(ctx, guardedListener{ln, w.offend}) }()
	w.stop = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Errorf("Serve = %v", err)
		}
	})
	w.t.Cleanup(w.stop)
}

// hostKey returns a host key with its certificate.
func (w *world) hostKey() ssh.Signer {
	w.t.Helper()
	_, key := sshca.Generate()
	cert, err := sshca.MintHost(w.ca[sshca.TypeHost], sshca.HostRequest{
		Key: key.PublicKey(), KeyID: "proxy", Principals: []string{"proxy", "localhost", "127.0.0.1", "n1", string(idN1), defaults.AuthorityName},
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour), Serial: 1,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return certSigner(w.t, cert, key)
}

func certSigner(t testing.TB, cert *ssh.Certificate, key ssh.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// userRequest returns a good request for a certificate of user.
func (w *world) userRequest(user names.UserName, key ssh.PublicKey) sshca.UserRequest {
	return sshca.UserRequest{
		Key: key, User: user, Roles: []names.RoleName{"access", "auditor"}, Logins: []names.Login{"root"},
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour), Serial: 7,
	}
}

// person returns a signer with a certificate for user, which edit may change.
func (w *world) person(user names.UserName, edit ...func(*sshca.UserRequest)) ssh.Signer {
	w.t.Helper()
	_, key := sshca.Generate()
	r := w.userRequest(user, key.PublicKey())
	for _, f := range edit {
		f(&r)
	}
	cert, err := sshca.MintUser(w.ca[sshca.TypeUser], r)
	if err != nil {
		w.t.Fatal(err)
	}
	return certSigner(w.t, cert, key)
}

// member returns a signer with a member's certificate and puts the member into
// the policy.
func (w *world) member(kind sshca.Kind, id names.NodeID, name names.NodeName) ssh.Signer {
	w.t.Helper()
	_, key := sshca.Generate()
	cert, err := sshca.MintMember(w.ca[sshca.TypeNode], sshca.MemberRequest{
		Key: key.PublicKey(), ID: id, Name: name, Kind: kind,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour), Serial: 9,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	line := authorizedKey(key.PublicKey())
	if kind == sshca.KindNode {
		w.policy.node(services.Node{ID: id, Name: name, MemberKey: line, GatewayPort: portN1})
	} else {
		w.policy.put("member", id, services.Member{ID: id, Name: name, Kind: kind, MemberKey: line})
	}
	return certSigner(w.t, cert, key)
}

// dial connects as an x/crypto client.
func (w *world) dial(user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", w.addr, w.client(user, auth...))
}

func (w *world) client(user string, auth ...ssh.AuthMethod) *ssh.ClientConfig {
	return &ssh.ClientConfig{
		User: user, Auth: auth, HostKeyCallback: w.policy.Trust().HostKeyCallback("127.0.0.1", time.Now),
	}
}

// must connects as dial does and fails the test otherwise.
func (w *world) must(user string, auth ...ssh.AuthMethod) *ssh.Client {
	w.t.Helper()
	c, err := w.dial(user, auth...)
	if err != nil {
		w.t.Fatalf("dial as %q: %v", user, err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// recorder is an audit log that a test reads.
type recorder struct {
	t testing.TB

	mu     sync.Mutex
	events []events.Event
	broken error
	more   chan struct{} // closed at the next event
}

// Emit implements [Emitter]. It holds every event to the table.
func (r *recorder) Emit(ctx context.Context, ev events.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return r.broken
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := events.Check(ev); err != nil {
		r.t.Error(err)
	}
	ev.Time = time.Now()
	r.events = append(r.events, ev)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
	return nil
}

// all returns the events called name so far.
func (r *recorder) all(name events.Name) []events.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.events), func(ev events.Event) bool { return ev.Name != name })
}

func (r *recorder) names() []events.Name {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []events.Name
	for _, ev := range r.events {
		out = append(out, ev.Name)
	}
	return out
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

// wait returns the events called name once there are n.
func (r *recorder) wait(name events.Name, n int) []events.Event {
	r.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		if r.more == nil {
			r.more = make(chan struct{})
		}
		more := r.more
		r.mu.Unlock()
		if got := r.all(name); len(got) >= n {
			return got
		}
		select {
		case <-more:
		case <-deadline:
			r.t.Fatalf("%d events %q, want %d", len(r.all(name)), name, n)
		}
	}
}

func (r *recorder) breakWith(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = err
}

// offences counts what a listener is told of connections.
type offences struct {
	mu     sync.Mutex
	list   []listener.Offence
	parked int
	full   bool // no place to park
}

func (o *offences) count(want listener.Offence) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, x := range o.list {
		if x == want {
			n++
		}
	}
	return n
}

// fill leaves no place to park.
func (o *offences) fill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.full = true
}

func (o *offences) parkings() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.parked
}

// guardedListener gives out connections as the product's listener does.
type guardedListener struct {
	net.Listener
	*offences
}

func (l guardedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return guardedConn{c, l.offences}, err
}

type guardedConn struct {
	net.Conn
	o *offences
}

func (guardedConn) KexDone()       {}
func (guardedConn) Authenticated() {}

func (c guardedConn) Parked() error {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	if c.o.full {
		return fault.New(fault.Unavailable, "no place")
	}
	c.o.parked++
	return nil
}

func (c guardedConn) Penalize(o listener.Offence) {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	c.o.list = append(c.o.list, o)
}

// poster is as long as a QR code, drawn as one, and has words behind it.
var poster = strings.Repeat(strings.Repeat("█▀ ▄", 10)+"\n", 20) + "or type SECRET"

// fakeLogin is the authority's sign-in: password "right", then code "123456".
type fakeLogin struct {
	accessdv1connect.UnimplementedDelegationServiceHandler

	w *world

	mu        sync.Mutex
	delegated []string // login and user of each
	begins    []*accessdv1.BeginRequest
	open      map[string]*accessdv1.BeginRequest
	grants    map[string]names.UserName
	passed    map[string]bool
	cancelled chan struct{} // one for each
	begun     int
	away      bool
}

func newFakeLogin(w *world) *fakeLogin {
	return &fakeLogin{w: w, open: map[string]*accessdv1.BeginRequest{}, grants: map[string]names.UserName{}, passed: map[string]bool{}, cancelled: make(chan struct{}, 16)}
}

// people returns the clients of f, as a process with the authority has them.
func (f *fakeLogin) people() *People {
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewLoginServiceHandler(f, rpc.ServerOptions(nil)...))
	mux.Handle(accessdv1connect.NewGrantServiceHandler(f, rpc.ServerOptions(nil)...))
	mux.Handle(accessdv1connect.NewDelegationServiceHandler(f, rpc.ServerOptions(nil)...))
	client := rpc.Local(mux, rpc.Peer{})
	return &People{
		Delegation: accessdv1connect.NewDelegationServiceClient(client, rpc.BaseURL, rpc.ClientOptions()...),
		Login:      accessdv1connect.NewLoginServiceClient(client, rpc.BaseURL, rpc.ClientOptions()...),
		Grants:     accessdv1connect.NewGrantServiceClient(client, rpc.BaseURL, rpc.ClientOptions()...),
	}
}

// Begin implements the login service.
func (f *fakeLogin) Begin(_ context.Context, r *connect.Request[accessdv1.BeginRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, fault.New(fault.Unavailable, "the authority is away")
	}
	f.begun++
	id := fmt.Sprint(f.begun)
	f.open[id] = r.Msg
	f.begins = append(f.begins, r.Msg)
	return connect.NewResponse(&accessdv1.LoginStep{Id: id, Instruction: "Welcome.", Prompts: []*accessdv1.Prompt{{Text: "Password or invite: "}}}), nil
}

// Continue implements the login service.
func (f *fakeLogin) Continue(_ context.Context, r *connect.Request[accessdv1.ContinueRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.Msg.GetId()
	begun := f.open[id]
	if begun == nil {
		return nil, fault.New(fault.NotFound, "no such sign-in")
	}
	answer := strings.Join(r.Msg.GetAnswers(), ",")
	if answer == "TOKEN" {
		step, err := f.admit(begun)
		return connect.NewResponse(step), err
	}
	if _, second := f.passed[id]; !second {
		f.passed[id] = answer == "right" && begun.GetUser() == "alice"
		return connect.NewResponse(&accessdv1.LoginStep{Id: id, Instruction: poster, Prompts: []*accessdv1.Prompt{{Text: "Code: ", Echo: true}}}), nil
	}
	delete(f.open, id)
	if !f.passed[id] || answer != "123456" {
		return nil, fault.New(fault.Denied, "permission denied")
	}
	cert, err := f.certify("alice", begun.GetPublicKey())
	if err != nil {
		return nil, err
	}
	f.grants["grant-"+id] = "alice"
	return connect.NewResponse(&accessdv1.LoginStep{Id: id, Done: true, Certificate: cert, Grant: "grant-" + id}), nil
}

// Cancel implements the login service.
func (f *fakeLogin) Cancel(_ context.Context, r *connect.Request[accessdv1.CancelRequest]) (*connect.Response[accessdv1.CancelResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, r.Msg.GetId())
	f.cancelled <- struct{}{}
	return connect.NewResponse(&accessdv1.CancelResponse{}), nil
}

// Redeem implements the grant service.
func (f *fakeLogin) Redeem(_ context.Context, r *connect.Request[accessdv1.RedeemRequest]) (*connect.Response[accessdv1.RedeemResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user, ok := f.grants[r.Msg.GetGrant()]
	if !ok {
		return nil, fault.New(fault.Denied, "the grant was used or has expired")
	}
	delete(f.grants, r.Msg.GetGrant())
	cert, err := f.certify(user, r.Msg.GetPublicKey())
	return connect.NewResponse(&accessdv1.RedeemResponse{Certificate: cert}), err
}

// RenewNode implements the login service.
func (f *fakeLogin) RenewNode(_ context.Context, r *connect.Request[accessdv1.RenewNodeRequest]) (*connect.Response[accessdv1.RenewNodeResponse], error) {
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Msg.GetCertificate()))
	if err != nil {
		return nil, err
	}
	old := parsed.(*ssh.Certificate)
	id, err := f.w.policy.Trust().CheckMember(old, sshca.Peer{SSHUser: "node7", Now: time.Now()})
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "permission denied")
	}
	cert, err := f.w.memberCert(id.Member, id.MemberName, old.Key, 10)
	return connect.NewResponse(&accessdv1.RenewNodeResponse{Certificate: cert}), err
}

// memberCert returns a node's certificate for key.
func (w *world) memberCert(id names.NodeID, name names.NodeName, key ssh.PublicKey, serial uint64) (string, error) {
	cert, err := sshca.MintMember(w.ca[sshca.TypeNode], sshca.MemberRequest{
		Key: key, ID: id, Name: name, Kind: sshca.KindNode, Serial: serial,
		ValidAfter: time.Now().Add(-time.Minute), ValidBefore: time.Now().Add(time.Hour),
	})
	if err != nil {
		return "", err
	}
	return authorizedKey(cert), nil
}

// admit is what the authority does for a good join token.
func (f *fakeLogin) admit(begun *accessdv1.BeginRequest) (*accessdv1.LoginStep, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(begun.GetPublicKey()))
	if err != nil {
		return nil, err
	}
	name := names.NodeName(begun.GetUser())
	f.w.policy.node(services.Node{ID: idN2, Name: name, Kind: services.NodeSSHD, MemberKey: begun.GetPublicKey()})
	cert, err := f.w.memberCert(idN2, name, key, 9)
	return &accessdv1.LoginStep{Done: true, Certificate: cert}, err
}

// Delegate implements the delegation service: as the real one it never gives
// more than the credential has, and enrolled keys only do for alice.
func (f *fakeLogin) Delegate(_ context.Context, r *connect.Request[accessdv1.DelegateRequest]) (*connect.Response[accessdv1.DelegateResponse], error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Msg.GetPublicKey()))
	if err != nil {
		return nil, err
	}
	ask := f.w.userRequest("alice", key)
	if line := r.Msg.GetCertificate(); line != "" {
		parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, err
		}
		cert, trust := parsed.(*ssh.Certificate), f.w.policy.Trust()
		id, err := trust.CheckUser(cert, sshca.Peer{SSHUser: cert.KeyId, Now: time.Now()})
		if err == nil && r.Msg.GetLogin() != "" {
			id, err = trust.CheckLogin(cert, sshca.Peer{SSHUser: r.Msg.GetLogin(), Now: time.Now()})
		}
		if err != nil {
			return nil, fault.Wrap(fault.Denied, err, "permission denied")
		}
		ask.User, ask.Roles, ask.ValidBefore = id.User, id.Roles, id.ValidBefore
	} else if u, ok := f.w.policy.UserByKey(fingerprintOf(r.Msg.GetEnrolledKey())); !ok || u.Name != "alice" || r.Msg.GetLogin() != "root" {
		return nil, fault.New(fault.Denied, "permission denied")
	}
	f.mu.Lock()
	f.delegated = append(f.delegated, fmt.Sprintf("%s for %s", r.Msg.GetLogin(), ask.User))
	f.mu.Unlock()
	if r.Msg.GetLogin() != "" {
		ask.Logins = []names.Login{names.Login(r.Msg.GetLogin())}
	}
	cert, err := sshca.MintUser(f.w.ca[sshca.TypeUser], ask)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.DelegateResponse{Certificate: authorizedKey(cert)}), nil
}

func fingerprintOf(line string) string {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return err.Error()
	}
	return ssh.FingerprintSHA256(key)
}

func (f *fakeLogin) certify(user names.UserName, line string) (string, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", err
	}
	cert, err := sshca.MintUser(f.w.ca[sshca.TypeUser], f.w.userRequest(user, key))
	if err != nil {
		return "", err
	}
	return authorizedKey(cert), nil
}

func (f *fakeLogin) delegations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.delegated)
}

// all returns the sign-ins there were.
func (f *fakeLogin) all() []*accessdv1.BeginRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.begins)
}

func (f *fakeLogin) setAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

func (f *fakeLogin) counts() (begun, open int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.begun, len(f.open)
}

// fakeTunnels reach nodes that are SSH servers in this process.
type fakeTunnels struct {
	w *world

	mu     sync.Mutex
	nodes  map[names.NodeID]string // address of each that is connected
	dialed []names.NodeID
	from   []netip.AddrPort
	stock  int           // forwards of stock ssh
	said   []events.Name // the events there were when it first dialed
}

func newFakeTunnels(w *world) *fakeTunnels {
	return &fakeTunnels{w: w, nodes: map[names.NodeID]string{}}
}

// Dial implements [Tunnels].
func (f *fakeTunnels) Dial(ctx context.Context, node names.NodeID, from netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	addr, ok := f.nodes[node]
	f.dialed, f.from = append(f.dialed, node), append(f.from, from)
	if f.said == nil {
		f.said = f.w.audit.names()
	}
	f.mu.Unlock()
	if !ok {
		return nil, fault.New(fault.Unavailable, "no tunnel to it")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// API implements [Tunnels].
func (f *fakeTunnels) API(c *sshserver.Conn) (string, http.Handler) {
	return "/tunnel/", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(rw, "tunnel of %s", c.Identity.MemberName)
	})
}

// Forward implements [Tunnels].
func (f *fakeTunnels) Forward(*sshserver.Conn, *ssh.Request) (bool, []byte) {
	return true, sshwire.TCPIPForwardReply{Port: 22}.Marshal()
}

// ForwardStock implements [Tunnels].
func (f *fakeTunnels) ForwardStock(*sshserver.Conn, *ssh.Request) (bool, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stock++
	return true, nil
}

// first returns for whom, and after which events, the first Dial was.
func (f *fakeTunnels) first() (netip.AddrPort, []events.Name) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.from[0], f.said
}

func (f *fakeTunnels) dials() []names.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dialed)
}

// connectNode makes node n1 known, with an SSH server behind its tunnel.
func (w *world) connectNode() {
	w.t.Helper()
	w.policy.node(services.Node{ID: idN1, Name: "n1", GatewayPort: portN1, Labels: names.Labels{"env": "dev"}})
	addr := startNode(w.t, w)
	w.tunnel.mu.Lock()
	defer w.tunnel.mu.Unlock()
	w.tunnel.nodes[idN1] = addr
}

// fakeForwarder serves every plain sshd node as startNode serves others.
type fakeForwarder struct {
	w *world

	mu     sync.Mutex
	served []string // node and address of the client
	open   int
}

// ServeNode implements [Forwarder].
func (f *fakeForwarder) ServeNode(_ context.Context, conn net.Conn, n services.Node) error {
	f.mu.Lock()
	f.served = append(f.served, fmt.Sprintf("%s for %s", n.Name, conn.RemoteAddr()))
	f.open++
	f.mu.Unlock()
	serveNode(conn, f.w.nodeConfig())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	return nil
}

func (f *fakeForwarder) state() (served []string, open int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.served), f.open
}

// nodeConfig lets certificates of the user authority in.
func (w *world) nodeConfig() *ssh.ServerConfig {
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		cert, ok := key.(*ssh.Certificate)
		if !ok {
			return nil, errors.New("no certificate")
		}
		if m.User() == observerUser {
			id, err := w.policy.Trust().CheckUser(cert, sshca.Peer{SSHUser: cert.KeyId, Now: time.Now()})
			if err != nil {
				return nil, err
			}
			return &ssh.Permissions{Extensions: map[string]string{"user": string(id.User)}}, nil
		}
		_, err := w.policy.Trust().CheckLogin(cert, sshca.Peer{SSHUser: m.User(), Now: time.Now()})
		return nil, err
	}}
	cfg.AddHostKey(w.host)
	return cfg
}

// startNode serves SSH as a node would: certificates of the user authority are
// let in, "echo X" prints X, "cat" copies, "exit" ends with 7.
func startNode(t testing.TB, w *world) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.nodeConfig()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveNode(c, cfg) })
			t.Cleanup(func() { c.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// showSession shows whoever asks what was asked for, then what is typed; mallory is
// turned away.
func showSession(user string, ch ssh.Channel, reqs <-chan *ssh.Request) {
	for r := range reqs {
		x, err := sshwire.ParseSubsystem(r.Payload)
		_ = r.Reply(err == nil && r.Type == sshwire.RequestSubsystem, nil)
		if r.Type != sshwire.RequestSubsystem {
			continue
		}
		status := sshwire.ExitStatus{}
		if user == "mallory" {
			fmt.Fprint(ch.Stderr(), "accessd: not yours\n")
			status.Code = 255
		} else {
			fmt.Fprintf(ch, "%s of %s\n", x.Name, user)
			if strings.HasPrefix(x.Name, "join:") {
				_, _ = io.Copy(ch, ch)
			}
		}
		_, _ = ch.SendRequest(sshwire.RequestExitStatus, false, status.Marshal())
		ch.Close()
	}
}

// attack opens channels that nobody has asked for, with no payload and with one
// that looks good, and writes what becomes of each.
func attack(conn *ssh.ServerConn, out io.Writer) {
	payload := ssh.Marshal(sshwire.ForwardedTCPIP{Addr: "localhost", Port: 22, OriginAddr: "127.0.0.1", OriginPort: 1})
	for _, kind := range hostileKinds {
		for _, data := range [][]byte{nil, payload} {
			_, _, err := conn.OpenChannel(kind, data)
			if err != nil {
				fmt.Fprintln(out, "refused")
				continue
			}
			fmt.Fprintln(out, "opened", kind)
		}
	}
}

func serveNode(nc net.Conn, cfg *ssh.ServerConfig) {
	defer nc.Close()
	conn, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	for open := range chans {
		ch, reqs, err := open.Accept()
		if err != nil {
			return
		}
		if conn.User() == observerUser {
			wg.Go(func() { showSession(conn.Permissions.Extensions["user"], ch, reqs) })
			continue
		}
		wg.Go(func() {
			for r := range reqs {
				cmd, _ := sshwire.ParseExec(r.Payload)
				_ = r.Reply(r.Type == sshwire.RequestExec, nil)
				if r.Type != sshwire.RequestExec {
					continue
				}
				code := uint32(0)
				switch verb, rest, _ := strings.Cut(cmd.Command, " "); verb {
				case "echo":
					fmt.Fprintln(ch, rest)
				case "cat":
					_, _ = io.Copy(ch, ch)
				case "exit":
					code = 7
				case "vanish":
					conn.Close()
				case "attack":
					attack(conn, ch)
				case "status":
					payload, _ := hex.DecodeString(rest)
					_, _ = ch.SendRequest(sshwire.RequestExitStatus, false, payload)
					ch.Close()
				}
				_, _ = ch.SendRequest(sshwire.RequestExitStatus, false, sshwire.ExitStatus{Code: code}.Marshal())
				ch.Close()
			}
		})
	}
}
