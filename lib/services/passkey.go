package services

import (
	"regexp"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/passkey"
)

// maxPasskeys bounds the passkeys of one user.
const maxPasskeys = 10

// passkeyGrammar is what people may call a passkey: one word of a command line.
var passkeyGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

// Passkey is the public half of a passkey (WebAuthn Level 3, section 4,
// "credential record"), and the name that its person gave it.
type Passkey struct {
	Name       string    `json:"name"`
	ID         []byte    `json:"id"`
	PublicKey  []byte    `json:"public_key"` // SubjectPublicKeyInfo (RFC 5280, section 4.1)
	RP         string    `json:"rp"`         // the host name it was made for; it is of use nowhere else
	Counter    uint32    `json:"counter,omitempty"`
	Flags      byte      `json:"flags"`           // of the authenticator data (section 6.1) when it was made or last used
	Model      []byte    `json:"model,omitempty"` // AAGUID of the device
	Transports []string  `json:"transports,omitempty"`
	Created    time.Time `json:"created"`
	Used       time.Time `json:"used,omitzero"`
}

// CheckPasskeyName returns a [fault.BadInput] error unless name may be a passkey's.
func CheckPasskeyName(name string) error {
	if !passkeyGrammar.MatchString(name) {
		return fault.New(fault.BadInput, "passkey name %q: want 1 to 32 of a-z 0-9 . _ -", clip(name))
	}
	return nil
}

// Passkey returns the passkey with this id.
func (c Credentials) Passkey(id []byte) (Passkey, bool) {
	i := slices.IndexFunc(c.Passkeys, func(p Passkey) bool { return string(p.ID) == string(id) })
	if i < 0 {
		return Passkey{}, false
	}
	return c.Passkeys[i], true
}

// checkPasskeys returns a [fault.BadInput] error unless the passkeys keep their
// bounds.
func (c Credentials) checkPasskeys() error {
	if len(c.Passkeys) > maxPasskeys {
		return fault.New(fault.BadInput, "%d passkeys: want at most %d", len(c.Passkeys), maxPasskeys).WithHint("give up one that you do not use")
	}
	for i, p := range c.Passkeys {
		if err := CheckPasskeyName(p.Name); err != nil {
			return err
		}
		switch {
		case slices.ContainsFunc(c.Passkeys[:i], func(o Passkey) bool { return o.Name == p.Name }):
			return fault.New(fault.BadInput, "there is a passkey %q already", p.Name)
		case len(p.ID) == 0 || len(p.ID) > passkey.MaxID || len(p.PublicKey) == 0 || len(p.PublicKey) > passkey.MaxKey || len(p.Transports) > passkey.MaxTransports:
			return fault.New(fault.BadInput, "passkey %q is of a size that none has", p.Name)
		}
	}
	return nil
}
