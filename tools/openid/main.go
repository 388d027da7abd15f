// Command openid is an OpenID provider for tests: that of github.com/ory/fosite,
// for one client, with its memory in the process. It is a module of its own, so
// that it weighs on nothing else.
//
// Its one argument is a [setup] in JSON. It listens on a port of its own choice
// on 127.0.0.1 and prints its issuer. Who signs in is whoever its page is told:
// the field "person" of the form.
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/go-jose/go-jose/v3"
	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/handler/openid"
	"github.com/ory/fosite/storage"
	"github.com/ory/fosite/token/jwt"
)

// setup is what the provider is told.
type setup struct {
	ClientID     string                    `json:"client_id"`
	ClientSecret string                    `json:"client_secret"`
	RedirectURIs []string                  `json:"redirect_uris"`
	People       map[string]map[string]any `json:"people"` // claims by name; "sub" is required
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		slog.Error("openid", "error", err)
		os.Exit(1)
	}
}

const keyID = "1"

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments, want the setup", len(args))
	}
	var s setup
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p, err := newProvider(s, "http://"+ln.Addr().String(), key)
	if err != nil {
		return err
	}
	fmt.Println(p.issuer)
	return (&http.Server{Handler: p.routes(), ReadHeaderTimeout: 5 * time.Second}).Serve(ln)
}

type provider struct {
	setup
	fosite.OAuth2Provider

	issuer string
	key    *rsa.PrivateKey
}

func newProvider(s setup, issuer string, key *rsa.PrivateKey) (*provider, error) {
	cfg := &fosite.Config{
		IDTokenIssuer: issuer, AccessTokenLifespan: time.Minute, AuthorizeCodeLifespan: time.Minute, IDTokenLifespan: time.Minute,
		GlobalSecret: make([]byte, 32), EnforcePKCE: true,
	}
	if _, err := rand.Read(cfg.GlobalSecret); err != nil {
		return nil, err
	}
	store := storage.NewMemoryStore()
	hash, err := (&fosite.BCrypt{Config: cfg}).Hash(context.Background(), []byte(s.ClientSecret))
	if err != nil {
		return nil, err
	}
	store.Clients[s.ClientID] = &fosite.DefaultClient{
		ID: s.ClientID, Secret: hash, RedirectURIs: s.RedirectURIs, ResponseTypes: []string{"code"},
		GrantTypes: []string{"authorization_code"}, Scopes: []string{"openid", "profile", "email", "groups"},
	}
	return &provider{setup: s, OAuth2Provider: compose.ComposeAllEnabled(cfg, store, key), issuer: issuer, key: key}, nil
}

func (p *provider) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.configuration)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: keyID, Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /authorize", p.ask)
	mux.HandleFunc("POST /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (p *provider) configuration(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]any{
		"issuer": p.issuer, "authorization_endpoint": p.issuer + "/authorize", "token_endpoint": p.issuer + "/token",
		"jwks_uri": p.issuer + "/keys", "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"}, "code_challenge_methods_supported": []string{"S256"},
	})
}

// ask shows the form of a sign-in.
func (p *provider) ask(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, `<form method="post" action="%s"><input name="person"><button>Sign in</button></form>`, html.EscapeString(r.URL.RequestURI()))
}

// authorize signs in whoever the form names.
func (p *provider) authorize(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	ask, err := p.NewAuthorizeRequest(ctx, r)
	if err != nil {
		p.WriteAuthorizeError(ctx, w, ask, err)
		return
	}
	claims, known := p.People[r.PostForm.Get("person")]
	if !known {
		p.WriteAuthorizeError(ctx, w, ask, fosite.ErrAccessDenied)
		return
	}
	for _, scope := range ask.GetRequestedScopes() {
		ask.GrantScope(scope)
	}
	answer, err := p.NewAuthorizeResponse(ctx, ask, p.session(claims))
	if err != nil {
		p.WriteAuthorizeError(ctx, w, ask, err)
		return
	}
	p.WriteAuthorizeResponse(ctx, w, ask, answer)
}

func (p *provider) session(claims map[string]any) *openid.DefaultSession {
	s := openid.NewDefaultSession()
	s.Subject, _ = claims["sub"].(string)
	s.Claims = &jwt.IDTokenClaims{Issuer: p.issuer, Subject: s.Subject, AuthTime: time.Now(), RequestedAt: time.Now(), Extra: map[string]any{}}
	for k, v := range claims {
		if k == "amr" {
			for _, m := range v.([]any) {
				s.Claims.AuthenticationMethodsReferences = append(s.Claims.AuthenticationMethodsReferences, m.(string))
			}
		} else if k != "sub" {
			s.Claims.Extra[k] = v
		}
	}
	s.Headers = &jwt.Headers{Extra: map[string]any{"kid": keyID}}
	return s
}

// token redeems a code.
func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	ask, err := p.NewAccessRequest(ctx, r, openid.NewDefaultSession())
	if err != nil {
		p.WriteAccessError(ctx, w, ask, err)
		return
	}
	answer, err := p.NewAccessResponse(ctx, ask)
	if err != nil {
		p.WriteAccessError(ctx, w, ask, err)
		return
	}
	p.WriteAccessResponse(ctx, w, ask, answer)
}
