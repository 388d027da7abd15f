package sshserver

import (
	"crypto/rsa"
	"errors"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// maxAuthTries is how many failed attempts end a connection, as in OpenSSH.
// Beside it x/crypto ends one at its 128th request, whatever became of them.
const maxAuthTries = 6

// Sizes of RSA keys taken, in bits. A larger one costs more to verify than it
// is worth, a smaller one can be factored. sshca has the same bounds for what it
// certifies; these are for every key that is only offered.
const (
	minRSA = 2048
	maxRSA = 4096
)

var (
	errNoneMethod = errors.New("the method \"none\" is never enough")
	errWeakKey    = errors.New("the RSA key is too small or too large")
	errNoTouch    = errors.New("the certificate lets a security key sign without being touched")
)

// auth is the state of one connection's authentication, all of which x/crypto
// does in one goroutine.
type auth struct {
	proving  bool // a callback runs that follows upon a proof
	staged   proof
	proof              // of the callbacks that accepted
	failures int       // refused attempts, but for "none"
	begun    time.Time // when the callback of the current attempt was called
}

// proof is what the peer has shown.
type proof struct {
	identity *sshca.Identity
	key      ssh.PublicKey
}

// Prove records who the peer is. It may be called only while a
// VerifiedPublicKeyCallback, KeyboardInteractiveCallback or PasswordCallback
// runs, and counts only if that callback accepts, fully or in part. A second
// proof that names another identity is refused: nobody becomes somebody else in
// the middle of a connection.
func (c *Conn) Prove(id *sshca.Identity) error {
	switch had := c.auth.identity; {
	case !c.auth.proving || id == nil:
		return errNotProving
	case had != nil && (had.Kind != id.Kind || had.User != id.User || had.Member != id.Member || had.Fingerprint != id.Fingerprint):
		return fault.New(fault.Denied, "another identity was proven before")
	}
	c.auth.staged.identity = id
	return nil
}

// ProveKey records that the peer holds key, under the same terms.
func (c *Conn) ProveKey(key ssh.PublicKey) error {
	switch had := c.auth.key; {
	case !c.auth.proving || key == nil:
		return errNotProving
	case had != nil && ssh.FingerprintSHA256(had) != ssh.FingerprintSHA256(key):
		return fault.New(fault.Denied, "another key was proven before")
	}
	c.auth.staged.key = key
	return nil
}

var errNotProving = errors.New("sshserver: internal error: proof outside of a verified authentication callback")

// config returns x/crypto's configuration for the connection.
func (c *Conn) config() (*ssh.ServerConfig, error) {
	cfg := &ssh.ServerConfig{}
	if err := c.server.cfg.Authenticate(c, cfg); err != nil {
		return nil, err
	}
	cfg.Config = c.server.cfg.Algorithms.config(c.version, hasAES())
	cfg.PublicKeyAuthAlgorithms = publicKeyAlgorithms()
	cfg.ServerVersion = Version
	cfg.MaxAuthTries = maxAuthTries
	keys, err := hostKeys(c.server.cfg.HostKeysOf(c))
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		cfg.AddHostKey(k)
	}
	// gliderlabs sets NoClientAuth, so "none" needs a callback that refuses.
	cfg.NoClientAuthCallback = func(ssh.ConnMetadata) (*ssh.Permissions, error) { return nil, errNoneMethod }
	cfg.GSSAPIWithMICConfig = nil
	c.guardCallbacks(cfg)
	return cfg, nil
}

// guardCallbacks wraps the embedder's callbacks.
func (c *Conn) guardCallbacks(cfg *ssh.ServerConfig) {
	first := c.guarded(ssh.ServerAuthCallbacks{
		PublicKeyCallback:           cfg.PublicKeyCallback,
		PasswordCallback:            cfg.PasswordCallback,
		KeyboardInteractiveCallback: cfg.KeyboardInteractiveCallback,
	})
	cfg.PublicKeyCallback = first.PublicKeyCallback
	cfg.PasswordCallback = first.PasswordCallback
	cfg.KeyboardInteractiveCallback = first.KeyboardInteractiveCallback
	if verified := cfg.VerifiedPublicKeyCallback; verified != nil {
		cfg.VerifiedPublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, algo string) (*ssh.Permissions, error) {
			return c.attempt(true, func() (*ssh.Permissions, error) { return verified(m, key, p, algo) })
		}
	}
	begun := cfg.PreAuthConnCallback
	cfg.PreAuthConnCallback = func(p ssh.ServerPreAuthConn) {
		c.kexDone()
		if begun != nil {
			begun(p)
		}
	}
	logged := cfg.AuthLogCallback
	cfg.AuthLogCallback = func(m ssh.ConnMetadata, method string, err error) {
		c.concluded(method, err)
		if logged != nil {
			logged(m, method, err)
		}
	}
}

func (c *Conn) kexDone() {
	if c.guard != nil {
		c.guard.KexDone()
	}
	c.allow(c.server.cfg.Limits.LoginTimeout)
}

// guarded wraps the callbacks of one step.
func (c *Conn) guarded(cb ssh.ServerAuthCallbacks) ssh.ServerAuthCallbacks {
	var out ssh.ServerAuthCallbacks
	if f := cb.PublicKeyCallback; f != nil {
		out.PublicKeyCallback = func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return c.attempt(false, func() (*ssh.Permissions, error) {
				if err := checkSize(key); err != nil {
					return nil, err
				}
				if err := checkTouch(key); err != nil {
					return nil, err
				}
				return f(m, key)
			})
		}
	}
	if f := cb.PasswordCallback; f != nil {
		out.PasswordCallback = func(m ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return c.attempt(true, func() (*ssh.Permissions, error) { return f(m, password) })
		}
	}
	if f := cb.KeyboardInteractiveCallback; f != nil {
		out.KeyboardInteractiveCallback = func(m ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			return c.attempt(true, func() (*ssh.Permissions, error) { return f(m, ask) })
		}
	}
	return out
}

// attempt runs one callback. What it stages counts if it accepts.
func (c *Conn) attempt(proving bool, f func() (*ssh.Permissions, error)) (*ssh.Permissions, error) {
	c.auth.begun = time.Now()
	c.auth.proving, c.auth.staged = proving, c.auth.proof
	perms, err := f()
	c.auth.proving = false
	partial, next := errors.AsType[*ssh.PartialSuccessError](err)
	if err == nil || next {
		c.auth.proof = c.auth.staged
	}
	if next {
		return nil, &ssh.PartialSuccessError{Next: c.guarded(partial.Next)}
	}
	return perms, err
}

// concluded is called after each attempt, before it is answered. A refusal takes
// a whole number of FailureDelays, whether or not a callback was asked, so that
// the time tells nobody what was wrong (OpenSSH's ensure_minimum_time_since).
// The method "none" only asks for the list of methods.
func (c *Conn) concluded(method string, err error) {
	begun := c.auth.begun
	c.auth.begun = time.Time{}
	if err == nil || method == "none" || isPartial(err) {
		return
	}
	c.auth.failures++
	var elapsed time.Duration
	if !begun.IsZero() {
		elapsed = time.Since(begun)
	}
	t := time.NewTimer(untilWhole(elapsed, c.server.cfg.Limits.FailureDelay))
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// untilWhole returns what is missing from elapsed to a whole number of units,
// at least one.
func untilWhole(elapsed, unit time.Duration) time.Duration {
	return unit - elapsed%unit
}

func isPartial(err error) bool {
	_, ok := errors.AsType[*ssh.PartialSuccessError](err)
	return ok
}

// noTouch is the extension of a certificate for a security key that signs without
// being touched (OpenSSH PROTOCOL.certkeys, "Extensions").
const noTouch = "no-touch-required"

// checkTouch refuses a certificate that x/crypto would take such signatures for.
// No authority of ours issues any; of all others x/crypto wants the touch.
func checkTouch(key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok {
		if _, ok := cert.Extensions[noTouch]; ok {
			return errNoTouch
		}
	}
	return nil
}

// checkSize refuses an RSA key, bare or in a certificate, of a size that is not
// taken. What else makes a key unfit is the embedder's to say.
func checkSize(key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	if k, ok := key.(ssh.CryptoPublicKey); ok {
		if r, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok {
			if bits := r.N.BitLen(); bits < minRSA || bits > maxRSA {
				return errWeakKey
			}
		}
	}
	return nil
}
