package services

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Bounds of one user, so that a certificate made for it stays small.
const (
	maxUserRoles   = 64 // roles of one user
	maxUserLogins  = 64 // logins of one user
	maxTraits      = 32 // traits of one user
	maxTraitValues = 64 // values of one trait
	maxUserKeys    = 16 // keys enrolled for one user
)

// User is a person or a bot, without secrets.
type User struct {
	Name    names.UserName      `json:"name"`
	Roles   []names.RoleName    `json:"roles,omitempty"`
	Logins  []names.Login       `json:"logins,omitempty"`
	Traits  map[string][]string `json:"traits,omitempty"` // keys and values in the grammar of labels
	Keys    []UserKey           `json:"keys,omitempty"`   // enrolled, for clients that know no certificates
	Created time.Time           `json:"created"`

	Origin  *UserOrigin `json:"origin,omitempty"` // of a user made by a connector; nil: one of ours
	Expires time.Time   `json:"expires,omitzero"` // no certificate is issued from then on, until the next sign-in

	Bot *Bot `json:"bot,omitempty"` // nil: a person

	Revision int64 `json:"-"`
}

// Check returns a [fault.BadInput] error unless every part of u keeps its
// grammar and its bound.
func (u User) Check() error {
	if _, err := names.ParseUserName(string(u.Name)); err != nil {
		return err
	}
	if len(u.Roles) > maxUserRoles || len(u.Logins) > maxUserLogins {
		return fault.New(fault.BadInput, "user %q: want at most %d roles and %d logins", u.Name, maxUserRoles, maxUserLogins)
	}
	for i, r := range u.Roles {
		if _, err := names.ParseRoleName(string(r)); err != nil {
			return err
		}
		if slices.Contains(u.Roles[:i], r) {
			return fault.New(fault.BadInput, "user %q: role %q stands twice", u.Name, r)
		}
	}
	for i, l := range u.Logins {
		if _, err := names.ParseLogin(string(l)); err != nil {
			return err
		}
		if slices.Contains(u.Logins[:i], l) {
			return fault.New(fault.BadInput, "user %q: login %q stands twice", u.Name, l)
		}
	}
	if err := u.checkKeys(); err != nil {
		return err
	}
	if u.Bot != nil {
		if err := u.Bot.Check(); err != nil {
			return err
		}
	}
	if u.Origin != nil {
		if err := u.Origin.check(); err != nil {
			return err
		}
	}
	return checkTraits(u.Traits)
}

func checkTraits(traits map[string][]string) error {
	if len(traits) > maxTraits {
		return fault.New(fault.BadInput, "%d traits: want at most %d", len(traits), maxTraits)
	}
	for k, values := range traits {
		if len(values) > maxTraitValues {
			return fault.New(fault.BadInput, "trait %q: %d values, want at most %d", k, len(values), maxTraitValues)
		}
		for _, v := range values {
			if err := (names.Labels{k: v}).Check(); err != nil {
				return fault.New(fault.BadInput, "trait: %w", err)
			}
		}
	}
	return nil
}

// Credentials are what a user signs in with. They are kept under a key of their
// own, never leave the authority and never show in a log.
type Credentials struct {
	PasswordHash  string    `json:"password_hash,omitempty"`  // argon2id, PHC string; empty: no password yet
	TOTPSecret    []byte    `json:"totp_secret,omitempty"`    // sealed; empty: no second factor yet
	TOTPLastStep  int64     `json:"totp_last_step,omitempty"` // newest time step (RFC 6238, section 4.2) used
	Recovery      []string  `json:"recovery,omitempty"`       // hashes of recovery codes that were not used
	InviteHash    string    `json:"invite_hash,omitempty"`    // empty: no invite is open
	InviteExpires time.Time `json:"invite_expires,omitzero"`
	Failures      int       `json:"failures,omitempty"` // failed sign-ins since the last good one
	LastFailure   time.Time `json:"last_failure,omitzero"`
	KnownKeys     []string  `json:"known_keys,omitempty"` // fingerprints of keys the user has signed in with
	Passkeys      []Passkey `json:"passkeys,omitempty"`
	Handle        []byte    `json:"handle,omitempty"` // what passkeys know the user by; made with the first one

	Bot *BotState `json:"bot,omitempty"` // nil: it has no certificate that it could renew

	Revision int64 `json:"-"`
}

// redacted is how secrets show wherever they are printed.
const redacted = "[redacted]"

// String hides the credentials.
func (Credentials) String() string { return redacted }

// GoString hides the credentials from %#v.
func (Credentials) GoString() string { return redacted }

// MarshalJSON hides the credentials from loggers and answers; the Store keeps
// them in another form.
func (Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// storedCredentials are Credentials in the Store's form: without methods that
// hide them.
type storedCredentials Credentials
