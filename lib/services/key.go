package services

import (
	"crypto/rsa"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

const (
	// maxKeyComment bounds the comment of an enrolled key, in bytes.
	maxKeyComment = 128
	// Sizes of RSA keys, in bits, as certificates have them.
	minRSA, maxRSA = 2048, 4096
)

// UserKey is a public key enrolled for a user. Where a role allows it, to hold
// it is as good as a sign-in.
type UserKey struct {
	Fingerprint string    `json:"fingerprint"` // "SHA256:…", unique in the cluster
	Public      string    `json:"public"`      // authorized_keys format without a comment
	Comment     string    `json:"comment,omitempty"`
	Added       time.Time `json:"added"`

	// Of a security key whose maker vouches for it: the model, and whether it signs
	// only after it has made sure who touches it.
	AAGUID string `json:"aaguid,omitempty"`
	PIN    bool   `json:"pin,omitempty"`
}

// IsSecurityKey reports whether key, or the key of a certificate, is one of a FIDO
// authenticator: it signs when somebody touches it (OpenSSH PROTOCOL.u2f).
func IsSecurityKey(key ssh.PublicKey) bool {
	if c, ok := key.(*ssh.Certificate); ok {
		key = c.Key
	}
	return sshca.IsSecurityKey(key)
}

// SecurityKey returns the security key with the fingerprint that is enrolled for
// u or, when that is "", any.
func (u User) SecurityKey(fingerprint string) (UserKey, bool) {
	i := slices.IndexFunc(u.Keys, func(k UserKey) bool {
		return strings.HasPrefix(k.Public, "sk-") && (fingerprint == "" || k.Fingerprint == fingerprint)
	})
	if i < 0 {
		return UserKey{}, false
	}
	return u.Keys[i], true
}

// NewUserKey returns the key in a line of authorized_keys, as enrolled at now. It
// refuses what signs in otherwise (certificates) or not well enough, and options,
// since they would not be kept.
func NewUserKey(line string, now time.Time) (UserKey, error) {
	key, comment, err := parseKey(line)
	if err != nil {
		return UserKey{}, err
	}
	k := UserKey{Fingerprint: ssh.FingerprintSHA256(key), Public: publicLine(key), Comment: comment, Added: now}
	return k, k.Check()
}

// Check returns a [fault.BadInput] error unless every part of k keeps its grammar
// and its bound, and its fingerprint is that of its key.
func (k UserKey) Check() error {
	key, _, err := parseKey(k.Public)
	if err != nil {
		return err
	}
	if publicLine(key) != k.Public || ssh.FingerprintSHA256(key) != k.Fingerprint {
		return fault.New(fault.BadInput, "key %q: not in its one form, or another's fingerprint", clip(k.Fingerprint))
	}
	if k.AAGUID != "" && !aaguidGrammar.MatchString(k.AAGUID) || k.AAGUID == "" && k.PIN {
		return fault.New(fault.BadInput, "key %s: model %q is none", k.Fingerprint, clip(k.AAGUID))
	}
	if len(k.Comment) > maxKeyComment || strings.ContainsFunc(k.Comment, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fault.New(fault.BadInput, "key %s: want a printable comment of at most %d bytes", k.Fingerprint, maxKeyComment)
	}
	return nil
}

// checkKeys checks the keys enrolled for u.
func (u User) checkKeys() error {
	if len(u.Keys) > maxUserKeys {
		return fault.New(fault.BadInput, "user %q: want at most %d enrolled keys", u.Name, maxUserKeys)
	}
	seen := map[string]bool{}
	for _, k := range u.Keys {
		if err := k.Check(); err != nil {
			return err
		}
		if seen[k.Fingerprint] {
			return fault.New(fault.BadInput, "user %q: key %s stands twice", u.Name, k.Fingerprint)
		}
		seen[k.Fingerprint] = true
	}
	return nil
}

// publicLine returns key in authorized_keys format without a comment.
func publicLine(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// parseKey reads one line of authorized_keys that is nothing but a key that is
// good enough, and its comment.
func parseKey(line string) (ssh.PublicKey, string, error) {
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, "", fault.New(fault.BadInput, "want one public key as a line of authorized_keys without options")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return key, comment, nil
	case ssh.KeyAlgoRSA:
		return key, comment, checkRSA(key)
	}
	return nil, "", fault.New(fault.BadInput, "%q keys are not taken", clip(key.Type()))
}

func checkRSA(key ssh.PublicKey) error {
	if c, ok := key.(ssh.CryptoPublicKey); ok {
		if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok {
			if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
				return fault.New(fault.BadInput, "the RSA key has %d bits, want %d to %d", bits, minRSA, maxRSA)
			}
			return nil
		}
	}
	return fault.New(fault.BadInput, "the RSA key does not tell its size")
}
