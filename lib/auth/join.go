package auth

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// Bounds of what a member says about itself.
const (
	maxAddresses = 32 // public addresses of a proxy
	maxVersion   = 64 // bytes
)

var (
	hostGrammar    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	portGrammar    = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)
	versionGrammar = regexp.MustCompile(`^[A-Za-z0-9.+_-]*$`)
)

// isReserved reports whether no member may be called name.
func isReserved(name string) bool { return name == defaults.AuthorityName }

// parseAddress returns a public address, "host" or "host:port", in lower case.
func parseAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), ""
	}
	host = strings.ToLower(host)
	addr, aerr := netip.ParseAddr(host)
	isAddr := aerr == nil && addr.Zone() == "" && !addr.IsUnspecified()
	isName := aerr != nil && len(host) <= 253 && hostGrammar.MatchString(host) && !isReserved(host)
	if !isAddr && !isName || port != "" && !portGrammar.MatchString(port) {
		return "", fault.New(fault.BadInput, "address %q: want host or host:port", clip(s))
	}
	if port == "" {
		return host, nil
	}
	return net.JoinHostPort(host, port), nil
}

// parseAddresses is parseAddress for a bounded list.
func parseAddresses(list []string) ([]string, error) {
	if len(list) > maxAddresses {
		return nil, fault.New(fault.BadInput, "%d addresses: want at most %d", len(list), maxAddresses)
	}
	var out []string
	for _, s := range list {
		addr, err := parseAddress(s)
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	return out, nil
}

// hostOf returns the host of an address that parseAddress returned.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// A Self is what a member says it is.
type Self struct {
	Kind      sshca.Kind
	ID        names.NodeID // empty: a new one
	Name      string
	MemberKey ssh.PublicKey
	HostKey   ssh.PublicKey
	Addresses []string     // public addresses; proxies and authorities only
	Labels    names.Labels // nodes only
	Version   string
}

// record returns the record of whoever is what s says, unless a part of s
// breaks its grammar.
func (s Self) record() (*record, error) {
	name, err := parseMemberName(s.Name)
	if err != nil {
		return nil, err
	}
	if s.ID == "" {
		s.ID = names.NewNodeID()
	}
	if _, err := names.ParseNodeID(string(s.ID)); err != nil {
		return nil, err
	}
	if s.MemberKey == nil || s.HostKey == nil {
		return nil, fault.New(fault.BadInput, "a member has a key of its own and a host key")
	}
	if len(s.Version) > maxVersion || !versionGrammar.MatchString(s.Version) {
		return nil, fault.New(fault.BadInput, "version %q: want at most %d letters, digits or . + _ -", clip(s.Version), maxVersion)
	}
	rec := &record{Member: services.Member{
		ID: s.ID, Name: name, Kind: s.Kind, MemberKey: keyLine(s.MemberKey), HostKey: keyLine(s.HostKey), Version: s.Version,
	}}
	switch s.Kind {
	case sshca.KindNode:
		if err := s.Labels.Check(); err != nil {
			return nil, err
		}
		rec.node = &services.Node{Kind: services.NodeAccessd, Labels: maps.Clone(s.Labels)}
	case sshca.KindProxy, sshca.KindAuth:
		if rec.Addresses, err = parseAddresses(s.Addresses); err != nil {
			return nil, err
		}
	default:
		return nil, fault.New(fault.BadInput, "role %q: want node or proxy", clip(string(s.Kind)))
	}
	return rec, nil
}

type joinService struct{ *Authority }

// Join admits a node or a proxy that holds a token. A refusal is recorded with
// the token's id; only success uses a token up, in the transaction that puts
// the member on record.
func (s joinService) Join(ctx context.Context, req *connect.Request[accessdv1.JoinRequest]) (*connect.Response[accessdv1.JoinResponse], error) {
	id, hash, err := parseToken(req.Msg.GetToken())
	if err != nil {
		return nil, s.reject(ctx, id, req.Msg, err)
	}
	rec, err := s.prepare(ctx, req.Msg, id, hash)
	if err != nil {
		return nil, s.reject(ctx, id, req.Msg, err)
	}
	trust, err := s.trust(ctx)
	if err != nil {
		return nil, err
	}
	adm, err := s.enrol(ctx, id, rec)
	if err != nil {
		return nil, s.reject(ctx, id, req.Msg, err)
	}
	return connect.NewResponse(&accessdv1.JoinResponse{
		Id: string(adm.ID), Name: string(adm.Name), GatewayPort: int32(adm.GatewayPort), Certificates: adm.Certificates,
		ClusterName: s.cfg.Keys.ClusterName(), ClusterId: s.cfg.Keys.ClusterID(), Trust: trust,
	}), nil
}

// reject records that a token was refused, and returns why.
func (s joinService) reject(ctx context.Context, tokenID string, m *accessdv1.JoinRequest, why error) error {
	c := callerOf(ctx)
	ev := events.Event{Name: events.TokenRejected, AddrRemote: c.addr, Error: why.Error(), Fields: map[string]any{
		"fingerprint": ssh.FingerprintSHA256(c.joiner),
	}}
	set(ev, "token_id", tokenID)
	set(ev, "role", m.GetRole())
	set(ev, "name", m.GetName())
	set(ev, "member_id", m.GetId())
	set(ev, "lock", string(services.LockOf(why)))
	s.note(ctx, ev)
	return why
}

// prepare returns the record that the joiner would have.
func (s joinService) prepare(ctx context.Context, m *accessdv1.JoinRequest, tokenID, hash string) (*record, error) {
	t, err := s.token(ctx, tokenID, hash)
	if err != nil {
		return nil, err
	}
	hostKey, err := parseKeyLine(m.GetHostPublicKey())
	if err != nil {
		return nil, fault.New(fault.BadInput, "host key: %w", err)
	}
	self := Self{
		Kind: sshca.Kind(m.GetRole()), ID: names.NodeID(m.GetId()), Name: m.GetName(), MemberKey: callerOf(ctx).joiner,
		HostKey: hostKey, Addresses: m.GetPublicAddresses(), Labels: m.GetLabels(), Version: m.GetVersion(),
	}
	if self.Kind == sshca.KindNode {
		self.Addresses = nil
	}
	rec, err := self.record()
	if err != nil {
		return nil, err
	}
	if err := allows(t, rec); err != nil {
		return nil, err
	}
	if err := s.checkJoiner(ctx, rec); err != nil {
		return nil, err
	}
	return rec, s.checkReturn(ctx, rec)
}

// token returns the token with this id and secret. Whether the id or the secret
// was wrong is nobody's business.
func (s joinService) token(ctx context.Context, id, hash string) (services.Token, error) {
	t, err := s.cfg.Store.Token(ctx, id)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return t, err
	}
	if err != nil || !sameHash(t.SecretHash, hash) {
		return t, fault.New(fault.Denied, "the join token is not one of this cluster, or was removed or used up").
			WithHint("make another with \"accessd tokens add\"")
	}
	if !s.cfg.Now().Before(t.Expires) || t.UsesLeft < 1 {
		return t, fault.New(fault.Denied, "the join token has expired or is used up").
			WithHint("make another with \"accessd tokens add\"")
	}
	return t, nil
}

// allows refuses what token t does not let rec be. A node keeps the labels that
// its token demands.
func allows(t services.Token, rec *record) error {
	if t.Role != string(rec.Kind) {
		return fault.New(fault.Denied, "the join token is for a %s, not for a %s", t.Role, rec.Kind)
	}
	if len(t.Names) > 0 && !slices.Contains(t.Names, rec.Name) {
		return fault.New(fault.Denied, "the join token does not allow the name %q", rec.Name)
	}
	if rec.node == nil {
		return nil
	}
	rec.node.TokenLabels = t.Labels
	return keepsLabels(rec.node.Labels, t.Labels)
}

func keepsLabels(labels, demanded names.Labels) error {
	for _, k := range slices.Sorted(maps.Keys(demanded)) {
		if labels[k] != demanded[k] {
			return fault.New(fault.Denied, "the join token demands the label %s=%s", k, demanded[k])
		}
	}
	return nil
}

// checkReturn holds rec to the members on record with its id. A member that
// comes back keeps its key and its name: whoever has another key is somebody
// else, token or not, until an administrator has removed the old one (F08). One
// process may be a proxy and a node under one id.
func (a *Authority) checkReturn(ctx context.Context, rec *record) error {
	for _, kind := range []sshca.Kind{sshca.KindNode, sshca.KindProxy} {
		old, err := a.recordOf(ctx, kind, rec.ID)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if old.MemberKey != rec.MemberKey || old.Name != rec.Name || (old.node == nil && rec.node == nil && old.Kind != rec.Kind) {
			return fault.New(fault.Conflict, "member %s is on record with another key, name or role", rec.ID).
				WithHint("remove it with \"accessd nodes rm %s\", or start with an empty data directory", rec.ID)
		}
		rec.replaces(old)
	}
	return nil
}

// replaces makes rec the next version of old, when they are of one kind.
func (rec *record) replaces(old *record) {
	if (rec.node == nil) != (old.node == nil) {
		return
	}
	rec.Joined, rec.Revision = old.Joined, old.Revision
	if rec.node != nil {
		rec.node.GatewayPort = old.node.GatewayPort
	}
}

// An Admission is what a member gets when it is admitted.
type Admission struct {
	ID           names.NodeID
	Name         names.NodeName
	GatewayPort  int // nodes only; 0 when none is free
	Certificates *accessdv1.MemberCertificates
}

// enrol puts rec on record and returns its certificates. They are made first,
// so that nothing can go wrong once the token is used up.
func (a *Authority) enrol(ctx context.Context, tokenID string, rec *record) (*Admission, error) {
	if rec.Joined.IsZero() {
		rec.Joined = a.cfg.Now().UTC()
	}
	certs, err := a.issueMember(ctx, rec, "join", a.trusted())
	if err != nil {
		return nil, err
	}
	adm := &Admission{ID: rec.ID, Name: rec.Name, Certificates: certs}
	err = a.change(ctx, joinEvent(ctx, tokenID, rec), func() error {
		if rec.node == nil {
			_, err := a.cfg.Store.AdmitMember(ctx, tokenID, rec.Member)
			return err
		}
		n, err := a.cfg.Store.AdmitNode(ctx, tokenID, rec.stored())
		adm.GatewayPort = n.GatewayPort
		return err
	})
	if err != nil {
		return nil, err
	}
	return adm, nil
}

// stored returns the node in the store's form.
func (rec *record) stored() services.Node {
	n := *rec.node
	n.ID, n.Name, n.MemberKey, n.HostKey = rec.ID, rec.Name, rec.MemberKey, rec.HostKey
	n.Joined, n.Version, n.Revision = rec.Joined, rec.Version, rec.Revision
	return n
}

func joinEvent(ctx context.Context, tokenID string, rec *record) events.Event {
	ev := events.Event{Name: events.ProxyJoin, AddrRemote: callerOf(ctx).addr, Fields: map[string]any{
		"role": string(rec.Kind), "name": string(rec.Name), "member_id": string(rec.ID), "fingerprint": fingerprint(rec.MemberKey),
	}}
	set(ev, "token_id", tokenID)
	set(ev, "version", rec.Version)
	if rec.node != nil {
		ev.Name = events.NodeJoin
		ev.Fields["labels"] = map[string]string(rec.node.Labels)
	}
	return ev
}

// AdmitSelf admits a role of this very process, without a token. It is for
// every start: what is on record already stays, and the certificates are new.
func (a *Authority) AdmitSelf(ctx context.Context, s Self) (*Admission, error) {
	rec, err := s.record()
	if err != nil {
		return nil, err
	}
	old, err := a.recordOf(ctx, rec.Kind, rec.ID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err != nil {
		return a.enrol(ctx, "", rec)
	}
	rec.replaces(old)
	if !rec.same(old) {
		return a.enrol(ctx, "", rec)
	}
	certs, err := a.issueMember(ctx, rec, "start", a.trusted())
	if err != nil {
		return nil, err
	}
	adm := &Admission{ID: rec.ID, Name: rec.Name, Certificates: certs}
	if old.node != nil {
		adm.GatewayPort = old.node.GatewayPort
	}
	return adm, nil
}

// same reports whether rec says nothing that old does not.
func (rec *record) same(old *record) bool {
	return rec.Kind == old.Kind && rec.Name == old.Name && rec.MemberKey == old.MemberKey && rec.HostKey == old.HostKey &&
		rec.Version == old.Version && slices.Equal(rec.Addresses, old.Addresses) &&
		(rec.node == nil || maps.Equal(rec.node.Labels, old.node.Labels))
}

// trust returns the public keys of the cluster's authorities as resources of
// the policy.
func (a *Authority) trust(ctx context.Context) ([]*accessdv1.Resource, error) {
	var out []*accessdv1.Resource
	for _, t := range caTypes() {
		ca, err := a.cfg.Store.CA(ctx, t)
		if err != nil {
			return nil, err
		}
		out = append(out, ca.Resource())
	}
	return out, nil
}
