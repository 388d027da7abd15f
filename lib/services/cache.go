package services

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// Cache is a copy of the policy, which decisions read and a policy stream keeps
// up to date. It is safe for concurrent use; look-ups allocate nothing. The
// values it returns are shared: do not change them.
//
// A policy that is told as a whole replaces the copy at once when the last of it
// has come. Until then, and while the stream is away, the copy is what it was:
// nobody ever decides by half a policy, in which an allow rule may be there
// already and a deny rule not yet. An empty Cache knows and trusts nobody.
type Cache struct {
	mu        sync.RWMutex
	current   *policy
	incoming  *policy       // nil unless a whole policy is coming in
	revision  uint64        // counts decisive changes of current
	version   uint64        // counts those that a snapshot keeps
	changed   chan struct{} // closed at the next change
	synced    chan struct{} // closed when a whole policy has come in
	hasSynced bool
	saved     snapshotOf // the newest one

	heard   time.Time   // when a stream last said anything
	silence *time.Timer // tells when it has said nothing for too long; nil until it has once
}

// NewCache returns an empty Cache.
func NewCache() *Cache {
	return &Cache{current: newPolicy(), changed: make(chan struct{}), synced: make(chan struct{})}
}

// Apply makes the changes of an update, all of them or, with an error, none. One
// without any says that the policy is still the same.
func (c *Cache) Apply(u *accessdv1.PolicyUpdate) error { return c.apply(u, true) }

// apply makes the changes of an update that is news, or is from a snapshot.
func (c *Cache) apply(u *accessdv1.PolicyUpdate, news bool) error {
	list, err := changes(u)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if news {
		c.hearLocked()
	}
	if len(list) == 0 && !u.GetReset_() && !u.GetSynced() {
		return nil
	}
	if u.GetReset_() {
		c.incoming = newPolicy()
	}
	target, most := c.current, fleeting
	if c.incoming != nil {
		target = c.incoming
	}
	for _, ch := range list {
		ch.apply(target)
		most = max(most, ch.effect)
	}
	switch {
	case c.incoming == nil:
		c.tellLocked(most)
	case u.GetSynced():
		c.current, c.incoming = c.incoming, nil
		c.tellLocked(decisive)
	}
	if u.GetSynced() && !c.hasSynced {
		c.hasSynced = true
		close(c.synced)
	}
	return nil
}

// tellLocked tells that the current copy has changed.
func (c *Cache) tellLocked(most effect) {
	if most >= decisive {
		c.revision++
	}
	if most >= kept {
		c.version++
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Source makes a policy stream, as [Store.Watch] does with its kinds bound, and
// returns when the stream ends.
type Source func(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error

// How long Run waits before it asks a source again; after healthyAfter the
// waiting begins anew.
const (
	minRetry     = 100 * time.Millisecond
	maxRetry     = 30 * time.Second
	healthyAfter = time.Minute
)

// Run keeps the copy up to date from a source, which it asks again with growing
// pauses when the stream ends, until ctx ends; then it returns nil. A source logs
// its own troubles.
func (c *Cache) Run(ctx context.Context, source Source) error {
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		begin := time.Now()
		_ = source(ctx, c.Apply) // says no more than that it is time to ask again
		if time.Since(begin) > healthyAfter {
			retry = minRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry/2 + rand.N(retry/2)): //nolint:gosec // spreads load, keeps no secret
		}
	}
}

// lookup finds one value under the lock.
func lookup[K comparable, V any](c *Cache, in func(*policy) map[K]V, key K) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := in(c.current)[key]
	return v, ok
}

// sorted returns all values, in the order of less's keys.
func sorted[K comparable, V any](c *Cache, in func(*policy) map[K]V, key func(V) string) []V {
	c.mu.RLock()
	out := slices.Collect(maps.Values(in(c.current)))
	c.mu.RUnlock()
	slices.SortFunc(out, func(a, b V) int { return strings.Compare(key(a), key(b)) })
	return out
}

// Role returns the role of a name.
func (c *Cache) Role(name names.RoleName) (Role, bool) {
	return lookup(c, func(p *policy) map[names.RoleName]Role { return p.roles }, name)
}

// Roles returns all roles, by name.
func (c *Cache) Roles() []Role {
	return sorted(c, func(p *policy) map[names.RoleName]Role { return p.roles }, func(r Role) string { return string(r.Name) })
}

// User returns the user of a name.
func (c *Cache) User(name names.UserName) (User, bool) {
	return lookup(c, func(p *policy) map[names.UserName]User { return p.users }, name)
}

// UserByKey returns the user for whom the public key with a fingerprint
// ("SHA256:…") is enrolled. To have proven that key is worth no more than the
// user's roles say.
func (c *Cache) UserByKey(fingerprint string) (User, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	u, ok := c.current.users[c.current.byKey[fingerprint]]
	return u, ok
}

// Users returns all users, by name.
func (c *Cache) Users() []User {
	return sorted(c, func(p *policy) map[names.UserName]User { return p.users }, func(u User) string { return string(u.Name) })
}

// Node returns the node of an id.
func (c *Cache) Node(id names.NodeID) (Node, bool) {
	return lookup(c, func(p *policy) map[names.NodeID]Node { return p.nodes }, id)
}

// NodeByName returns the node of a name.
func (c *Cache) NodeByName(name names.NodeName) (Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, ok := c.current.nodes[c.current.byName[name]]
	return n, ok
}

// NodeByPort returns the node that has a gateway port.
func (c *Cache) NodeByPort(port int) (Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, ok := c.current.nodes[c.current.byPort[port]]
	return n, ok
}

// maxMatches bounds the names in the answer to a query that is not clear.
const maxMatches = 10

// FindNode returns the node that a person means by its name, its id, or labels
// as in "env=dev,team=db" when one visible node alone has them. Those that are not
// visible (nil: all are) are as if they were not there. It returns
// [fault.NotFound], and [fault.Conflict] with the names when labels match several.
func (c *Cache) FindNode(query string, visible func(Node) bool) (Node, error) {
	if visible == nil {
		visible = func(Node) bool { return true }
	}
	if strings.Contains(query, "=") { // neither a name nor an id has one
		return c.findByLabels(query, visible)
	}
	n, ok := c.NodeByName(names.NodeName(query))
	if !ok {
		n, ok = c.Node(names.NodeID(query))
	}
	if !ok || !visible(n) {
		return Node{}, fault.New(fault.NotFound, "no node named %q", clip(query))
	}
	return n, nil
}

func (c *Cache) findByLabels(query string, visible func(Node) bool) (Node, error) {
	labels, err := names.ParseLabels(query)
	if err != nil {
		return Node{}, err
	}
	var found []Node
	for _, n := range c.Nodes() {
		if n.has(labels) && visible(n) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return Node{}, fault.New(fault.NotFound, "no node has the labels %q", clip(query))
	case 1:
		return found[0], nil
	}
	var list []string
	for _, n := range found[:min(len(found), maxMatches)] {
		list = append(list, string(n.Name))
	}
	if more := len(found) - maxMatches; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return Node{}, fault.New(fault.Conflict, "%d nodes have the labels %q: %s", len(found), clip(query), strings.Join(list, ", "))
}

// Nodes returns all nodes, by name.
func (c *Cache) Nodes() []Node {
	return sorted(c, func(p *policy) map[names.NodeID]Node { return p.nodes }, func(n Node) string { return string(n.Name) })
}

// Elevation returns what the approved access request of an id gives. Whether its
// time is over is not looked at: it goes away, and certificates that name it end.
func (c *Cache) Elevation(id string) (Elevation, bool) {
	return lookup(c, func(p *policy) map[string]Elevation { return p.elevated }, id)
}

// Member returns the proxy or authority of an id, up or not.
func (c *Cache) Member(id names.NodeID) (Member, bool) {
	return lookup(c, func(p *policy) map[names.NodeID]Member { return p.members }, id)
}

// Members returns all proxies and authorities, up or not, by id.
func (c *Cache) Members() []Member {
	return sorted(c, func(p *policy) map[names.NodeID]Member { return p.members }, func(m Member) string { return string(m.ID) })
}

// Presence returns the proxies that hold a tunnel to a node, sorted.
func (c *Cache) Presence(node names.NodeID) []names.NodeID {
	proxies, _ := lookup(c, func(p *policy) map[names.NodeID][]names.NodeID { return p.presence }, node)
	return proxies
}

// Proxy returns the proxy of an id, if it is up.
func (c *Cache) Proxy(id names.NodeID) (Proxy, bool) {
	return lookup(c, func(p *policy) map[names.NodeID]Proxy { return p.proxies }, id)
}

// Proxies returns the proxies that are up, by id.
func (c *Cache) Proxies() []Proxy {
	return sorted(c, func(p *policy) map[names.NodeID]Proxy { return p.proxies }, func(x Proxy) string { return string(x.ID) })
}

// Trust returns the public keys of the authorities.
func (c *Cache) Trust() sshca.Trust {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.current.trust
}

// Revision increases with every change of what decisions read: roles, users and
// authorities. Nodes, members, proxies and presences come and go without it.
func (c *Cache) Revision() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// Changed returns a channel that is closed at the next change of anything.
func (c *Cache) Changed() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.changed
}

// Synced returns a channel that is closed once a whole policy has come in, from
// a stream or from a snapshot.
func (c *Cache) Synced() <-chan struct{} { return c.synced }
