package services

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// policy is one copy of the resources a stream carries.
type policy struct {
	roles    map[names.RoleName]Role
	users    map[names.UserName]User
	cas      map[sshca.Type]CA
	nodes    map[names.NodeID]Node
	members  map[names.NodeID]Member
	proxies  map[names.NodeID]Proxy
	settings map[string]RecordingSettings
	presence map[names.NodeID][]names.NodeID // of a node: its proxies, sorted; slices are replaced, not changed
	locks    locks
	elevated map[string]Elevation // by the request's id

	byName map[names.NodeName]names.NodeID
	byPort map[int]names.NodeID
	byKey  map[string]names.UserName // by fingerprint
	trust  sshca.Trust               // of cas
}

func newPolicy() *policy {
	return &policy{
		roles: map[names.RoleName]Role{}, users: map[names.UserName]User{}, cas: map[sshca.Type]CA{},
		nodes: map[names.NodeID]Node{}, members: map[names.NodeID]Member{}, proxies: map[names.NodeID]Proxy{},
		settings: map[string]RecordingSettings{}, presence: map[names.NodeID][]names.NodeID{},
		byName: map[names.NodeName]names.NodeID{}, byPort: map[int]names.NodeID{}, byKey: map[string]names.UserName{},
		locks: newLocks(), elevated: map[string]Elevation{},
	}
}

// change is a checked change of one resource, ready to be made.
type change struct {
	apply  func(*policy)
	effect effect
}

// effect says what a change matters to; each includes those before.
type effect uint8

const (
	fleeting effect = iota // true while somebody keeps it alive
	kept                   // belongs into a snapshot
	decisive               // decisions read it
)

// changes checks a whole update. A kind this version does not know is passed
// over; it cannot be about what this version decides.
func changes(u *accessdv1.PolicyUpdate) ([]change, error) {
	out := make([]change, 0, len(u.GetPut())+len(u.GetRemove()))
	for _, r := range u.GetPut() {
		c, err := putChange(r)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	for _, k := range u.GetRemove() {
		out = append(out, removeChange(k))
	}
	return out, nil
}

// parsed reads a resource and checks that it is what its key says.
func parsed[T any](r *accessdv1.Resource, name func(T) string) (T, error) {
	var v T
	k := r.GetKey()
	if err := json.Unmarshal(r.GetJson(), &v); err != nil {
		return v, fault.New(fault.BadInput, "policy: %s %q: %w", k.GetKind(), k.GetName(), err)
	}
	if got := name(v); got != k.GetName() {
		return v, fault.New(fault.BadInput, "policy: %s %q holds %q", k.GetKind(), k.GetName(), got)
	}
	return v, nil
}

func putChange(r *accessdv1.Resource) (change, error) {
	revision := r.GetRevision()
	switch r.GetKey().GetKind() {
	case KindRole:
		v, err := parsed(r, func(v Role) string { return string(v.Name) })
		v.Revision = revision
		return change{func(p *policy) { p.roles[v.Name] = v }, decisive}, err
	case KindUser:
		v, err := parsed(r, func(v User) string { return string(v.Name) })
		v.Revision = revision
		return change{func(p *policy) { p.putUser(v) }, decisive}, err
	case KindCA:
		return putCA(r)
	case KindNode:
		v, err := parsed(r, func(v Node) string { return string(v.ID) })
		v.Revision = revision
		return change{func(p *policy) { p.putNode(v) }, kept}, err
	case KindMember:
		v, err := parsed(r, func(v Member) string { return string(v.ID) })
		v.Revision = revision
		return change{func(p *policy) { p.members[v.ID] = v }, kept}, err
	case KindProxy:
		v, err := parsed(r, func(v Proxy) string { return string(v.ID) })
		v.Revision = revision
		return change{func(p *policy) { p.proxies[v.ID] = v }, fleeting}, err
	case KindPresence:
		v, err := parsed(r, func(v Presence) string { return string(v.Proxy) + "/" + string(v.Node) })
		return change{func(p *policy) { p.putPresence(v.Node, v.Proxy) }, fleeting}, err
	case KindSettings:
		return putSettings(r)
	case KindElevation:
		v, err := parsed(r, func(v Elevation) string { return v.ID })
		v.Revision = revision
		return change{func(p *policy) { p.elevated[v.ID] = v }, decisive}, err
	case KindLock:
		v, err := parsed(r, func(v Lock) string { return string(v.ID) })
		v.Revision = revision
		return change{func(p *policy) { p.locks.put(v) }, decisive}, err
	}
	return change{func(*policy) {}, fleeting}, nil
}

func putCA(r *accessdv1.Resource) (change, error) {
	ca, err := ParseCA(r)
	if err != nil {
		return change{}, err
	}
	return change{func(p *policy) {
		p.cas[ca.Type] = ca
		p.trust = p.newTrust()
	}, decisive}, nil
}

func publicKey(k CAKey) (ssh.PublicKey, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.Public))
	return key, err
}

func removeChange(k *accessdv1.ResourceKey) change {
	name := k.GetName()
	switch k.GetKind() {
	case KindRole:
		return change{func(p *policy) { delete(p.roles, names.RoleName(name)) }, decisive}
	case KindUser:
		return change{func(p *policy) { p.removeUser(names.UserName(name)) }, decisive}
	case KindCA:
		return change{func(p *policy) {
			delete(p.cas, sshca.Type(name))
			p.trust = p.newTrust()
		}, decisive}
	case KindNode:
		return change{func(p *policy) { p.removeNode(names.NodeID(name)) }, kept}
	case KindMember:
		return change{func(p *policy) { delete(p.members, names.NodeID(name)) }, kept}
	case KindProxy:
		return change{func(p *policy) { delete(p.proxies, names.NodeID(name)) }, fleeting}
	case KindSettings:
		return change{func(p *policy) { delete(p.settings, name) }, kept}
	case KindElevation:
		return change{func(p *policy) { delete(p.elevated, name) }, decisive}
	case KindLock:
		return change{func(p *policy) { p.locks.remove(LockID(name)) }, decisive}
	case KindPresence:
		proxy, node, _ := strings.Cut(name, "/")
		return change{func(p *policy) { p.removePresence(names.NodeID(node), names.NodeID(proxy)) }, fleeting}
	}
	return change{func(*policy) {}, fleeting}
}

// newTrust returns the keys of all authorities, whose lines were checked.
func (p *policy) newTrust() sshca.Trust {
	keysOf := func(t sshca.Type) []ssh.PublicKey {
		var out []ssh.PublicKey
		for _, k := range p.cas[t].Keys {
			if key, err := publicKey(k); err == nil {
				out = append(out, key)
			}
		}
		return out
	}
	return sshca.Trust{
		User: keysOf(sshca.TypeUser), Host: keysOf(sshca.TypeHost),
		Node: keysOf(sshca.TypeNode), SSHD: keysOf(sshca.TypeSSHD),
	}
}

func (p *policy) putUser(u User) {
	p.removeUser(u.Name)
	p.users[u.Name] = u
	for _, k := range u.Keys {
		p.byKey[k.Fingerprint] = u.Name
	}
}

func (p *policy) removeUser(name names.UserName) {
	for _, k := range p.users[name].Keys {
		if p.byKey[k.Fingerprint] == name { // else it is enrolled for another since
			delete(p.byKey, k.Fingerprint)
		}
	}
	delete(p.users, name)
}

func (p *policy) putNode(n Node) {
	p.removeNode(n.ID)
	p.nodes[n.ID] = n
	p.byName[n.Name] = n.ID
	if n.GatewayPort != 0 {
		p.byPort[n.GatewayPort] = n.ID
	}
}

func (p *policy) removeNode(id names.NodeID) {
	old, ok := p.nodes[id]
	if !ok {
		return
	}
	delete(p.nodes, id)
	if p.byName[old.Name] == id { // else another node has got it since
		delete(p.byName, old.Name)
	}
	if p.byPort[old.GatewayPort] == id {
		delete(p.byPort, old.GatewayPort)
	}
}

func (p *policy) putPresence(node, proxy names.NodeID) {
	old := p.presence[node]
	if i, found := slices.BinarySearch(old, proxy); !found {
		p.presence[node] = slices.Insert(slices.Clone(old), i, proxy)
	}
}

func (p *policy) removePresence(node, proxy names.NodeID) {
	left := slices.DeleteFunc(slices.Clone(p.presence[node]), func(id names.NodeID) bool { return id == proxy })
	if len(left) == 0 {
		delete(p.presence, node)
		return
	}
	p.presence[node] = left
}

// durable returns a copy of what is true without anybody keeping it alive.
func (p *policy) durable() *policy {
	return &policy{
		roles: maps.Clone(p.roles), users: maps.Clone(p.users), cas: maps.Clone(p.cas),
		nodes: maps.Clone(p.nodes), members: maps.Clone(p.members), settings: maps.Clone(p.settings),
		locks: locks{byID: maps.Clone(p.locks.byID)}, elevated: maps.Clone(p.elevated),
	}
}

// resources returns a durable policy as a stream carries it, by kind and name.
func (p *policy) resources() []*accessdv1.Resource {
	out := appendResources(nil, KindRole, p.roles, func(v Role) int64 { return v.Revision })
	out = appendResources(out, KindUser, p.users, func(v User) int64 { return v.Revision })
	out = appendResources(out, KindCA, p.cas, func(v CA) int64 { return v.Revision })
	out = appendResources(out, KindNode, p.nodes, func(v Node) int64 { return v.Revision })
	out = appendResources(out, KindElevation, p.elevated, func(v Elevation) int64 { return v.Revision })
	out = appendResources(out, KindLock, p.locks.byID, func(v Lock) int64 { return v.Revision })
	out = appendResources(out, KindSettings, p.settings, func(v RecordingSettings) int64 { return v.Revision })
	return appendResources(out, KindMember, p.members, func(v Member) int64 { return v.Revision })
}

func appendResources[K ~string, V any](out []*accessdv1.Resource, kind string, all map[K]V, revision func(V) int64) []*accessdv1.Resource {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		v := all[name]
		out = append(out, &accessdv1.Resource{
			Key:  &accessdv1.ResourceKey{Kind: kind, Name: string(name)},
			Json: encode(v), Revision: revision(v),
		})
	}
	return out
}
