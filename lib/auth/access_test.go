package auth

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
)

// wantAccess is the written table: who gets past the gatekeeper. L is the admin
// socket, A a person with role admin, R one with role auditor, U one with role
// access, N a node, P a proxy, H an authority, J a joiner, D an administrator as
// a proxy goes on with, T one's API token at a proxy. A plain sshd node is in no row,
// and nor is a node with that token.
const wantAccess = `
UserService/AddUser            L A D T
UserService/ListUsers          L A D T
UserService/RemoveUser         L A D T
UserService/ResetUser          L A D T
UserService/SignUser           L A D T
UserService/AddUserKey         L A D T
UserService/ListUserKeys       L A D T
UserService/RemoveUserKey      L A D T
UserService/NewKeyChallenge    L A D T
UserService/SetAuthenticators  L A D T
UserService/GetAuthenticators  L A D T
RoleService/ApplyRoles         L A D T
RoleService/ListRoles          L A D T
RoleService/GetRole            L A D T
RoleService/RemoveRole         L A D T
ConnectorService/ApplyConnectors L A D T
ConnectorService/ListConnectors  L A D T
ConnectorService/GetConnector    L A D T
ConnectorService/RemoveConnector L A D T
BotService/AddBot              L A D T
BotService/ListBots            L A D T
BotSignInService/RenewBot      P H
BotSignInService/ExchangeToken P H
PolicyService/Explain          L A D R U T
WatchService/Watch             L A D R U T
TokenService/AddToken          L A D T
TokenService/ListTokens        L A D T
TokenService/RemoveToken       L A D T
NodeService/ListNodes          L A D R T
NodeService/RemoveNode         L A D T
NodeService/AddNode            L A D T
NodeService/SignHostKey        L A D T
SessionService/ListSessions    L A D R T
SessionService/KillSession     L A D T
RequestService/CreateRequest   A D T
RequestService/ListRequests    L A D R U T
RequestService/GetRequest      L A D R U T
RequestService/WatchRequests   L A D R U T
RequestService/PrepareReview   A D R U T
RequestService/ReviewRequest   A D R U T
RequestService/DropRequest     L A D R U T
RequestService/AssumeRequest   A D R U
APITokenService/AddAPIToken    A D R U
APITokenService/ListAPITokens  L A D R U T
APITokenService/RemoveAPIToken L A D R U T
RecordingService/UploadPart        N P H
RecordingService/CompleteRecording N P H
ArchiveService/ListRecordings   L A D R T
ArchiveService/ReadRecording    L A D R T
ArchiveService/SearchRecordings L A D R T
ArchiveService/HoldRecording    L A D T
ArchiveService/RemoveRecording  L A D T
LockService/AddLock            L A D T
LockService/ListLocks          L A D T
LockService/RemoveLock         L A D T
LockService/ReadKRL            L A D P H T
AuditService/ListEvents        L A D R T
AuditService/TailEvents        L A D R T
AuditService/ExportEvents      L A D R T
AuditService/VerifyLog         L A D R T
AuditService/ProveEvent        L A D R T
AuditService/RotateLog         L A D T
AuditService/ArchivePeriod     L
PeerService/ReadEvents         H
PeerService/ProvePeerEvent     H
CAService/ExportCA             L A D P H T
RotationService/ListAuthorities L A D T
RotationService/RotateAuthority L A D T
RotationService/ReadTrust      P H
JoinService/Join               J
MemberService/WatchPolicy      N P H
MemberService/AppendEvents     N P H
MemberService/Renew            N P H
MemberService/Instructions     N P H
MemberService/Describe         N
MemberService/ReportSessions   N P H
MemberService/Announce         P H
LoginService/Begin             P H
LoginService/Continue          P H
LoginService/Cancel            P H
LoginService/RenewNode         P H
GrantService/Redeem            P H
SignOnService/Show             P H
SignOnService/Confirm          P H
SignOnService/Finish           P H
SignOnService/BeginPasskey     P H
SignOnService/FinishPasskey    P H
SignOnService/Resume           P H
FactorService/VerifyFactor     N P H
FactorService/ListFactors      L A R U D T
FactorService/BeginChange      A R U D T
FactorService/ContinueChange   A R U D T
DelegationService/Delegate     P H
DelegationService/SignSession  P H
DelegationService/SignNodeHost P H
DelegationService/PinHostKey   P H
`

func parseAccess(t *testing.T) map[string]string {
	t.Helper()
	want := map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(wantAccess)) {
		f := strings.Fields(line)
		want["/accessd.v1."+f[0]] = strings.Join(f[1:], "")
	}
	return want
}

// TestEveryMethodHasARule: a method that somebody adds to a service is for
// nobody until the table says for whom.
func TestEveryMethodHasARule(t *testing.T) {
	var got []string
	protoregistry.GlobalFiles.RangeFilesByPackage("accessd.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			svc := file.Services().Get(i)
			if svc.Name() == "TunnelService" {
				continue // between a node and a proxy
			}
			for j := range svc.Methods().Len() {
				got = append(got, "/"+string(svc.FullName())+"/"+string(svc.Methods().Get(j).Name()))
			}
		}
		return true
	})
	slices.Sort(got)
	if have := slices.Sorted(maps.Keys(accessTable())); !slices.Equal(got, have) {
		t.Errorf("methods are %v\nthe table has %v", got, have)
	}
	if have := slices.Sorted(maps.Keys(parseAccess(t))); !slices.Equal(got, have) {
		t.Errorf("methods are %v\nthis test's table has %v", got, have)
	}
}

// TestWhoMayCallWhat walks every method with every kind of peer (THREATS: each
// CA verb x each role; a node's credential against each API).
func TestWhoMayCallWhat(t *testing.T) {
	w := newWorld(t, plan{})
	for user, role := range map[string]string{"root": "admin", "aud": "auditor", "alice": "access"} {
		w.addUser(user, role)
	}
	node, proxy := w.join(sshca.KindNode, "web-1"), w.join(sshca.KindProxy, "edge-1")
	self, selfKeys := newMember(sshca.KindAuth, "auth-1"), Self{Kind: sshca.KindAuth, Name: "auth-1"}
	selfKeys.MemberKey, selfKeys.HostKey = self.key.PublicKey(), self.host.PublicKey()
	adm, err := w.AdmitSelf(t.Context(), selfKeys)
	if err != nil {
		t.Fatal(err)
	}
	stock := w.desk(proxy, "node7")
	joined, err := stock.answer(stock.begin(), w.token(&accessdv1.AddTokenRequest{Role: "node"}))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := w.memberOf(joined.GetCertificate(), "node7")
	if err != nil {
		t.Fatal(err)
	}
	delegated := must(t, proxy.Delegate, &accessdv1.DelegateRequest{
		Credential: &accessdv1.DelegateRequest_Certificate{Certificate: w.sign("root")}, PublicKey: keyLine(proxyKey()), Client: clientAddr.String(),
	})
	await(t, w, func() bool {
		_, r := w.policy.User("root")
		_, a := w.policy.User("aud")
		return r && a
	})
	admin := w.person("root")
	token := rpc.Bearer{Token: w.addToken(admin, 0).GetSecret(), Addr: clientAddr}
	peers := map[string]rpc.Peer{
		"L": {Local: true},
		"A": {Identity: admin}, "R": {Identity: w.person("aud")}, "U": {Identity: w.person("alice")},
		"N": {Identity: node.identity}, "P": {Identity: proxy.identity},
		"H": {Identity: w.identify(adm.Certificates.GetMember(), "auth-1")},
		"J": {Joiner: self.key.PublicKey()},
		"D": {Identity: w.identityOf(delegated.GetCertificate())},
		"S": {Identity: plain},
		"-": {}, // nobody
		"T": {Identity: proxy.identity}, "B": {Identity: node.identity},
	}
	as := func(kind string) context.Context {
		ctx := rpc.WithPeer(t.Context(), peers[kind])
		if kind == "T" || kind == "B" {
			ctx = rpc.WithBearer(ctx, token)
		}
		return ctx
	}
	gate := gatekeeper{w.Authority}
	for procedure, allowed := range parseAccess(t) {
		for kind := range peers {
			w.rec.take()
			_, err := gate.admit(as(kind), procedure)
			want := strings.Contains(allowed, kind)
			if (err == nil) != want {
				t.Errorf("%s as %s: %v, want allowed %v", procedure, kind, err, want)
			}
			if err != nil && !fault.Is(err, fault.Denied) {
				t.Errorf("%s as %s: %v, want a denial", procedure, kind, err)
			}
			decisions := named(w.rec.take(), events.AccessDecision)
			if person := strings.Contains("ARUDT", kind); err != nil || person {
				if len(decisions) != 1 || decisions[0].Success != want {
					t.Errorf("%s as %s: events %+v, want one decision", procedure, kind, decisions)
				}
			}
		}
		if _, err := gate.admit(t.Context(), procedure); !fault.Is(err, fault.Denied) {
			t.Errorf("%s without a peer: %v, want a denial", procedure, err)
		}
	}
	if _, err := gate.admit(rpc.WithPeer(t.Context(), peers["L"]), "/accessd.v1.UserService/Unknown"); !fault.Is(err, fault.Denied) {
		t.Errorf("an unknown method: %v, want a denial", err)
	}
}

// TestGatekeeperStandsBeforeEveryHandler: the table binds on the wire, unary
// calls and streams alike.
func TestGatekeeperStandsBeforeEveryHandler(t *testing.T) {
	w := newWorld(t, plan{})
	h := rpc.Local(w.Handler(), rpc.Peer{})
	for procedure := range accessTable() {
		for kind, err := range map[string]error{"unary": unary(t, h, procedure), "stream": stream(t, h, procedure)} {
			isStream := streams(t, procedure)
			if (kind == "stream") == isStream && !fault.Is(err, fault.Denied) {
				t.Errorf("%s %s as nobody: %v, want a denial", kind, procedure, err)
			}
		}
	}
}

// streams reports whether a procedure answers with a stream.
func streams(t *testing.T, procedure string) bool {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(procedure[1:], "/", ".")))
	if err != nil {
		t.Fatal(err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	return ok && m.IsStreamingServer()
}

func unary(t *testing.T, h *http.Client, procedure string) error {
	t.Helper()
	c := connect.NewClient[emptypb.Empty, emptypb.Empty](h, rpc.BaseURL+procedure, rpc.ClientOptions()...)
	_, err := c.CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{}))
	return err
}

func stream(t *testing.T, h *http.Client, procedure string) error {
	t.Helper()
	c := connect.NewClient[emptypb.Empty, emptypb.Empty](h, rpc.BaseURL+procedure, rpc.ClientOptions()...)
	s, err := c.CallServerStream(t.Context(), connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return err
	}
	defer s.Close()
	s.Receive()
	return s.Err()
}

// TestPeopleReadWhyNot: a person learns what they may not do, and no more.
func TestPeopleReadWhyNot(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	c := w.as(rpc.Peer{Identity: w.person("alice")})
	_, err := call(t, c.AddUser, &accessdv1.AddUserRequest{Name: "mallory", Roles: []string{"admin"}})
	wantFault(t, err, fault.Denied, "you may not create users")
	_, err = call(t, c.Renew, &accessdv1.RenewRequest{})
	wantFault(t, err, fault.Denied, "permission denied")
}

// TestPeoplesCallsEndWithTheirCertificate: F24. A connection that outlives the
// certificate it was opened with is good for nothing more.
func TestPeoplesCallsEndWithTheirCertificate(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("root", "admin")
	await(t, w, func() bool { _, ok := w.policy.User("root"); return ok })
	c := w.as(rpc.Peer{Identity: w.person("root")})
	must(t, c.ListUsers, &accessdv1.ListUsersRequest{})
	w.clock.advance(time.Hour)
	_, err := call(t, c.ListUsers, &accessdv1.ListUsersRequest{})
	wantFault(t, err, fault.Denied, "permission denied")
}
