package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

func nodeKey(id names.NodeID) string     { return dirOf(KindNode) + string(id) }
func memberKey(id names.NodeID) string   { return dirOf(KindMember) + string(id) }
func nameKey(name names.NodeName) string { return dirName + string(name) }
func seenKey(id names.NodeID) string     { return dirSeen + string(id) }

// Gateway ports are below those that systems give to outgoing connections (RFC
// 6335, section 6), so that somebody may really listen there one day.
const (
	firstGatewayPort = 20000
	gatewayPorts     = 10000
)

// portRange is where gateway ports come from.
type portRange struct{ first, count int }

func (r portRange) key(port int) string { return dirPort + strconv.Itoa(port) }

// portTries is how many random ports are tried before the free ones are looked
// up.
const portTries = 8

// errAgain says that another change came in between and the next attempt may
// succeed.
var errAgain = errors.New("somebody else was faster")

// admission is what admitting a node and a member have in common.
type admission struct {
	token    string // "" needs none
	key      string // of the record
	twin     string // key of the other record that the same process may have
	what     string
	id       names.NodeID
	record   record
	revision int64 // of the record that is replaced; 0: there must be none
}

// record is what an admission needs to know of a record, new or old.
type record struct {
	Name        names.NodeName `json:"name"`
	Addresses   []string       `json:"addresses,omitempty"`
	GatewayPort int            `json:"gateway_port,omitempty"`
}

// hosts returns the host names of the record's addresses, since its host
// certificate will show them.
func (r record) hosts() []names.NodeName {
	var list []names.NodeName
	for _, a := range r.Addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			host = a
		}
		name, err := names.ParseNodeName(strings.ToLower(host))
		if err == nil && name != r.Name && !slices.Contains(list, name) {
			list = append(list, name) // neither an IP address nor localhost
		}
	}
	return list
}

// addressOwner owns the names that proxies and authorities are reached by. They
// may share one, and it is never free again: people have it in their ssh_config,
// and no node may ever answer to it.
const addressOwner = "addresses"

// AdmitNode takes one use of a token ("" needs none), creates the node with its
// name and a gateway port, or replaces it at n.Revision if that is not 0, all in
// one change: what fails uses up nothing. It returns [fault.Denied] when the
// token is unknown, expired or used up, and [fault.Conflict] when the name is
// taken or the node has changed. A node that returns keeps its port if nobody
// got it meanwhile; when no port is free, a node has none.
func (s *Store) AdmitNode(ctx context.Context, token string, n Node) (Node, error) {
	if err := n.check(); err != nil {
		return Node{}, err
	}
	a := admission{token: token, key: nodeKey(n.ID), twin: memberKey(n.ID), what: KindNode, id: n.ID, record: record{Name: n.Name}, revision: n.Revision}
	revision, err := s.admit(ctx, a, func(tx *backend.Txn, old record) (err error) {
		if n.GatewayPort, err = s.gatewayPort(ctx, tx, n.ID, old.GatewayPort); err != nil {
			return err
		}
		tx.Put(a.key, encode(n)).Put(seenKey(n.ID), encode(s.now()))
		return nil
	})
	n.Revision = revision
	return n, err
}

// AdmitMember is [Store.AdmitNode] for proxies and authorities, which have no
// gateway port.
func (s *Store) AdmitMember(ctx context.Context, token string, m Member) (Member, error) {
	if m.Kind != sshca.KindProxy && m.Kind != sshca.KindAuth {
		return Member{}, fault.New(fault.BadInput, "member %q: no kind of member is named %q", m.Name, m.Kind)
	}
	a := admission{token: token, key: memberKey(m.ID), twin: nodeKey(m.ID), what: KindMember, id: m.ID, record: record{Name: m.Name, Addresses: m.Addresses}, revision: m.Revision}
	revision, err := s.admit(ctx, a, func(tx *backend.Txn, _ record) error {
		tx.Put(a.key, encode(m))
		return nil
	})
	m.Revision = revision
	return m, err
}

// admit makes the change for a; fill adds the record to it.
func (s *Store) admit(ctx context.Context, a admission, fill func(*backend.Txn, record) error) (int64, error) {
	if _, err := names.ParseNodeID(string(a.id)); err != nil {
		return 0, err
	}
	if _, err := names.ParseNodeName(string(a.record.Name)); err != nil {
		return 0, err
	}
	for {
		revision, err := s.tryAdmit(ctx, a, fill)
		if !errors.Is(err, errAgain) {
			return revision, err
		}
	}
}

func (s *Store) tryAdmit(ctx context.Context, a admission, fill func(*backend.Txn, record) error) (int64, error) {
	tx := s.b.Txn().At(a.key, a.revision)
	var old record
	if a.revision != 0 {
		var err error
		if old, _, err = get[record](ctx, s, a.key, a.what); err != nil {
			return 0, err
		}
	}
	if err := s.useToken(ctx, tx, a.token); err != nil {
		return 0, err
	}
	if err := s.rename(ctx, tx, a, old); err != nil {
		return 0, err
	}
	if err := fill(tx, old); err != nil {
		return 0, err
	}
	revision, err := tx.Commit(ctx)
	switch conflicting(err) {
	case "":
		return revision, err
	case a.key:
		return 0, changed(a.what, string(a.id))
	}
	return 0, errAgain // a name, the token or a port
}

// rename adds to a change what it takes that a's record has its names and its
// old record has none but these. A process may be a node and a member under one
// name, so a name belongs to an id, and goes when neither record has it.
func (s *Store) rename(ctx context.Context, tx *backend.Txn, a admission, old record) error {
	if a.record.Name != "" {
		if err := s.claim(ctx, tx, a.record.Name, string(a.id)); err != nil {
			return err
		}
	}
	for _, host := range a.record.hosts() {
		if err := s.claim(ctx, tx, host, addressOwner); err != nil {
			return err
		}
	}
	if old.Name == "" || old.Name == a.record.Name {
		return nil
	}
	twin, revision, err := get[record](ctx, s, a.twin, a.what)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if twin.Name != old.Name {
		tx.At(a.twin, revision).Delete(nameKey(old.Name))
	}
	return nil
}

// claim adds to a change what it takes that owner has name.
func (s *Store) claim(ctx context.Context, tx *backend.Txn, name names.NodeName, owner string) error {
	item, err := s.b.Get(ctx, nameKey(name))
	switch {
	case fault.Is(err, fault.NotFound):
		tx.Absent(nameKey(name)).Put(nameKey(name), []byte(owner))
	case err != nil:
		return err
	case string(item.Value) != owner:
		return fault.New(fault.Conflict, "the name %q is taken", name).WithHint("choose another, or remove what has it")
	default:
		tx.At(nameKey(name), item.Revision)
	}
	return nil
}

// conflicting returns the key that made a change fail, or "" when something
// else did or nothing.
func conflicting(err error) string {
	if c, ok := errors.AsType[*backend.ConflictError](err); ok {
		return c.Key
	}
	return ""
}

// useToken adds the use of a token to a change. All refusals read the same to
// who shows the token.
func (s *Store) useToken(ctx context.Context, tx *backend.Txn, id string) error {
	if id == "" {
		return nil
	}
	t, err := s.Token(ctx, id)
	why := s.unusable(t)
	if fault.Is(err, fault.NotFound) {
		why, err = "unknown", nil
	}
	switch {
	case err != nil:
		return err
	case why != "":
		return fault.Wrap(fault.Denied, fmt.Errorf("token %q: %s", id, why), "the join token is not valid")
	}
	t.UsesLeft--
	tx.At(tokenKey(id), t.Revision).Put(tokenKey(id), encode(t), backend.KeepLease())
	return nil
}

// gatewayPort returns the port node id gets and adds what that takes to a
// change: its old one if it still has it, a free one, one of a node that is away
// for too long, or 0.
func (s *Store) gatewayPort(ctx context.Context, tx *backend.Txn, id names.NodeID, old int) (int, error) {
	if old != 0 {
		return old, nil // its record would say otherwise if somebody had got it
	}
	for range portTries {
		port := s.ports.first + rand.IntN(s.ports.count) //nolint:gosec // a choice, not a secret
		_, err := s.b.Get(ctx, s.ports.key(port))
		if fault.Is(err, fault.NotFound) {
			tx.Absent(s.ports.key(port)).Put(s.ports.key(port), []byte(id))
			return port, nil
		}
		if err != nil {
			return 0, err
		}
	}
	items, _, err := s.b.List(ctx, dirPort)
	if err != nil {
		return 0, err
	}
	taken := make(map[string]bool, len(items))
	for _, item := range items {
		taken[item.Key] = true
	}
	for port := s.ports.first; port < s.ports.first+s.ports.count; port++ {
		if key := s.ports.key(port); !taken[key] {
			tx.Absent(key).Put(key, []byte(id))
			return port, nil
		}
	}
	return s.reclaimPort(ctx, tx, id, items)
}

// reclaimPort takes a port from a node that was away for too long.
func (s *Store) reclaimPort(ctx context.Context, tx *backend.Txn, id names.NodeID, items []backend.Item) (int, error) {
	present, err := s.ids(ctx, dirOf(KindPresence))
	if err != nil {
		return 0, err
	}
	for _, item := range items {
		owner := names.NodeID(item.Value)
		if owner == id || present[owner] {
			continue
		}
		seen, revision, err := get[time.Time](ctx, s, seenKey(owner), KindNode)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		if s.now().Sub(seen) < defaults.GatewayPortTTL {
			continue
		}
		n, err := s.Node(ctx, owner)
		if err == nil && n.Address != "" {
			continue // it does not dial home and is never seen
		}
		tx.At(seenKey(owner), revision).At(item.Key, item.Revision).Put(item.Key, []byte(id))
		if err == nil {
			n.GatewayPort = 0
			tx.At(nodeKey(owner), n.Revision).Put(nodeKey(owner), encode(n))
		} else if !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		return strconv.Atoi(lastName(item.Key))
	}
	return 0, nil
}

// Node returns the node, or [fault.NotFound].
func (s *Store) Node(ctx context.Context, id names.NodeID) (Node, error) {
	n, revision, err := get[Node](ctx, s, nodeKey(id), KindNode)
	if err != nil {
		return Node{}, err
	}
	n.Revision = revision
	n.LastSeen, _, err = get[time.Time](ctx, s, seenKey(id), KindNode)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return n, err
}

// Nodes returns all nodes, by name.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	nodes, err := list(ctx, s, dirOf(KindNode), func(n *Node, revision int64) { n.Revision = revision })
	if err != nil {
		return nil, err
	}
	items, _, err := s.b.List(ctx, dirSeen)
	if err != nil {
		return nil, err
	}
	seen := make(map[names.NodeID]time.Time, len(items))
	for _, item := range items {
		if seen[names.NodeID(lastName(item.Key))], err = decode[time.Time](item); err != nil {
			return nil, err
		}
	}
	for i := range nodes {
		nodes[i].LastSeen = seen[nodes[i].ID]
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return nodes, nil
}

// UpdateNode replaces the node at n.Revision; [fault.Conflict] when it changed,
// [fault.NotFound] when it is gone. Its name and its port stay: those change
// with [Store.AdmitNode] only. Nothing is written where nothing changes.
func (s *Store) UpdateNode(ctx context.Context, n Node) (Node, error) {
	if err := n.check(); err != nil {
		return Node{}, err
	}
	old, err := s.Node(ctx, n.ID)
	if err != nil {
		return Node{}, err
	}
	if old.Revision != n.Revision {
		return Node{}, changed(KindNode, string(n.Name))
	}
	n.Name, n.GatewayPort = old.Name, old.GatewayPort
	value := encode(n)
	if bytes.Equal(value, encode(old)) {
		return old, nil
	}
	n.Revision, err = s.update(ctx, nodeKey(n.ID), KindNode, s.b.Txn().At(nodeKey(n.ID), n.Revision).Put(nodeKey(n.ID), value))
	return n, err
}

// PinHostKey puts the host key of a plain sshd node on record that has none.
// Where it is on record already nothing changes; another one is a
// [fault.Conflict]. It returns [fault.NotFound] when the node is gone.
func (s *Store) PinHostKey(ctx context.Context, id names.NodeID, hostKey string) (Node, error) {
	parsed, _, err := parseKey(hostKey)
	if err != nil {
		return Node{}, err
	}
	line := publicLine(parsed)
	for {
		n, err := s.Node(ctx, id)
		switch {
		case err != nil:
			return Node{}, err
		case slices.Contains(n.HostKeys, line):
			return n, nil
		case len(n.HostKeys) > 0:
			return Node{}, fault.New(fault.Conflict, "node %q has another host key on record", n.Name)
		}
		n.HostKeys = []string{line}
		if n, err = s.UpdateNode(ctx, n); !fault.Is(err, fault.Conflict) {
			return n, err
		}
	}
}

// DeleteNode removes the node and frees its name and its port, or returns
// [fault.NotFound].
func (s *Store) DeleteNode(ctx context.Context, id names.NodeID) error {
	for {
		n, err := s.Node(ctx, id)
		if err != nil {
			return err
		}
		tx := s.b.Txn().At(nodeKey(id), n.Revision).Delete(nodeKey(id)).Delete(seenKey(id))
		gone := admission{twin: memberKey(id), what: KindNode, id: id}
		if err := s.rename(ctx, tx, gone, record{Name: n.Name}); err != nil {
			return err
		}
		if n.GatewayPort != 0 {
			tx.Delete(s.ports.key(n.GatewayPort))
		}
		if _, err = tx.Commit(ctx); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

// Member returns the proxy or authority, or [fault.NotFound].
func (s *Store) Member(ctx context.Context, id names.NodeID) (Member, error) {
	m, revision, err := get[Member](ctx, s, memberKey(id), KindMember)
	m.Revision = revision
	return m, err
}

// Members returns all proxies and authorities, by id.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	return list(ctx, s, dirOf(KindMember), func(m *Member, revision int64) { m.Revision = revision })
}

// DeleteMember removes the proxy or authority and frees its name, or returns
// [fault.NotFound].
func (s *Store) DeleteMember(ctx context.Context, id names.NodeID) error {
	for {
		m, err := s.Member(ctx, id)
		if err != nil {
			return err
		}
		tx := s.b.Txn().At(memberKey(id), m.Revision).Delete(memberKey(id))
		gone := admission{twin: nodeKey(id), what: KindMember, id: id}
		if err := s.rename(ctx, tx, gone, record{Name: m.Name}); err != nil {
			return err
		}
		if _, err = tx.Commit(ctx); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}
