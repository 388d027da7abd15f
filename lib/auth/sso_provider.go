package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// Bounds of what a provider may take of us.
const (
	providerTimeout = 10 * time.Second // one request
	providerAge     = time.Hour        // how long its configuration is believed
	providerBody    = 1 << 20          // bytes of one answer
	providerCalls   = 16               // sign-ins that ask providers at the same time
)

// providers asks OpenID providers, and keeps what they say of themselves.
type providers struct {
	now   func() time.Time
	slots chan struct{} // one for each call under way

	mu   sync.Mutex // guards what follows
	kept map[services.ConnectorName]*provider
}

// provider is one connector's provider as it was last found.
type provider struct {
	*oidc.Provider

	client   *http.Client
	revision int64 // of the connector
	found    time.Time
}

func newProviders(now func() time.Time) *providers {
	return &providers{now: now, slots: make(chan struct{}, providerCalls), kept: map[services.ConnectorName]*provider{}}
}

// of returns the provider of c, asking it for its configuration when that is
// not known or old.
func (p *providers) of(ctx context.Context, c services.Connector) (*provider, error) {
	p.mu.Lock()
	had := p.kept[c.Name]
	p.mu.Unlock()
	if had != nil && had.revision == c.Revision && p.now().Sub(had.found) < providerAge {
		return had, nil
	}
	out := &provider{client: providerClient(c), revision: c.Revision, found: p.now()}
	var err error
	out.Provider, err = oidc.NewProvider(oidc.ClientContext(ctx, out.client), c.Issuer)
	if err != nil {
		return nil, away(c, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept[c.Name] = out
	return out, nil
}

func away(c services.Connector, err error) error {
	return fault.Wrap(fault.Unavailable, err, "the provider of connector \""+string(c.Name)+"\" cannot be asked").
		WithHint("try again in a minute")
}

// begin takes the place of one call; end gives it back.
func (p *providers) begin(ctx context.Context) (end func(), err error) {
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Unavailable, context.Cause(ctx), "too many people are signing in")
	}
}

// providerClient returns a client that trusts c's provider and nobody's
// redirections, and reads no endless answers.
func providerClient(c services.Connector) *http.Client {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM([]byte(c.CA)) // checked with the connector
	}
	return &http.Client{
		Transport: bounded{&http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute,
		}},
		Timeout:       providerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded cuts answers at [providerBody].
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, providerBody), resp.Body}
	return resp, nil
}

// A passage is one way of one browser to the provider and back. Its secrets are
// made of the browser's, so that none has to be kept, and whoever sees the
// provider's answer but is not that browser can do nothing with it.
type passage struct {
	connector services.Connector
	base      string // where browsers find the proxy
	state     string
	browser   string
}

func (p passage) secret(what string) string {
	mac := hmac.New(sha256.New, []byte(p.browser))
	mac.Write([]byte(what + " " + p.state))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// nonce binds the ID token to this passage (OpenID Connect Core, section 3.1.2.1).
func (p passage) nonce() string { return p.secret("nonce") }

// verifier is the secret of PKCE (RFC 7636, section 4.1).
func (p passage) verifier() string { return p.secret("pkce") }

// callbackPath is where a provider sends browsers back to.
const callbackPath = "/sso/callback"

func (a *Authority) oauth(ctx context.Context, p passage, at *provider) (*oauth2.Config, error) {
	cfg := &oauth2.Config{
		ClientID: p.connector.ClientID, Endpoint: at.Endpoint(), RedirectURL: p.base + callbackPath,
		Scopes: append([]string{oidc.ScopeOpenID}, p.connector.Scopes...),
	}
	if len(p.connector.Scopes) == 0 {
		cfg.Scopes = append(cfg.Scopes, "profile", "email")
	}
	if len(p.connector.Secret) > 0 {
		secret, err := a.cfg.Sealer.Unseal(ctx, connectorPurpose(p.connector.Name), p.connector.Secret)
		if err != nil {
			return nil, err
		}
		cfg.ClientSecret = string(secret)
	}
	return cfg, nil
}

// authorize returns the provider's page for p.
func (a *Authority) authorize(ctx context.Context, p passage) (string, error) {
	end, err := a.providers.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	at, err := a.providers.of(ctx, p.connector)
	if err != nil {
		return "", err
	}
	cfg, err := a.oauth(ctx, p, at)
	if err != nil {
		return "", err
	}
	return cfg.AuthCodeURL(p.state, oidc.Nonce(p.nonce()), oauth2.S256ChallengeOption(p.verifier())), nil
}

// claims redeems the provider's code and returns what the provider says of the
// person, verified.
func (a *Authority) claims(ctx context.Context, p passage, code string) (services.Claims, error) {
	end, err := a.providers.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	at, err := a.providers.of(ctx, p.connector)
	if err != nil {
		return nil, err
	}
	cfg, err := a.oauth(ctx, p, at)
	if err != nil {
		return nil, err
	}
	ctx = oidc.ClientContext(ctx, at.client)
	token, err := cfg.Exchange(ctx, code, oauth2.VerifierOption(p.verifier()))
	if err != nil {
		return nil, refusal("the provider did not redeem its code: " + clip(err.Error()))
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := at.Verifier(&oidc.Config{ClientID: cfg.ClientID, Now: a.cfg.Now}).Verify(ctx, raw)
	if err != nil {
		return nil, refusal("the provider's token: " + clip(err.Error()))
	}
	if !hmac.Equal([]byte(id.Nonce), []byte(p.nonce())) {
		return nil, refusal("the provider's token is of another sign-in")
	}
	claims := services.Claims{}
	if p.connector.UserInfo {
		info, err := at.UserInfo(ctx, oauth2.StaticTokenSource(token))
		if err != nil || info.Subject != id.Subject {
			return nil, refusal("the provider's user info is missing or about somebody else")
		}
		if err := info.Claims(&decoded{claims}); err != nil {
			return nil, refusal("the provider's user info: " + clip(err.Error()))
		}
	}
	if err := id.Claims(&decoded{claims}); err != nil { // what is signed stands above what is not
		return nil, refusal("the provider's token: " + clip(err.Error()))
	}
	return claims, nil
}

// decoded takes claims with their numbers as they were written.
type decoded struct{ into services.Claims }

func (d *decoded) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return dec.Decode(&d.into)
}
