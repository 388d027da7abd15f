package services

import (
	"context"
	"crypto/sha256"
	"encoding/base64"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// The keys that find a user by a passkey.
//
//	passkey/HASH   the user whose passkey has the id
//	passkeys       there since the first passkey was made
const (
	dirPasskey  = "passkey/"
	keyPasskeys = "passkeys"
)

func passkeyKey(id []byte) string {
	sum := sha256.Sum256(id)
	return dirPasskey + base64.RawURLEncoding.EncodeToString(sum[:])
}

// PasskeyUser returns the user whose passkey has the id, or [fault.NotFound].
func (s *Store) PasskeyUser(ctx context.Context, id []byte) (names.UserName, error) {
	item, err := s.b.Get(ctx, passkeyKey(id))
	if err != nil {
		return "", missing(err, "passkey", "")
	}
	return names.UserName(item.Value), nil
}

// Passkeys reports whether anybody has ever made a passkey.
func (s *Store) Passkeys(ctx context.Context) (bool, error) {
	_, err := s.b.Get(ctx, keyPasskeys)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// indexPasskeys adds to tx what finds name by the passkeys that c has and old has
// not, and takes away what found it by the others. It returns the keys that must
// be new.
func indexPasskeys(tx *backend.Txn, name names.UserName, old, c Credentials) (fresh []string) {
	for _, p := range c.Passkeys {
		if _, had := old.Passkey(p.ID); !had {
			key := passkeyKey(p.ID)
			tx.Absent(key).Put(key, []byte(name))
			fresh = append(fresh, key)
		}
	}
	for _, p := range old.Passkeys {
		if _, has := c.Passkey(p.ID); !has {
			tx.Delete(passkeyKey(p.ID))
		}
	}
	if len(fresh) > 0 {
		tx.Put(keyPasskeys, []byte("made"))
	}
	return fresh
}
