package services

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func userKey(name names.UserName) string       { return dirOf(KindUser) + string(name) }
func credentialKey(name names.UserName) string { return dirCredential + string(name) }
func roleKey(name names.RoleName) string       { return dirOf(KindRole) + string(name) }
func tokenKey(id string) string                { return dirToken + id }

// enrolledKey is where it says for whom a key is enrolled. What a fingerprint
// has is base64, which has slashes and no underscores.
func enrolledKey(fingerprint string) string {
	return dirKey + strings.ReplaceAll(fingerprint, "/", "_")
}

// CreateUser creates a user together with its credentials, or returns
// [fault.Conflict] when the name is taken. Keys are enrolled with
// [Store.AddUserKey] only.
func (s *Store) CreateUser(ctx context.Context, u User, c Credentials) (User, error) {
	if len(u.Keys) > 0 {
		return User{}, fault.New(fault.BadInput, "user %q: a new user has no keys", u.Name)
	}
	if err := u.Check(); err != nil {
		return User{}, err
	}
	user, credential := userKey(u.Name), credentialKey(u.Name)
	revision, err := s.b.Txn().Absent(user).Absent(credential).
		Put(user, encode(u)).Put(credential, encode(storedCredentials(c))).Commit(ctx)
	if err != nil {
		return User{}, exists(err, KindUser, string(u.Name))
	}
	u.Revision = revision
	return u, nil
}

// User returns the user, or [fault.NotFound].
func (s *Store) User(ctx context.Context, name names.UserName) (User, error) {
	u, revision, err := get[User](ctx, s, userKey(name), KindUser)
	u.Revision = revision
	return u, err
}

// Users returns all users, by name.
func (s *Store) Users(ctx context.Context) ([]User, error) {
	return list(ctx, s, dirOf(KindUser), func(u *User, revision int64) { u.Revision = revision })
}

// UpdateUser replaces the user at u.Revision; [fault.Conflict] when it changed,
// [fault.NotFound] when it is gone. Its keys stay: those change with
// [Store.AddUserKey] and [Store.RemoveUserKey] only.
func (s *Store) UpdateUser(ctx context.Context, u User) (User, error) {
	old, err := s.User(ctx, u.Name)
	if err != nil {
		return User{}, err
	}
	if old.Revision != u.Revision {
		return User{}, changed(KindUser, string(u.Name))
	}
	u.Keys = old.Keys
	if err := u.Check(); err != nil {
		return User{}, err
	}
	key := userKey(u.Name)
	revision, err := s.update(ctx, key, KindUser, s.b.Txn().At(key, u.Revision).Put(key, encode(u)))
	u.Revision = revision
	return u, err
}

// AddUserKey enrols a key for the user, or returns [fault.Conflict] when it is
// enrolled already, for whomever, [fault.NotFound] when there is no such user, and
// [fault.BadInput] when the user has as many as there may be.
func (s *Store) AddUserKey(ctx context.Context, name names.UserName, k UserKey) (User, error) {
	return s.addUserKey(ctx, name, k, func(*backend.Txn) error { return nil })
}

// addUserKey is AddUserKey together with what also adds to the transaction, which is
// asked again when that changed meanwhile.
func (s *Store) addUserKey(ctx context.Context, name names.UserName, k UserKey, also func(*backend.Txn) error) (User, error) {
	taken := fault.New(fault.Conflict, "key %q is enrolled already", clip(k.Fingerprint))
	for {
		u, err := s.User(ctx, name)
		if err != nil {
			return User{}, err
		}
		if slices.ContainsFunc(u.Keys, func(old UserKey) bool { return old.Fingerprint == k.Fingerprint }) {
			return User{}, taken
		}
		u.Keys = append(u.Keys, k)
		if err := u.Check(); err != nil {
			return User{}, err
		}
		key, enrolled := userKey(name), enrolledKey(k.Fingerprint)
		tx := s.b.Txn().At(key, u.Revision).Absent(enrolled).Put(key, encode(u)).Put(enrolled, []byte(name))
		if err := also(tx); err != nil {
			return User{}, err
		}
		u.Revision, err = tx.Commit(ctx)
		switch conflicting(err) {
		case "":
			return u, err
		case enrolled:
			return User{}, taken
		}
	}
}

// RemoveUserKey ends the enrolment of the user's key that has the fingerprint and
// returns it, or [fault.NotFound].
func (s *Store) RemoveUserKey(ctx context.Context, name names.UserName, fingerprint string) (UserKey, error) {
	for {
		u, err := s.User(ctx, name)
		if err != nil {
			return UserKey{}, err
		}
		i := slices.IndexFunc(u.Keys, func(k UserKey) bool { return k.Fingerprint == fingerprint })
		if i < 0 {
			return UserKey{}, fault.New(fault.NotFound, "user %q has no key %q", name, clip(fingerprint))
		}
		k := u.Keys[i]
		u.Keys = slices.Delete(u.Keys, i, i+1)
		key := userKey(name)
		_, err = s.b.Txn().At(key, u.Revision).Put(key, encode(u)).Delete(enrolledKey(fingerprint)).Commit(ctx)
		if !fault.Is(err, fault.Conflict) {
			return k, err
		}
	}
}

// DeleteUser removes the user together with its credentials, keys and API tokens, or
// returns [fault.NotFound].
func (s *Store) DeleteUser(ctx context.Context, name names.UserName) error {
	for {
		u, err := s.User(ctx, name)
		if err != nil {
			return err
		}
		c, err := s.Credentials(ctx, name)
		if err != nil {
			return err
		}
		key, credential := userKey(name), credentialKey(name)
		tx := s.b.Txn().At(key, u.Revision).At(credential, c.Revision).Delete(key).Delete(credential)
		indexPasskeys(tx, name, c, Credentials{})
		if err := s.dropAPITokens(ctx, tx, name); err != nil {
			return err
		}
		for _, k := range u.Keys {
			tx.Delete(enrolledKey(k.Fingerprint))
		}
		_, err = tx.Commit(ctx)
		if !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

// Credentials returns the user's credentials, or [fault.NotFound].
func (s *Store) Credentials(ctx context.Context, name names.UserName) (Credentials, error) {
	c, revision, err := get[storedCredentials](ctx, s, credentialKey(name), KindUser)
	c.Revision = revision
	return Credentials(c), err
}

// UpdateCredentials replaces the user's credentials at c.Revision;
// [fault.Conflict] when they changed, so that of two sign-ins with one code only
// one can note it as used; [fault.NotFound] when the user is gone; [fault.Denied]
// when a new passkey is enrolled already.
func (s *Store) UpdateCredentials(ctx context.Context, name names.UserName, c Credentials) (Credentials, error) {
	if err := c.checkPasskeys(); err != nil {
		return c, err
	}
	old, err := s.Credentials(ctx, name)
	if err != nil {
		return c, err
	}
	if old.Revision != c.Revision {
		return c, changed(KindUser, string(name))
	}
	key := credentialKey(name)
	tx := s.b.Txn().At(key, c.Revision).Put(key, encode(storedCredentials(c)))
	fresh := indexPasskeys(tx, name, old, c)
	revision, err := tx.Commit(ctx)
	if taken := conflicting(err); slices.Contains(fresh, taken) {
		return c, fault.New(fault.Denied, "the passkey is enrolled already")
	}
	if fault.Is(err, fault.Conflict) {
		return c, changed(KindUser, string(name))
	}
	c.Revision = revision
	return c, err
}

// Role returns the role, or [fault.NotFound].
func (s *Store) Role(ctx context.Context, name names.RoleName) (Role, error) {
	r, revision, err := get[Role](ctx, s, roleKey(name), KindRole)
	r.Revision = revision
	return r, err
}

// Roles returns all roles, by name.
func (s *Store) Roles(ctx context.Context) ([]Role, error) {
	return list(ctx, s, dirOf(KindRole), func(r *Role, revision int64) { r.Revision = revision })
}

// ApplyRoles puts every role at its Revision, where 0 means that it is new; all
// of them or, with [fault.Conflict], none.
func (s *Store) ApplyRoles(ctx context.Context, roles []Role) error {
	tx := s.b.Txn()
	for _, r := range roles {
		if _, err := names.ParseRoleName(string(r.Name)); err != nil {
			return err
		}
		tx.At(roleKey(r.Name), r.Revision).Put(roleKey(r.Name), encode(r))
	}
	_, err := tx.Commit(ctx)
	if c := conflicting(err); c != "" {
		return changed(KindRole, lastName(c))
	}
	return err
}

// DeleteRole removes the role, or returns [fault.NotFound].
func (s *Store) DeleteRole(ctx context.Context, name names.RoleName) error {
	return missing(s.b.Delete(ctx, roleKey(name)), KindRole, string(name))
}

const (
	// tokenKept is how long a token is kept after it expired, so that who uses it
	// late is told apart in the log from who guesses.
	tokenKept = time.Hour
	// maxTokenNames bounds the names one token may give away.
	maxTokenNames = 256
	// maxTokenUses bounds the uses of one token.
	maxTokenUses = 100_000
)

var tokenGrammar = regexp.MustCompile(`^[a-z0-9]{1,64}$`)

// Check returns a [fault.BadInput] error unless every part of t keeps its
// grammar and its bound.
func (t Token) Check() error {
	switch {
	case !tokenGrammar.MatchString(t.ID):
		return fault.New(fault.BadInput, "token id %q: want 1 to 64 of a-z 0-9", clip(t.ID))
	case t.Role != TokenNode && t.Role != TokenProxy:
		return fault.New(fault.BadInput, "token: role %q is neither %s nor %s", clip(t.Role), TokenNode, TokenProxy)
	case t.UsesLeft < 1 || t.UsesLeft > maxTokenUses:
		return fault.New(fault.BadInput, "token: %d uses, want 1 to %d", t.UsesLeft, maxTokenUses)
	case len(t.Names) > maxTokenNames:
		return fault.New(fault.BadInput, "token: %d names, want at most %d", len(t.Names), maxTokenNames)
	}
	for _, n := range t.Names {
		if _, err := names.ParseNodeName(string(n)); err != nil {
			return err
		}
	}
	return t.Labels.Check()
}

// CreateToken keeps a token until some time after it expires.
func (s *Store) CreateToken(ctx context.Context, t Token) error {
	if err := t.Check(); err != nil {
		return err
	}
	lease, err := s.b.Grant(ctx, max(t.Expires.Sub(s.now()), 0)+tokenKept)
	if err != nil {
		return err
	}
	if _, err = s.b.Create(ctx, tokenKey(t.ID), encode(t), backend.WithLease(lease)); err != nil {
		return exists(err, "token", t.ID)
	}
	return nil
}

// Token returns the token, or [fault.NotFound]. It may have expired or be used
// up.
func (s *Store) Token(ctx context.Context, id string) (Token, error) {
	t, revision, err := get[Token](ctx, s, tokenKey(id), "token")
	t.Revision = revision
	return t, err
}

// Tokens returns all tokens that can still be used, by id.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	all, err := list(ctx, s, dirToken, func(t *Token, revision int64) { t.Revision = revision })
	usable := all[:0]
	for _, t := range all {
		if s.unusable(t) == "" {
			usable = append(usable, t)
		}
	}
	return usable, err
}

// unusable says why a token is of no use any more, or "".
func (s *Store) unusable(t Token) string {
	switch {
	case !s.now().Before(t.Expires):
		return "expired"
	case t.UsesLeft < 1:
		return "used up"
	}
	return ""
}

// DeleteToken removes the token, or returns [fault.NotFound].
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return missing(s.b.Delete(ctx, tokenKey(id)), "token", id)
}
