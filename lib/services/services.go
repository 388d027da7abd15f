// Package services holds the resources of a cluster: their types and grammar,
// the [Store] that keeps them, and the [Cache] that decisions read.
//
// The resources are users with their credentials, roles, join tokens, nodes,
// members (proxies and authorities), certificate authorities, and three that live only as long as
// somebody keeps them alive: proxies, presences (which proxy holds a tunnel to
// which node) and live sessions.
//
// Only the authority has a Store. Everybody else, and every decision of the
// authority itself, reads a Cache, which follows a stream of
// [accessdv1.PolicyUpdate]: [Store.Watch] makes that stream, and the authority
// passes each member the part it may see. The stream carries public views only;
// password hashes, second factors, sealed keys and token secrets have keys of
// their own or are cut off on the way out, so they cannot be on it.
//
// [ParseRoles] reads the YAML in which people write roles. It is strict: what it
// does not know is an error with a line number, and all errors come at once.
//
// Values that a function of this package returns are never changed by it
// afterwards. Those that a Cache returns are shared: do not change them.
package services

// The kinds of resources on a policy stream, as [accessdv1.ResourceKey] names
// them.
const (
	KindRole     = "role"
	KindUser     = "user"
	KindCA       = "ca"
	KindNode     = "node"     // accessd and sshd nodes
	KindMember   = "member"   // admitted proxies and authorities
	KindPresence = "presence" // a proxy's tunnel to a node, named PROXY/NODE
	KindProxy    = "proxy"    // a proxy that is up
	KindSettings = "settings" // what the authority tells every member; see [RecordingSettings]
)

// vocabulary is the one list of words that rules may use; "*" means every one.
// It returns copies, so that nobody can change it.
func vocabulary() (actions, resources, verbs []string) {
	actions = []string{"shell", "exec", "sftp:read", "sftp:write", "forward:local", "forward:remote", "forward:agent", "x11", "join"}
	resources = []string{"users", "roles", "tokens", "nodes", "sessions", "audit", "ca", "recordings", "requests", "locks", "connectors"}
	verbs = []string{"read", "create", "update", "delete", "kill", "sign", "hold"}
	return actions, resources, verbs
}

// wildcard stands for every action, resource, verb or label value in its place.
const wildcard = "*"

// Actions returns the actions a rule may name.
func Actions() []string {
	actions, _, _ := vocabulary()
	return actions
}

// Resources returns the resources a rule may name.
func Resources() []string {
	_, resources, _ := vocabulary()
	return resources
}

// Verbs returns what a rule may let somebody do with a resource.
func Verbs() []string {
	_, _, verbs := vocabulary()
	return verbs
}

// kinds lists every kind of a policy stream.
func kinds() []string {
	return []string{KindRole, KindUser, KindCA, KindNode, KindMember, KindPresence, KindProxy, KindSettings, KindElevation, KindLock}
}
