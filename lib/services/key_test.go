package services_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// line returns a public key as authorized_keys has it.
func line(t testing.TB, key any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(key)
	check(t, err)
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n")
}

// freshLine returns a new Ed25519 key as authorized_keys has it.
func freshLine() string {
	_, signer := sshca.Generate()
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(signer.PublicKey())), "\n")
}

func enrolled(t testing.TB) services.UserKey {
	t.Helper()
	k, err := services.NewUserKey(freshLine(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	check(t, err)
	return k
}

func rsaKey(t testing.TB, bits int) any {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, bits)
	check(t, err)
	return k.Public()
}

func TestNewUserKey(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	fido := "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIE4yHZH1XvqP5x5n5a2d2nXoFQh5WZq8jvXyBq4m3y0kAAAABHNzaDo="
	now := time.Now()
	for _, public := range []string{freshLine(), line(t, p256.Public()), line(t, rsaKey(t, 2048)), fido} {
		k, err := services.NewUserKey("  "+public+" alice@router (old)\n", now)
		if err != nil || k.Public != public || k.Comment != "alice@router (old)" || !k.Added.Equal(now) || !strings.HasPrefix(k.Fingerprint, "SHA256:") {
			t.Errorf("NewUserKey = %+v, %v", k, err)
		}
	}
}

func TestNewUserKeyRefuses(t *testing.T) {
	_, signer := sshca.Generate()
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	check(t, cert.SignCert(rand.Reader, signer))
	good := freshLine()
	for name, in := range map[string]string{
		"nothing":       "",
		"a comment":     "# " + good,
		"no key":        "ssh-ed25519 AAAA",
		"options":       `from="10.0.0.1" ` + good,
		"two keys":      good + "\n" + freshLine(),
		"a certificate": string(ssh.MarshalAuthorizedKey(cert)),
		"a short key":   line(t, rsaKey(t, 1024)),
		"a bad key":     "ssh-rsa " + strings.Repeat("A", 4),
		"a long remark": good + " " + strings.Repeat("x", 129),
		"a hidden mark": good + " a\x1b[2J",
		"a wrong turn":  good + " a\u202eb",
	} {
		if k, err := services.NewUserKey(in, time.Now()); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %+v, %v, want bad input", name, k, err)
		}
	}
}

func TestUserKeyCheck(t *testing.T) {
	for name, change := range map[string]func(*services.UserKey){
		"another's fingerprint": func(k *services.UserKey) { k.Fingerprint = enrolled(t).Fingerprint },
		"no fingerprint":        func(k *services.UserKey) { k.Fingerprint = "" },
		"a comment in its line": func(k *services.UserKey) { k.Public += " x" },
		"another's key":         func(k *services.UserKey) { k.Public = freshLine() },
	} {
		k := enrolled(t)
		change(&k)
		wantKind(t, name, k.Check(), fault.BadInput)
	}
	u := services.User{Name: "alice"}
	for range 16 {
		u.Keys = append(u.Keys, enrolled(t))
	}
	check(t, u.Check())
	wantKind(t, "17 keys", services.User{Name: "alice", Keys: append(slices.Clone(u.Keys), enrolled(t))}.Check(), fault.BadInput)
	wantKind(t, "a key twice", services.User{Name: "alice", Keys: append(slices.Clone(u.Keys[:3]), u.Keys[1])}.Check(), fault.BadInput)
}

func TestEnrolledKeys(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	for _, name := range []names.UserName{"alice", "bob"} {
		_, err := s.CreateUser(ctx, services.User{Name: name}, services.Credentials{})
		check(t, err)
	}
	k, other := enrolled(t), enrolled(t)
	_, err := s.CreateUser(ctx, services.User{Name: "eve", Keys: []services.UserKey{k}}, services.Credentials{})
	wantKind(t, "a user that begins with a key", err, fault.BadInput)
	u, err := s.AddUserKey(ctx, "alice", k)
	if err != nil || len(u.Keys) != 1 || u.Keys[0] != k {
		t.Fatalf("AddUserKey = %+v, %v", u, err)
	}
	for _, name := range []names.UserName{"alice", "bob"} {
		_, err = s.AddUserKey(ctx, name, k)
		wantKind(t, "the same key for "+string(name), err, fault.Conflict)
	}
	_, err = s.AddUserKey(ctx, "nobody", other)
	wantKind(t, "nobody's key", err, fault.NotFound)
	forged := other
	forged.Fingerprint = enrolled(t).Fingerprint
	_, err = s.AddUserKey(ctx, "bob", forged)
	wantKind(t, "a key under another's fingerprint", err, fault.BadInput)

	// What changes a user leaves the keys alone.
	u.Keys, u.Roles = nil, []names.RoleName{"dev"}
	u, err = s.UpdateUser(ctx, u)
	if err != nil || len(u.Keys) != 1 {
		t.Errorf("UpdateUser = %+v, %v, want it with its key", u, err)
	}
	u.Keys = []services.UserKey{k, other}
	if u, err = s.UpdateUser(ctx, u); err != nil || len(u.Keys) != 1 {
		t.Errorf("UpdateUser = %+v, %v, want it with no other key", u, err)
	}
	u.Revision--
	_, err = s.UpdateUser(ctx, u)
	wantKind(t, "an update of an older user", err, fault.Conflict)

	_, err = s.RemoveUserKey(ctx, "bob", k.Fingerprint)
	wantKind(t, "to remove another's key", err, fault.NotFound)
	gone, err := s.RemoveUserKey(ctx, "alice", k.Fingerprint)
	want(t, "RemoveUserKey", gone, err, k)
	_, err = s.AddUserKey(ctx, "bob", k) // it is free again
	check(t, err)
	check(t, s.DeleteUser(ctx, "bob"))
	_, err = s.AddUserKey(ctx, "alice", k) // and goes with its user
	check(t, err)
}

// TestChallengeIsUsedOnceUnderRace: of many keys that were made with one challenge one
// is enrolled, whichever authorities are asked; no challenge is good again while
// it has not ended, and what is remembered of them has a bound.
func TestChallengeIsUsedOnceUnderRace(t *testing.T) {
	b, c := backendtest.Open(t), newClock()
	stores := []*services.Store{services.NewStore(b, c.Now), services.NewStore(b, c.Now)}
	ctx := t.Context()
	for _, name := range []names.UserName{"alice", "bob"} {
		_, err := stores[0].CreateUser(ctx, services.User{Name: name}, services.Credentials{})
		check(t, err)
	}
	const at, used = 8, "used"
	first := services.KeyChallenge{ID: used, Expires: c.Now().Add(time.Hour)}
	keys := make([]services.UserKey, at)
	for i := range keys {
		keys[i] = enrolled(t)
	}
	won := race(t, at, fault.Denied, func(i int) error {
		_, err := stores[i%2].AddAttestedKey(ctx, "alice", keys[i], first)
		return err
	})
	if won != 1 {
		t.Errorf("%d keys of one challenge were enrolled, want 1", won)
	}
	u, err := stores[0].User(ctx, "alice")
	if check(t, err); len(u.Keys) != 1 {
		t.Errorf("alice has %d keys, want 1", len(u.Keys))
	}
	if _, err := stores[1].RemoveUserKey(ctx, "alice", u.Keys[0].Fingerprint); err != nil {
		t.Error(err)
	}
	c.Advance(time.Hour)
	for _, s := range stores {
		wantKind(t, "the challenge of a key that was removed", s.CheckKeyChallenge(ctx, "alice", first), fault.Denied)
		_, err := s.AddAttestedKey(ctx, "alice", enrolled(t), first)
		wantKind(t, "a key with it", err, fault.Denied)
		check(t, s.CheckKeyChallenge(ctx, "bob", first)) // challenges are each for one user
	}
	c.Advance(2 * time.Minute)
	for i := range 65 {
		k := enrolled(t)
		_, err := stores[i%2].AddAttestedKey(ctx, "alice", k, services.KeyChallenge{ID: fmt.Sprint(i), Expires: c.Now().Add(time.Hour)})
		if i == 64 {
			wantKind(t, "one more than the most", err, fault.Conflict)
			break
		}
		check(t, err)
		_, err = stores[0].RemoveUserKey(ctx, "alice", k.Fingerprint)
		check(t, err)
	}
}

func TestKeyIsEnrolledOnceUnderRace(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	user := func(i int) names.UserName { return names.UserName(fmt.Sprintf("u%d", i)) }
	for i := range 8 {
		_, err := s.CreateUser(ctx, services.User{Name: user(i)}, services.Credentials{})
		check(t, err)
	}
	k := enrolled(t)
	if won := race(t, 8, fault.Conflict, func(i int) error {
		_, err := s.AddUserKey(ctx, user(i), k)
		return err
	}); won != 1 {
		t.Errorf("%d users have the key, want 1", won)
	}
	keys := make([]services.UserKey, 16)
	for i := range keys {
		keys[i] = enrolled(t)
	}
	check(t, s.DeleteUser(ctx, user(0)))
	_, err := s.CreateUser(ctx, services.User{Name: user(0)}, services.Credentials{})
	check(t, err)
	if won := race(t, 16, fault.BadInput, func(i int) error {
		_, err := s.AddUserKey(ctx, user(0), keys[i])
		return err
	}); won != 16 {
		t.Errorf("%d of 16 keys were enrolled at once, want all", won)
	}
	_, err = s.AddUserKey(ctx, user(0), enrolled(t))
	wantKind(t, "the 17th key", err, fault.BadInput)
}

func TestCacheUserByKey(t *testing.T) {
	c := services.NewCache()
	a, b := enrolled(t), enrolled(t)
	user := func(name string, keys ...services.UserKey) {
		check(t, c.Apply(put(resource(t, "user", name, services.User{Name: names.UserName(name), Keys: keys}))))
	}
	owner := func(k services.UserKey) names.UserName {
		u, ok := c.UserByKey(k.Fingerprint)
		if ok == (u.Name == "") {
			t.Errorf("UserByKey = %+v, %v", u, ok)
		}
		return u.Name
	}
	user("alice", a, b)
	if owner(a) != "alice" || owner(b) != "alice" {
		t.Errorf("the keys are of %q and %q, want alice", owner(a), owner(b))
	}
	user("bob", b) // alice's change comes later in the stream
	user("alice", a)
	if owner(a) != "alice" || owner(b) != "bob" {
		t.Errorf("the keys are of %q and %q, want alice and bob", owner(a), owner(b))
	}
	check(t, c.Apply(remove(key("user", "alice"))))
	if owner(a) != "" || owner(b) != "bob" {
		t.Errorf("the keys are of %q and %q, want nobody and bob", owner(a), owner(b))
	}
	if u, ok := c.UserByKey(""); ok {
		t.Errorf("no fingerprint is that of %+v", u)
	}
}
