package services

import (
	"context"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

var errSoon = fault.New(fault.Unavailable, "being written") // replaced within the hour

// Store keeps the resources of a cluster.
type Store struct{}

// NewStore returns a Store on b. now is the clock of expiry; nil means time.Now.
func NewStore(b *backend.Backend, now func() time.Time) *Store { return &Store{} }

// CreateCluster ... Conflict when it exists.
func (s *Store) CreateCluster(ctx context.Context, c Cluster) error { return errSoon }

// Cluster ...
func (s *Store) Cluster(ctx context.Context) (Cluster, error) { return Cluster{}, errSoon }

// CreateUser creates user and credentials in one transaction; Conflict when the name is taken.
func (s *Store) CreateUser(ctx context.Context, u User, c Credentials) (User, error) {
	return u, errSoon
}

// User ...
func (s *Store) User(ctx context.Context, name names.UserName) (User, error) { return User{}, errSoon }

// Users returns all, sorted by name.
func (s *Store) Users(ctx context.Context) ([]User, error) { return nil, errSoon }

// UpdateUser replaces the user at u.Revision; Conflict when it changed, NotFound when gone.
func (s *Store) UpdateUser(ctx context.Context, u User) (User, error) { return u, errSoon }

// DeleteUser removes the user and its credentials in one transaction.
func (s *Store) DeleteUser(ctx context.Context, name names.UserName) error { return errSoon }

// Credentials ...
func (s *Store) Credentials(ctx context.Context, name names.UserName) (Credentials, error) {
	return Credentials{}, errSoon
}

// UpdateCredentials replaces them at c.Revision; Conflict when they changed, NotFound when the user is gone.
func (s *Store) UpdateCredentials(ctx context.Context, name names.UserName, c Credentials) (Credentials, error) {
	return c, errSoon
}

// Role ...
func (s *Store) Role(ctx context.Context, name names.RoleName) (Role, error) { return Role{}, errSoon }

// Roles returns all, sorted by name.
func (s *Store) Roles(ctx context.Context) ([]Role, error) { return nil, errSoon }

// ApplyRoles writes every role at its Revision (0: it must be new), all or none.
func (s *Store) ApplyRoles(ctx context.Context, roles []Role) error { return errSoon }

// DeleteRole ...
func (s *Store) DeleteRole(ctx context.Context, name names.RoleName) error { return errSoon }

// CreateToken ...
func (s *Store) CreateToken(ctx context.Context, t Token) error { return errSoon }

// Token ...
func (s *Store) Token(ctx context.Context, id string) (Token, error) { return Token{}, errSoon }

// Tokens ...
func (s *Store) Tokens(ctx context.Context) ([]Token, error) { return nil, errSoon }

// DeleteToken ...
func (s *Store) DeleteToken(ctx context.Context, id string) error { return errSoon }

// AdmitNode takes one use of the token (tokenID "": none needed), creates the
// node with its name and a gateway port, or replaces it at n.Revision when that
// is not 0, all in one transaction. Denied: token unknown, used up or expired.
// Conflict: the name is taken or the node changed.
func (s *Store) AdmitNode(ctx context.Context, tokenID string, n Node) (Node, error) {
	return n, errSoon
}

// AdmitMember is AdmitNode for proxies and authorities.
func (s *Store) AdmitMember(ctx context.Context, tokenID string, m Member) (Member, error) {
	return m, errSoon
}

// Node ...
func (s *Store) Node(ctx context.Context, id names.NodeID) (Node, error) { return Node{}, errSoon }

// Nodes returns all, sorted by name.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) { return nil, errSoon }

// UpdateNode replaces the node at n.Revision; its id, name and port cannot change.
func (s *Store) UpdateNode(ctx context.Context, n Node) (Node, error) { return n, errSoon }

// DeleteNode removes the node, its name and its port.
func (s *Store) DeleteNode(ctx context.Context, id names.NodeID) error { return errSoon }

// Member ...
func (s *Store) Member(ctx context.Context, id names.NodeID) (Member, error) {
	return Member{}, errSoon
}

// Members ...
func (s *Store) Members(ctx context.Context) ([]Member, error) { return nil, errSoon }

// DeleteMember ...
func (s *Store) DeleteMember(ctx context.Context, id names.NodeID) error { return errSoon }

// CreateCA ... Conflict when it exists.
func (s *Store) CreateCA(ctx context.Context, ca CA) error { return errSoon }

// CA ... with sealed keys.
func (s *Store) CA(ctx context.Context, t sshca.Type) (CA, error) { return CA{}, errSoon }

// UpdateCA ...
func (s *Store) UpdateCA(ctx context.Context, ca CA) (CA, error) { return ca, errSoon }

// Serial returns a certificate serial number that was never returned before.
func (s *Store) Serial(ctx context.Context) (uint64, error) { return 0, errSoon }

// Announce keeps a proxy's record and presences alive: lease is from the answer
// before, "" at first. NotFound: the lease is gone, announce in full.
func (s *Store) Announce(ctx context.Context, a Announcement) (lease string, ttl time.Duration, err error) {
	return "", 0, errSoon
}

// Announcement is what a proxy tells about itself.
type Announcement struct {
	Proxy    Proxy
	Lease    string
	Full     bool // Up holds every tunnel; what is not in it is gone
	Up, Down []names.NodeID
}

// Presences ...
func (s *Store) Presences(ctx context.Context) ([]Presence, error) { return nil, errSoon }

// Proxies ...
func (s *Store) Proxies(ctx context.Context) ([]Proxy, error) { return nil, errSoon }

// SessionsTTL is how long a node's report of its live sessions lasts.
const SessionsTTL = 2 * time.Minute

// ReportSessions replaces the list of node's live sessions; it is gone after
// SessionsTTL without another report.
func (s *Store) ReportSessions(ctx context.Context, node names.NodeID, list []LiveSession) error {
	return errSoon
}

// Sessions ...
func (s *Store) Sessions(ctx context.Context) ([]LiveSession, error) { return nil, errSoon }

// Session ...
func (s *Store) Session(ctx context.Context, id names.SessionID) (LiveSession, error) {
	return LiveSession{}, errSoon
}

// PutInstruction leaves an instruction for a member for ttl.
func (s *Store) PutInstruction(ctx context.Context, member names.NodeID, in *accessdv1.Instruction, ttl time.Duration) error {
	return errSoon
}

// WatchInstructions calls fn with each instruction for member, those that wait
// first, and forgets it when fn returns nil. It blocks until ctx ends or fn fails.
func (s *Store) WatchInstructions(ctx context.Context, member names.NodeID, fn func(*accessdv1.Instruction) error) error {
	return errSoon
}

// Watch calls fn with the policy: first a reset with everything of the kinds
// asked for (none: all kinds), then synced, then every change in order. It
// blocks until ctx ends or fn fails.
func (s *Store) Watch(ctx context.Context, kinds []string, fn func(*accessdv1.PolicyUpdate) error) error {
	return errSoon
}

// Resource returns ca's public view as it is on a policy stream.
func (ca CA) Resource() *accessdv1.Resource { return nil }

// Cache is a copy of the policy that decisions read.
type Cache struct{}

// NewCache returns an empty Cache, which knows and trusts nobody.
func NewCache() *Cache { return &Cache{} }

// Apply changes the copy. It is all or nothing: an error leaves it as it was.
func (c *Cache) Apply(u *accessdv1.PolicyUpdate) error { return errSoon }

// Source makes a policy stream, as Store.Watch does with the kinds bound, and
// returns when the stream ends.
type Source func(ctx context.Context, fn func(*accessdv1.PolicyUpdate) error) error

// Run keeps the copy up to date from source, starting it again with backoff
// when it ends, until ctx ends.
func (c *Cache) Run(ctx context.Context, source Source) error { return errSoon }

// Role ...
func (c *Cache) Role(name names.RoleName) (Role, bool) { return Role{}, false }

// Roles returns all, sorted by name.
func (c *Cache) Roles() []Role { return nil }

// User ...
func (c *Cache) User(name names.UserName) (User, bool) { return User{}, false }

// Users returns all, sorted by name.
func (c *Cache) Users() []User { return nil }

// Node ...
func (c *Cache) Node(id names.NodeID) (Node, bool) { return Node{}, false }

// NodeByName ...
func (c *Cache) NodeByName(name names.NodeName) (Node, bool) { return Node{}, false }

// NodeByPort ...
func (c *Cache) NodeByPort(port int) (Node, bool) { return Node{}, false }

// Nodes returns all, sorted by name.
func (c *Cache) Nodes() []Node { return nil }

// Presence returns the proxies that hold a tunnel to the node.
func (c *Cache) Presence(node names.NodeID) []names.NodeID { return nil }

// Proxy ...
func (c *Cache) Proxy(id names.NodeID) (Proxy, bool) { return Proxy{}, false }

// Proxies returns those that are up, sorted by id.
func (c *Cache) Proxies() []Proxy { return nil }

// Trust returns the public keys of the authorities.
func (c *Cache) Trust() sshca.Trust { return sshca.Trust{} }

// Revision increases with every change of what decisions read: roles, users
// and authorities. Nodes, presences and proxies coming and going leave it.
func (c *Cache) Revision() uint64 { return 0 }

// Changed returns a channel that is closed at the next change of anything.
func (c *Cache) Changed() <-chan struct{} { return nil }

// Synced returns a channel that is closed once the copy was complete, from a
// stream or from a snapshot.
func (c *Cache) Synced() <-chan struct{} { return nil }

// Save writes a snapshot, durably and at once.
func (c *Cache) Save(path string) error { return errSoon }

// Load reads a snapshot; fs.ErrNotExist when there is none.
func (c *Cache) Load(path string) error { return errSoon }
