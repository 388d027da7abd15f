package services

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// An APIToken lets a program call the services over HTTPS as a person, for what a
// certificate of theirs is good for.
type APIToken struct {
	ID          string         `json:"id"`
	SecretHash  string         `json:"secret_hash"` // SHA-256, hex
	User        names.UserName `json:"user"`
	Note        string         `json:"note,omitempty"` // the person's own words
	Certificate []byte         `json:"certificate"`    // in wire form; says as whom, and is asked at each use
	Client      string         `json:"client,omitempty"`
	Created     time.Time      `json:"created"`
	Expires     time.Time      `json:"expires"`
}

// Bounds of API tokens.
const (
	// MaxAPITokens bounds those of one person at a time.
	MaxAPITokens = 20
	// maxAPITokenNote bounds the words about one, in bytes.
	maxAPITokenNote = 128
	// maxAPITokenCert bounds a certificate, in bytes; what the SSH library takes.
	maxAPITokenCert = 64 << 10
)

var apiTokenID = regexp.MustCompile(`^[a-z0-9]{12}$`)

func apiTokenKey(id string) string            { return dirAPIToken + id }
func apiTokensKey(user names.UserName) string { return dirAPITokens + string(user) }
func newerAPIToken(a, b APIToken) int         { return b.Created.Compare(a.Created) }
func noAPIToken(id string) error {
	return fault.New(fault.NotFound, "no API token with id %q", clip(id)).WithHint("\"accessd api-tokens ls\" lists them")
}

// An apiTokenEntry stands for a token in the list of its person's.
type apiTokenEntry struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
}

// Check returns a [fault.BadInput] error unless every part of t keeps its grammar
// and its bound.
func (t APIToken) Check() error {
	if _, err := names.ParseUserName(string(t.User)); err != nil {
		return err
	}
	switch {
	case !apiTokenID.MatchString(t.ID) || t.SecretHash == "":
		return fault.New(fault.BadInput, "API token: id %q or its secret is not in its form", clip(t.ID))
	case len(t.Note) > maxAPITokenNote || strings.ContainsFunc(t.Note, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fault.New(fault.BadInput, "API token: want a note of at most %d bytes of plain text", maxAPITokenNote)
	case len(t.Certificate) == 0 || len(t.Certificate) > maxAPITokenCert:
		return fault.New(fault.BadInput, "API token: want a certificate of at most %d bytes", maxAPITokenCert)
	case t.Expires.IsZero():
		return fault.New(fault.BadInput, "API token: want an end")
	}
	return nil
}

// CreateAPIToken keeps a token until it expires, or returns [fault.Conflict] when
// its person has as many as there may be, and [fault.NotFound] when they have gone:
// whoever is called so next has nothing of theirs.
func (s *Store) CreateAPIToken(ctx context.Context, t APIToken) error {
	if err := t.Check(); err != nil {
		return err
	}
	lease, err := s.b.Grant(ctx, max(t.Expires.Sub(s.now()), time.Second))
	if err != nil {
		return err
	}
	err = s.changeAPITokens(ctx, t.User, func(tx *backend.Txn, list []apiTokenEntry) ([]apiTokenEntry, error) {
		if len(list) >= MaxAPITokens {
			return nil, fault.New(fault.Conflict, "you have %d API tokens, which is the most", len(list)).WithHint("remove one that is of no use any more")
		}
		u, err := s.User(ctx, t.User)
		if err != nil {
			return nil, err
		}
		tx.At(userKey(t.User), u.Revision).Absent(apiTokenKey(t.ID)).Put(apiTokenKey(t.ID), encode(t), backend.WithLease(lease))
		return append(list, apiTokenEntry{t.ID, t.Expires}), nil
	})
	if err != nil {
		_ = s.b.Revoke(context.WithoutCancel(ctx), lease) // it would end by itself
	}
	return err
}

// changeAPITokens changes the list of a person's tokens, less those that have
// ended, together with what change adds to tx.
func (s *Store) changeAPITokens(ctx context.Context, user names.UserName, change func(tx *backend.Txn, list []apiTokenEntry) ([]apiTokenEntry, error)) error {
	key := apiTokensKey(user)
	for {
		old, revision, err := get[[]apiTokenEntry](ctx, s, key, "list of API tokens")
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		tx := s.b.Txn().At(key, revision)
		list, err := change(tx, slices.DeleteFunc(old, func(e apiTokenEntry) bool { return !s.now().Before(e.Expires) }))
		if err != nil {
			return err
		}
		if len(list) == 0 {
			tx.Delete(key)
		} else {
			tx.Put(key, encode(list))
		}
		_, err = tx.Commit(ctx)
		if c := conflicting(err); c != key && c != userKey(user) {
			return err
		}
	}
}

// APIToken returns the token, or [fault.NotFound] when there is none or it has
// expired.
func (s *Store) APIToken(ctx context.Context, id string) (APIToken, error) {
	if !apiTokenID.MatchString(id) {
		return APIToken{}, noAPIToken(id)
	}
	t, _, err := get[APIToken](ctx, s, apiTokenKey(id), "API token")
	if fault.Is(err, fault.NotFound) || err == nil && !s.now().Before(t.Expires) {
		return APIToken{}, noAPIToken(id)
	}
	return t, err
}

// APITokens returns the tokens that are good, the newest first.
func (s *Store) APITokens(ctx context.Context) ([]APIToken, error) {
	all, err := list[APIToken](ctx, s, dirAPIToken, nil)
	all = slices.DeleteFunc(all, func(t APIToken) bool { return !s.now().Before(t.Expires) })
	slices.SortStableFunc(all, newerAPIToken)
	return all, err
}

// APITokensOf returns the good tokens of one person, the newest first.
func (s *Store) APITokensOf(ctx context.Context, user names.UserName) ([]APIToken, error) {
	entries, _, err := get[[]apiTokenEntry](ctx, s, apiTokensKey(user), "list of API tokens")
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	var all []APIToken
	for _, e := range entries {
		t, err := s.APIToken(ctx, e.ID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			all = append(all, t)
		}
	}
	slices.SortStableFunc(all, newerAPIToken)
	return all, nil
}

// DeleteAPIToken removes a token, or returns [fault.NotFound].
func (s *Store) DeleteAPIToken(ctx context.Context, id string) error {
	t, err := s.APIToken(ctx, id)
	if err != nil {
		return err
	}
	return s.changeAPITokens(ctx, t.User, func(tx *backend.Txn, list []apiTokenEntry) ([]apiTokenEntry, error) {
		tx.Delete(apiTokenKey(id))
		return slices.DeleteFunc(list, func(e apiTokenEntry) bool { return e.ID == id }), nil
	})
}

// WatchAPITokens calls begun, and gone with each token that has gone since, for
// whatever reason. It returns when ctx ends, or when it may have missed one: who
// watches again asks anew about what matters once it has begun.
func (s *Store) WatchAPITokens(ctx context.Context, begun func(), gone func(id string)) error {
	_, revision, err := s.b.List(ctx, dirAPIToken)
	if err != nil {
		return err
	}
	begun()
	return s.b.Watch(ctx, dirAPIToken, revision+1, func(changes []backend.Event) error {
		for _, e := range changes {
			if e.Deleted {
				gone(strings.TrimPrefix(e.Key, dirAPIToken))
			}
		}
		return nil
	})
}

// dropAPITokens adds to tx that all tokens of a person go.
func (s *Store) dropAPITokens(ctx context.Context, tx *backend.Txn, user names.UserName) error {
	key := apiTokensKey(user)
	list, revision, err := get[[]apiTokenEntry](ctx, s, key, "list of API tokens")
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	tx.At(key, revision).Delete(key)
	for _, e := range list {
		tx.Delete(apiTokenKey(e.ID))
	}
	return nil
}
