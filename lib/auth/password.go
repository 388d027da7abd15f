package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"

	"golang.org/x/crypto/argon2"

	"github.com/accessd/accessd/lib/fault"
)

// The rules a password keeps, in bytes. There are no others: rules about
// characters make people choose worse passwords (NIST SP 800-63B, 5.1.1.2).
const (
	minPassword = 8
	maxPassword = 256
)

// Sizes of a password hash, in bytes (RFC 9106, section 4).
const (
	saltSize = 16
	hashSize = 32
)

// maxHashWaiters bounds the sign-ins that wait for their turn to hash; one
// more is told to try again, so that a flood costs memory for none of them.
const maxHashWaiters = 64

// Bounds of a stored hash's cost, so that a damaged record cannot take the
// machine's memory. They are also the bounds of the configuration.
const (
	maxArgonTime   = 64
	maxArgonMemory = 4 << 20 // KiB
	maxArgonLanes  = 64
)

// Argon2 is the cost of argon2id (RFC 9106, section 3.1). A zero field means
// its default: 2 passes over 64 MiB in 2 lanes.
type Argon2 struct {
	Time      uint32 // passes
	MemoryKiB uint32
	Threads   uint8 // lanes
}

func (c Argon2) withDefaults() Argon2 {
	if c.Time == 0 {
		c.Time = 2
	}
	if c.MemoryKiB == 0 {
		c.MemoryKiB = 64 << 10
	}
	if c.Threads == 0 {
		c.Threads = 2
	}
	return c
}

// check refuses a cost that argon2 cannot run with or that this machine should not.
func (c Argon2) check() error {
	switch {
	case c.Time < 1 || c.Time > maxArgonTime:
		return fault.New(fault.BadInput, "argon2 time %d: want 1 to %d", c.Time, maxArgonTime)
	case c.Threads < 1 || c.Threads > maxArgonLanes:
		return fault.New(fault.BadInput, "argon2 threads %d: want 1 to %d", c.Threads, maxArgonLanes)
	case c.MemoryKiB < 8*uint32(c.Threads) || c.MemoryKiB > maxArgonMemory:
		return fault.New(fault.BadInput, "argon2 memory %d KiB: want %d to %d", c.MemoryKiB, 8*uint32(c.Threads), maxArgonMemory)
	}
	return nil
}

// A hasher makes and checks password hashes, a few at a time.
type hasher struct {
	cost    Argon2
	slots   chan struct{}
	waiting atomic.Int64
	dummy   string // the hash of nobody's password, at the current cost
}

func newHasher(cost Argon2, parallel int) *hasher {
	h := &hasher{cost: cost, slots: make(chan struct{}, parallel)}
	h.dummy = encodePHC(cost, randomBytes(saltSize), randomBytes(hashSize))
	return h
}

// hash returns password's hash in the PHC string format.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := randomBytes(saltSize)
	sum, err := h.sum(ctx, h.cost, password, salt)
	if err != nil {
		return "", err
	}
	return encodePHC(h.cost, salt, sum), nil
}

// verify reports whether password has the given hash. An empty hash, which
// nobody's password has, costs as much as any other.
func (h *hasher) verify(ctx context.Context, password, hash string) (bool, error) {
	exists := hash != ""
	if !exists {
		hash = h.dummy
	}
	cost, salt, want, err := parsePHC(hash)
	if err != nil {
		return false, err
	}
	got, err := h.sum(ctx, cost, password, salt)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1 && exists, nil
}

// stale reports whether hash was made at another cost than today's.
func (h *hasher) stale(hash string) bool {
	cost, _, _, err := parsePHC(hash)
	return err != nil || cost != h.cost
}

// sum waits for a slot and computes one hash.
func (h *hasher) sum(ctx context.Context, c Argon2, password string, salt []byte) ([]byte, error) {
	defer h.waiting.Add(-1)
	if h.waiting.Add(1) > maxHashWaiters {
		return nil, fault.New(fault.Unavailable, "too many people are signing in").WithHint("try again in a moment")
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "the sign-in was given up")
	}
	return argon2.IDKey([]byte(password), salt, c.Time, c.MemoryKiB, c.Threads, hashSize), nil
}

func encodePHC(c Argon2, salt, sum []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, c.MemoryKiB, c.Time, c.Threads, b64.EncodeToString(salt), b64.EncodeToString(sum))
}

var phcGrammar = regexp.MustCompile(`^\$argon2id\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,2}),p=([0-9]{1,2})\$([A-Za-z0-9+/]{22})\$([A-Za-z0-9+/]{43})$`)

// parsePHC reads a hash in the PHC string format, only the form encodePHC writes.
func parsePHC(s string) (c Argon2, salt, sum []byte, err error) {
	m := phcGrammar.FindStringSubmatch(s)
	if m == nil {
		return c, nil, nil, fault.New(fault.Internal, "password hash: not an argon2id hash of ours")
	}
	var n [3]uint64
	for i := range n {
		if n[i], err = strconv.ParseUint(m[i+1], 10, 32); err != nil {
			return c, nil, nil, fault.New(fault.Internal, "password hash: cost %q: %w", m[i+1], err)
		}
	}
	c = Argon2{MemoryKiB: uint32(n[0]), Time: uint32(n[1]), Threads: uint8(n[2])}
	if err := c.check(); err != nil {
		return c, nil, nil, fault.New(fault.Internal, "password hash: %w", err)
	}
	b64 := base64.RawStdEncoding.Strict()
	if salt, err = b64.DecodeString(m[4]); err != nil {
		return c, nil, nil, fault.New(fault.Internal, "password hash: salt: %w", err)
	}
	if sum, err = b64.DecodeString(m[5]); err != nil {
		return c, nil, nil, fault.New(fault.Internal, "password hash: sum: %w", err)
	}
	return c, salt, sum, nil
}

// checkPassword refuses a new password that breaks a rule.
func checkPassword(p string) error {
	if len(p) < minPassword || len(p) > maxPassword {
		return fault.New(fault.BadInput, "the password has %d bytes: want %d to %d", len(p), minPassword, maxPassword)
	}
	if _, err := parseInvite(p); err == nil {
		return fault.New(fault.BadInput, "an invite cannot be a password")
	}
	return nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
