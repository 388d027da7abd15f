// Package impostor is an OpenID provider for tests that says whatever a test wants
// it to, so that what an honest one never says can be tried: tokens of another key,
// for another audience, expired, unsigned. It also stands for CI systems, which
// have no more than keys to see. The honest one is tools/openid.
package impostor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Provider is one provider. What is in its fields it says from then on; set them
// while nobody asks it.
type Provider struct {
	URL    string            // its issuer
	Now    func() time.Time  // its clock
	Key    *ecdsa.PrivateKey // the one it publishes
	Signer *ecdsa.PrivateKey // the one it signs with
	Claims map[string]any    // of ID tokens, in place of the right ones; nil takes one out
	Token  string            // in place of an ID token of its own
	Info   map[string]any    // what the userinfo endpoint says
	Nonce  string            // of the authorization request

	t testing.TB
}

const keyID = "1"

// New starts a provider that ends with the test; now is its clock.
func New(t testing.TB, now func() time.Time) *Provider {
	t.Helper()
	key := Key(t)
	p := &Provider{Now: now, Key: key, Signer: key, t: t}
	mux := http.NewServeMux()
	reply := func(path string, v func() any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v()) // who has gone reads nothing
		})
	}
	reply("/.well-known/openid-configuration", func() any {
		return map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"userinfo_endpoint": p.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"ES256"},
		}
	})
	reply("/keys", func() any {
		return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.Key.Public(), KeyID: keyID, Algorithm: "ES256", Use: "sig"}}}
	})
	reply("/userinfo", func() any { return p.Info })
	reply("/token", func() any {
		return map[string]any{"access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": p.IDToken()}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	p.URL = s.URL
	return p
}

// Key makes a key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// IDToken returns alice's token.
func (p *Provider) IDToken() string {
	if p.Token != "" {
		return p.Token
	}
	claims := map[string]any{"sub": "s-1", "nonce": p.Nonce, "preferred_username": "alice", "groups": []string{"ops"}}
	maps.Copy(claims, p.Claims)
	return p.Sign(claims)
}

// Sign returns a token with these claims over those of one that is good now for
// audience "accessd" (RFC 7519); nil takes one out.
func (p *Provider) Sign(claims map[string]any) string {
	now := p.Now()
	all := map[string]any{"iss": p.URL, "aud": "accessd", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.Signer, KeyID: keyID}}, nil)
	if err != nil {
		p.t.Error(err)
		return ""
	}
	body, err := json.Marshal(all)
	if err != nil {
		p.t.Error(err)
		return ""
	}
	signed, err := signer.Sign(body)
	if err != nil {
		p.t.Error(err)
		return ""
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		p.t.Error(err)
	}
	return out
}
