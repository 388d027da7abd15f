package services

import (
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

func ciBot() Bot {
	return Bot{TTL: time.Hour, Issuer: "https://ci.example.com", Audience: "accessd", Claims: map[string][]string{
		"repository": {"org/app"}, "ref": {"refs/heads/*", "refs/tags/v1"},
	}}
}

func TestBotCheck(t *testing.T) {
	if err := ciBot().Check(); err != nil {
		t.Fatal(err)
	}
	if err := (Bot{TTL: MinBotTTL}).Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Bot){
		"short":           func(b *Bot) { b.TTL = MinBotTTL - 1 },
		"long":            func(b *Bot) { b.TTL = MaxBotTTL + 1 },
		"no audience":     func(b *Bot) { b.Audience = "" },
		"no claims":       func(b *Bot) { b.Claims = nil },
		"no values":       func(b *Bot) { b.Claims["repository"] = nil },
		"two asterisks":   func(b *Bot) { b.Claims["repository"] = []string{"*/*"} },
		"an empty value":  func(b *Bot) { b.Claims["repository"] = []string{""} },
		"cleartext":       func(b *Bot) { b.Issuer = "http://ci.example.com" },
		"without issuer":  func(b *Bot) { b.Issuer = "" },
		"a large CA":      func(b *Bot) { b.CA = strings.Repeat("x", maxConnectorCA+1) },
		"a long audience": func(b *Bot) { b.Audience = strings.Repeat("x", maxConnectorText+1) },
	} {
		b := ciBot()
		spoil(&b)
		if err := b.Check(); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
}

// TestBotVouched: every claim, each by one of its values.
func TestBotVouched(t *testing.T) {
	for name, c := range map[string]struct {
		claims Claims
		want   string
	}{
		"as they should be":  {Claims{"repository": "org/app", "ref": "refs/heads/main", "more": 1}, ""},
		"another value":      {Claims{"repository": "org/app", "ref": "refs/tags/v1"}, ""},
		"a longer name":      {Claims{"repository": "org/app2", "ref": "refs/heads/main"}, "repository"},
		"another case":       {Claims{"repository": "Org/App", "ref": "refs/heads/main"}, "repository"},
		"a tag that is none": {Claims{"repository": "org/app", "ref": "refs/tags/v10"}, "ref"},
		"missing":            {Claims{"ref": "refs/heads/main"}, "repository"},
		"an object":          {Claims{"repository": map[string]any{"x": "org/app"}, "ref": "refs/heads/main"}, "repository"},
		"nothing":            {nil, "ref"},
	} {
		if got := ciBot().Vouched(c.claims); got != c.want {
			t.Errorf("%s: the first missing is %q, want %q", name, got, c.want)
		}
	}
}
