package services

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// The keys of the state. What is under live/ is exactly what policy streams
// carry, public to the members; everything else never leaves the authority.
//
//	live/policy/role/NAME      live/fleet/node/ID
//	live/policy/user/NAME      live/fleet/member/ID
//	live/policy/ca/TYPE        live/fleet/proxy/ID              with the proxy's lease
//	live/policy/settings/NAME  live/fleet/presence/PROXY/NODE   with the proxy's lease
//	live/policy/lock/ID        with a lease that outlives the lock
//	live/policy/elevation/ID   with a lease that ends with it
//
//	credential/NAME      a user's credentials
//	token/ID             with a lease that outlives the token
//	ca/TYPE              an authority with its sealed keys
//	standing/KIND/ID     what a member last got from the authorities
//	holder/KEY/USER      until when a user has certificates of an authority's key
//	key/FINGERPRINT      the user for whom a public key is enrolled; "_" is for "/"
//	passkey/HASH         the user whose passkey has the id; passkeys: there are any
//	name/NAME            the id of the node or member that has the name
//	port/NUMBER          the id of the node that has the gateway port
//	seen/ID              when a node was last seen
//	announcer/PROXY      the lease of a proxy, with that lease
//	session/ID           the live sessions a member serves, with a lease
//	instruction/ID/UUID  what a member is asked to do, with a lease
//	recording/SESSION    what is known of a recording
//	part/SESSION/N       sizes and digests of a recording's parts, 64 in each
//	part/SESSION/end     there when the recording is complete
//	retired/ID           an authority that is gone for good
//	request/ID           an access request; with a lease once it has ended
//	apitoken/ID          a token for calls over HTTPS, with a lease that ends with it
//	apitokens/USER       the ids of a user's
//	challenges/USER      those with which security keys were enrolled lately, with a lease
//	guess/GATE/N         a counter of failed sign-ins, with a lease
//	requester/USER       changes with every access request of a user's
//	cluster, serial, guess-key
const (
	dirLive        = "live/"
	dirPolicy      = dirLive + "policy/"
	dirFleet       = dirLive + "fleet/"
	dirCredential  = "credential/" //nolint:gosec // a directory's name, no secret
	dirToken       = "token/"
	dirCA          = "ca/"
	dirStanding    = "standing/"
	dirHolder      = "holder/"
	dirKey         = "key/"
	dirName        = "name/"
	dirPort        = "port/"
	dirSeen        = "seen/"
	dirAnnouncer   = "announcer/"
	dirSession     = "session/"
	dirInstruction = "instruction/"
	dirRecording   = "recording/"
	dirPart        = "part/"
	dirRetired     = "retired/"
	dirRequest     = "request/"
	dirRequester   = "requester/"
	dirAPIToken    = "apitoken/"
	dirAPITokens   = "apitokens/"
	dirChallenges  = "challenges/"
	dirGuess       = "guess/"
	keyGuessKey    = "guess-key"
	keyCluster     = "cluster"
	keySerial      = "serial"
)

// dirOf returns the directory of a kind on policy streams.
func dirOf(kind string) string {
	switch kind {
	case KindRole, KindUser, KindCA, KindSettings, KindLock, KindElevation:
		return dirPolicy + kind + "/"
	}
	return dirFleet + kind + "/"
}

// Store keeps the resources of a cluster. Several processes may use one state at
// the same time: what a method promises holds for all of them together.
//
// A method that changes a resource checks it first. Those that return the
// resource return it with its new revision. Errors are [fault.NotFound],
// [fault.Conflict] and [fault.BadInput] as documented, and [fault.Unavailable]
// when the state store does not answer; then the change may have happened.
type Store struct {
	b       *backend.Backend
	now     func() time.Time
	ports   portRange
	serials chan serialBlock // holds the one block in use

	guessLeases chan guessLease // holds the one in use
}

// NewStore returns a Store on b. now is the clock of expiry; nil means time.Now.
func NewStore(b *backend.Backend, now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	s := &Store{
		b: b, now: now, ports: portRange{firstGatewayPort, gatewayPorts},
		serials: make(chan serialBlock, 1), guessLeases: make(chan guessLease, 1),
	}
	s.serials <- serialBlock{}
	s.guessLeases <- guessLease{}
	return s
}

// encode returns v as it is stored.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("services: internal error: encode %T: %v", v, err)) // plain data only
	}
	return data
}

// decode reads what encode made.
func decode[T any](item backend.Item) (T, error) {
	var v T
	if err := json.Unmarshal(item.Value, &v); err != nil {
		return v, fault.New(fault.Internal, "the stored %q is damaged: %w", item.Key, err)
	}
	return v, nil
}

// get reads the resource under key. It is NotFound as "no WHAT NAME".
func get[T any](ctx context.Context, s *Store, key, what string) (T, int64, error) {
	item, err := s.b.Get(ctx, key)
	if err != nil {
		var none T
		return none, 0, missing(err, what, key)
	}
	v, err := decode[T](item)
	return v, item.Revision, err
}

// list reads all resources in dir, by key; stamp puts in their revisions.
func list[T any](ctx context.Context, s *Store, dir string, stamp func(v *T, revision int64)) ([]T, error) {
	items, _, err := s.b.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	out := make([]T, len(items))
	for i, item := range items {
		if out[i], err = decode[T](item); err != nil {
			return nil, err
		}
		if stamp != nil {
			stamp(&out[i], item.Revision)
		}
	}
	return out, nil
}

// missing says a NotFound in the words of who asked.
func missing(err error, what, key string) error {
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	return fault.New(fault.NotFound, "no %s named %q", what, lastName(key))
}

// lastName returns the last part of a key: the resource's own name.
func lastName(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

// update replaces the resource under key at revision. When it is not at it,
// that is NotFound or Conflict.
func (s *Store) update(ctx context.Context, key, what string, tx *backend.Txn) (int64, error) {
	revision, err := tx.Commit(ctx)
	if !fault.Is(err, fault.Conflict) {
		return revision, err
	}
	if _, err := s.b.Get(ctx, key); err != nil {
		return 0, missing(err, what, key)
	}
	return 0, changed(what, lastName(key))
}

func changed(what, name string) error {
	return fault.New(fault.Conflict, "%s %q has changed meanwhile", what, name).WithHint("try again")
}

// CreateCluster names the cluster, or returns [fault.Conflict] when it has a
// name already.
func (s *Store) CreateCluster(ctx context.Context, c Cluster) error {
	if _, err := s.b.Create(ctx, keyCluster, encode(c)); err != nil {
		return exists(err, "cluster", c.Name)
	}
	return nil
}

// exists says a Conflict in the words of who asked.
func exists(err error, what, name string) error {
	if !fault.Is(err, fault.Conflict) {
		return err
	}
	return fault.New(fault.Conflict, "%s %q exists already", what, name)
}

// Cluster returns the cluster, or [fault.NotFound] before it is created.
func (s *Store) Cluster(ctx context.Context) (Cluster, error) {
	c, _, err := get[Cluster](ctx, s, keyCluster, "cluster")
	return c, err
}

// checkCA refuses authorities this package does not know.
func checkCA(ca CA) error {
	switch ca.Type {
	case sshca.TypeUser, sshca.TypeHost, sshca.TypeNode, sshca.TypeSSHD, AuditCA:
		return nil
	}
	return fault.New(fault.BadInput, "no certificate authority is of type %q", ca.Type)
}

// caTxn returns the change that puts ca where it is at ca.Revision, and its
// public view beside it.
func (s *Store) caTxn(ca CA) *backend.Txn {
	key := dirCA + string(ca.Type)
	tx := s.b.Txn().At(key, ca.Revision).Put(key, encode(ca))
	if ca.Type != AuditCA { // trusted by nobody for anything
		tx.Put(dirOf(KindCA)+string(ca.Type), encode(ca.Public()))
	}
	return tx
}

// CreateCA keeps a new authority, or returns [fault.Conflict] when there is one
// of its type.
func (s *Store) CreateCA(ctx context.Context, ca CA) error {
	if err := checkCA(ca); err != nil {
		return err
	}
	ca.Revision = 0
	if _, err := s.caTxn(ca).Commit(ctx); err != nil {
		return exists(err, "certificate authority", string(ca.Type))
	}
	return nil
}

// CA returns the authority of a type with its sealed keys, or [fault.NotFound].
func (s *Store) CA(ctx context.Context, t sshca.Type) (CA, error) {
	ca, revision, err := get[CA](ctx, s, dirCA+string(t), "certificate authority")
	ca.Revision = revision
	return ca, err
}

// UpdateCA replaces an authority at ca.Revision.
func (s *Store) UpdateCA(ctx context.Context, ca CA) (CA, error) {
	if err := checkCA(ca); err != nil {
		return CA{}, err
	}
	revision, err := s.update(ctx, dirCA+string(ca.Type), "certificate authority", s.caTxn(ca))
	ca.Revision = revision
	return ca, err
}

// serialBlock is a range of serial numbers that nobody else gives out.
type serialBlock struct{ next, end uint64 }

// serialsAtOnce is how many serial numbers are reserved with one write. Those
// left when the process ends are never used.
const serialsAtOnce = 256

// Serial returns a certificate serial number that was never returned before.
func (s *Store) Serial(ctx context.Context) (uint64, error) {
	select {
	case b := <-s.serials:
		defer func() { s.serials <- b }()
		if b.next == b.end {
			first, err := s.b.NextSequence(ctx, keySerial, serialsAtOnce)
			if err != nil {
				return 0, err
			}
			b = serialBlock{first, first + serialsAtOnce}
		}
		b.next++
		return b.next - 1, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
