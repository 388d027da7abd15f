package services

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"regexp"
	"slices"
	"strings"

	"github.com/accessd/accessd/lib/fault"
)

// Bounds of what is said of authenticators.
const (
	maxModels    = 256
	maxMakers    = 64
	maxMakersPEM = 256 << 10
)

// authenticatorSettings names the one resource of its kind.
const authenticatorSettings = "authenticators"

// aaguidGrammar is that of a model of authenticators (WebAuthn, "AAGUID").
var aaguidGrammar = regexp.MustCompile(`^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Authenticators say which security keys count as such: those for which one of
// these makers vouches. The zero value takes every key that says it is one.
type Authenticators struct {
	AAGUIDs []string `json:"aaguids,omitempty"` // models, as UUIDs; none: all that a maker vouches for
	Roots   string   `json:"roots,omitempty"`   // certificates of makers, PEM

	Revision int64 `json:"-"`
}

// Set reports whether a maker must vouch for a key.
func (a Authenticators) Set() bool { return a.Roots != "" }

// Take reports whether k counts as a security key.
func (a Authenticators) Take(k UserKey) bool {
	return !a.Set() || k.AAGUID != "" && a.TakeModel(k.AAGUID)
}

// TakeModel reports whether a model is among those that count.
func (a Authenticators) TakeModel(aaguid string) bool {
	return len(a.AAGUIDs) == 0 || slices.Contains(a.AAGUIDs, aaguid)
}

// Makers returns the certificates of Roots.
func (a Authenticators) Makers() (*x509.CertPool, error) {
	pool, n, rest := x509.NewCertPool(), 0, []byte(a.Roots)
	for len(rest) > 0 && strings.TrimSpace(string(rest)) != "" {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fault.New(fault.BadInput, "authenticators: want certificates of makers in PEM, and nothing else")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.BadInput, "authenticators: certificate %d of a maker: %v", n+1, err)
		}
		pool.AddCert(c)
		n++
	}
	if n > maxMakers {
		return nil, fault.New(fault.BadInput, "authenticators: %d certificates of makers, want at most %d", n, maxMakers)
	}
	return pool, nil
}

// Check returns a [fault.BadInput] error unless every part of a keeps its grammar
// and its bound.
func (a Authenticators) Check() error {
	switch {
	case len(a.AAGUIDs) > maxModels || len(a.Roots) > maxMakersPEM:
		return fault.New(fault.BadInput, "authenticators: want at most %d models and %d bytes of certificates", maxModels, maxMakersPEM)
	case len(a.AAGUIDs) > 0 && a.Roots == "":
		return fault.New(fault.BadInput, "authenticators: without a maker's certificate anybody could say that a key is of a model")
	}
	for _, id := range a.AAGUIDs {
		if !aaguidGrammar.MatchString(id) {
			return fault.New(fault.BadInput, "authenticators: model %q: want a UUID in lower case", clip(id))
		}
	}
	_, err := a.Makers()
	return err
}

// Authenticators returns which security keys count; the zero value before
// anything was said.
func (s *Store) Authenticators(ctx context.Context) (Authenticators, error) {
	v, revision, err := get[Authenticators](ctx, s, dirOf(KindSettings)+authenticatorSettings, "settings")
	if fault.Is(err, fault.NotFound) {
		return Authenticators{}, nil
	}
	v.Revision = revision
	return v, err
}

// PutAuthenticators replaces what is said at its revision, or returns
// [fault.Conflict].
func (s *Store) PutAuthenticators(ctx context.Context, v Authenticators) error {
	if err := v.Check(); err != nil {
		return err
	}
	_, err := s.b.CompareAndSwap(ctx, dirOf(KindSettings)+authenticatorSettings, encode(v), v.Revision)
	if fault.Is(err, fault.Conflict) {
		return changed("settings", authenticatorSettings)
	}
	return err
}
