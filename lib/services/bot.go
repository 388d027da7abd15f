package services

import (
	"maps"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

// Bounds of what makes a user a bot.
const (
	MinBotTTL = time.Minute
	MaxBotTTL = 24 * time.Hour

	maxBotClaims = 32
)

// Bot makes a user one without a person: it has no password and no second factor.
// It comes in with a token that is good once, and then renews its certificate; or
// each time with an ID token of an OpenID provider that vouches for it, as CI
// systems have.
type Bot struct {
	TTL time.Duration `json:"ttl"` // of its certificates

	Issuer   string              `json:"issuer,omitempty"` // of ID tokens; "" takes none
	Audience string              `json:"audience,omitempty"`
	CA       string              `json:"ca,omitempty"`     // PEM, of the issuer's TLS; "" means the system's
	Claims   map[string][]string `json:"claims,omitempty"` // each of which the token has, with one of the values; one "*" in a value stands for anything
}

// Check returns a [fault.BadInput] error unless every part of b keeps its form and
// its bound. A bot that an issuer vouches for has claims: what a public CI system
// signs is true of everybody there.
func (b Bot) Check() error {
	if b.TTL < MinBotTTL || b.TTL > MaxBotTTL {
		return fault.New(fault.BadInput, "a bot's certificates: %v is not within %v and %v", b.TTL, MinBotTTL, MaxBotTTL)
	}
	if b.Issuer == "" {
		if b.Audience != "" || b.CA != "" || len(b.Claims) > 0 {
			return fault.New(fault.BadInput, "a bot's audience, CA and claims go with an issuer")
		}
		return nil
	}
	if err := checkURL(b.Issuer); err != nil {
		return fault.New(fault.BadInput, "a bot's issuer: %w", err)
	}
	if b.Audience == "" || len(b.Audience) > maxConnectorText || len(b.CA) > maxConnectorCA {
		return fault.New(fault.BadInput, "a bot's issuer goes with an audience of at most %d bytes, and a CA of at most %d", maxConnectorText, maxConnectorCA)
	}
	if len(b.Claims) == 0 || len(b.Claims) > maxBotClaims {
		return fault.New(fault.BadInput, "a bot's issuer goes with 1 to %d claims", maxBotClaims)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Claims)) {
		r := ClaimRule{Claim: name, Values: b.Claims[name], Roles: nil}
		if err := r.checkValues(); err != nil {
			return fault.New(fault.BadInput, "a bot's claim: %w", err)
		}
	}
	return nil
}

// Vouched returns the first claim of b that claims do not have, or "".
func (b Bot) Vouched(claims Claims) (missing string) {
	for _, name := range slices.Sorted(maps.Keys(b.Claims)) {
		r := ClaimRule{Claim: name, Values: b.Claims[name]}
		if !slices.ContainsFunc(claims.values(name), r.matches) {
			return name
		}
	}
	return ""
}

// BotState says which certificate of a bot is its newest: who renews another has a
// copy, or has been copied.
type BotState struct {
	Serial  uint64    `json:"serial,string"`
	Key     string    `json:"key"` // fingerprint
	Source  string    `json:"source"`
	Renewed time.Time `json:"renewed"`
	Before  uint64    `json:"before,string,omitempty"` // serial of the one that was renewed for it
}
