package services

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// The keys of connectors and of what signs in through them.
//
//	connector/NAME      a connector with its sealed secret
//	signon/ID/state     a sign-in through a browser, with a lease
//	grace/HASH          a sign-in that is enough for now, with a lease
const (
	dirConnector = "connector/"
	dirSignOn    = "signon/"
	dirGrace     = "grace/"
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

func connectorKey(name ConnectorName) string { return dirConnector + string(name) }

// Connector returns the connector, or [fault.NotFound].
func (s *Store) Connector(ctx context.Context, name ConnectorName) (Connector, error) {
	c, revision, err := get[Connector](ctx, s, connectorKey(name), KindConnector)
	c.Revision = revision
	return c, err
}

// Connectors returns all connectors, by name.
func (s *Store) Connectors(ctx context.Context) ([]Connector, error) {
	return list(ctx, s, dirConnector, func(c *Connector, revision int64) { c.Revision = revision })
}

// ApplyConnectors puts every connector at its Revision, where 0 means that it is
// new; all of them or, with [fault.Conflict], none.
func (s *Store) ApplyConnectors(ctx context.Context, list []Connector) error {
	have, err := s.Connectors(ctx)
	if err != nil {
		return err
	}
	tx, fresh := s.b.Txn(), 0
	for _, c := range list {
		if err := c.Check(); err != nil {
			return err
		}
		if !slices.ContainsFunc(have, func(o Connector) bool { return o.Name == c.Name }) {
			fresh++
		}
		tx.At(connectorKey(c.Name), c.Revision).Put(connectorKey(c.Name), encode(c))
	}
	if len(have)+fresh > maxConnectors {
		return fault.New(fault.BadInput, "%d connectors: want at most %d", len(have)+fresh, maxConnectors)
	}
	_, err = tx.Commit(ctx)
	if key := conflicting(err); key != "" {
		return changed(KindConnector, lastName(key))
	}
	return err
}

// DeleteConnector removes the connector, or returns [fault.NotFound]. Users that
// it made stay, and cannot sign in any more.
func (s *Store) DeleteConnector(ctx context.Context, name ConnectorName) error {
	return missing(s.b.Delete(ctx, connectorKey(name)), KindConnector, string(name))
}

// SignOnState is how far a sign-in through a browser has come. Each state comes
// once, in this order; "refused" may follow any but the last.
type SignOnState string

// The states of a [SignOn].
const (
	SignOnOpen     SignOnState = "open"     // the link is out
	SignOnSent     SignOnState = "sent"     // confirmed, and the browser is at the provider
	SignOnBack     SignOnState = "back"     // the provider's answer is being checked
	SignOnApproved SignOnState = "approved" // for whoever waits to take
	SignOnTaken    SignOnState = "taken"    // the certificate was issued
	SignOnRefused  SignOnState = "refused"
)

// SignOnPurpose is what the person in the browser vouches for.
type SignOnPurpose string

// The purposes of links.
const (
	SignOnLogin  SignOnPurpose = ""       // a sign-in
	SignOnEnrol  SignOnPurpose = "enrol"  // nothing yet: a passkey is made there
	SignOnProve  SignOnPurpose = "prove"  // a change of how they sign in
	SignOnFactor SignOnPurpose = "factor" // one connection, as a second factor
)

// A SignOn is one sign-in through a browser under way, or what else a link is for.
// Its secrets are hashed.
type SignOn struct {
	ID          string         `json:"id"` // made of the link's secret
	Purpose     SignOnPurpose  `json:"purpose,omitempty"`
	State       SignOnState    `json:"state"`
	Connector   ConnectorName  `json:"connector,omitempty"` // "": a passkey only
	User        names.UserName `json:"user"`                // as typed
	Fingerprint string         `json:"fingerprint"`
	Client      string         `json:"client"`         // where the terminal is
	Code        string         `json:"code,omitempty"` // hash of what the terminal shows; empty: a loopback answers instead
	Tries       int            `json:"tries,omitempty"`
	Base        string         `json:"base"`               // where browsers find the proxy
	Loopback    string         `json:"loopback,omitempty"` // URL of a program beside the browser (RFC 8252, section 7.3)
	RP          string         `json:"rp,omitempty"`       // host name that passkeys are asked for; "": none are

	Answer  string      `json:"answer,omitempty"`  // hash of the provider's state parameter
	Browser string      `json:"browser,omitempty"` // hash of the browser's secret
	Receipt string      `json:"receipt,omitempty"` // hash of what the loopback was given
	Origin  *UserOrigin `json:"origin,omitempty"`  // once approved
	MFA     string      `json:"mfa,omitempty"`
	Why     string      `json:"why,omitempty"` // once refused

	Challenge string   `json:"challenge,omitempty"`  // for a passkey; good once
	Handle    []byte   `json:"handle,omitempty"`     // of the user that a passkey is made for
	PasskeyID []byte   `json:"passkey_id,omitempty"` // once approved by a passkey
	Made      *Passkey `json:"made,omitempty"`       // once approved: the new passkey, without a name

	Expires time.Time `json:"expires"`

	Revision int64 `json:"-"`
}

func signOnKey(id string) string { return dirSignOn + id + "/state" }

// CreateSignOn keeps a new sign-in until it expires.
func (s *Store) CreateSignOn(ctx context.Context, o SignOn) (SignOn, error) {
	lease, err := s.b.Grant(ctx, max(o.Expires.Sub(s.now()), time.Second))
	if err != nil {
		return SignOn{}, err
	}
	o.Revision, err = s.b.Create(ctx, signOnKey(o.ID), encode(o), backend.WithLease(lease))
	return o, exists(err, "sign-in", o.ID)
}

// SignOn returns the sign-in, or [fault.NotFound].
func (s *Store) SignOn(ctx context.Context, id string) (SignOn, error) {
	o, revision, err := get[SignOn](ctx, s, signOnKey(id), "sign-in")
	o.Revision = revision
	return o, err
}

// UpdateSignOn replaces the sign-in at o.Revision; [fault.Conflict] when it
// changed, so that nothing of it happens twice.
func (s *Store) UpdateSignOn(ctx context.Context, o SignOn) (SignOn, error) {
	key := signOnKey(o.ID)
	revision, err := s.update(ctx, key, "sign-in", s.b.Txn().At(key, o.Revision).Put(key, encode(o), backend.KeepLease()))
	o.Revision = revision
	return o, err
}

// DeleteSignOn forgets the sign-in, if it is there.
func (s *Store) DeleteSignOn(ctx context.Context, id string) error {
	if err := s.b.Delete(ctx, signOnKey(id)); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

var errSettled = errors.New("settled")

// AwaitSignOn returns the sign-in once it is approved or refused, or as it is
// when ctx ends; [fault.NotFound] once it is gone.
func (s *Store) AwaitSignOn(ctx context.Context, id string) (SignOn, error) {
	_, at, err := s.b.List(ctx, dirSignOn+id+"/")
	if err != nil {
		return SignOn{}, err
	}
	o, err := s.SignOn(ctx, id)
	if err != nil || o.settled() {
		return o, err
	}
	err = s.b.Watch(ctx, dirSignOn+id+"/", at+1, func(events []backend.Event) error {
		for _, e := range events {
			if e.Deleted {
				return fault.New(fault.NotFound, "no sign-in named %q", id)
			}
			if o, err = decode[SignOn](e.Item); err != nil {
				return err
			}
			o.Revision = e.Revision
		}
		if o.settled() {
			return errSettled
		}
		return nil
	})
	if errors.Is(err, errSettled) || ctx.Err() != nil {
		err = nil
	}
	return o, err
}

func (o SignOn) settled() bool {
	return o.State == SignOnApproved || o.State == SignOnRefused || o.State == SignOnTaken
}

// A Grace says that the holder of a key has signed in from an address lately.
type Grace struct {
	User   names.UserName `json:"user"`
	Origin UserOrigin     `json:"origin"`
	MFA    string         `json:"mfa,omitempty"`
	Until  time.Time      `json:"until"`
}

// GracePlace is whose key and where a [Grace] is for.
type GracePlace struct {
	Fingerprint string
	Address     string
}

func (p GracePlace) key() string {
	sum := sha256.Sum256([]byte(p.Fingerprint + " " + p.Address))
	return dirGrace + base64.RawURLEncoding.EncodeToString(sum[:])
}

// PutGrace keeps g until it ends.
func (s *Store) PutGrace(ctx context.Context, at GracePlace, g Grace) error {
	lease, err := s.b.Grant(ctx, max(g.Until.Sub(s.now()), time.Second))
	if err != nil {
		return err
	}
	_, err = s.b.Put(ctx, at.key(), encode(g), backend.WithLease(lease))
	return err
}

// Grace returns the grace, or [fault.NotFound].
func (s *Store) Grace(ctx context.Context, at GracePlace) (Grace, error) {
	g, _, err := get[Grace](ctx, s, at.key(), "grace")
	return g, err
}
