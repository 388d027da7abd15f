package services

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// KindConnector is the kind of a connector's document. Connectors are on no
// policy stream: only the authority reads them.
const KindConnector = "connector"

// Bounds of connectors.
const (
	maxConnectors      = 16 // of a cluster: a sign-in reads them all
	maxConnectorYAML   = 256 << 10
	maxConnectorRules  = 64
	maxConnectorScopes = 16
	maxConnectorText   = 512 // bytes of an address, a client id or a claim's name
	maxConnectorSecret = 4 << 10
	maxConnectorCA     = 64 << 10
	maxGrace           = 12 * time.Hour
	maxSubject         = 255 // characters of a subject (OpenID Connect Core, section 2)
	maxClaimValues     = 1 << 10
)

// ConnectorName names a connector.
type ConnectorName string

var connectorGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// ParseConnectorName reads the name of a connector.
func ParseConnectorName(s string) (ConnectorName, error) {
	if !connectorGrammar.MatchString(s) {
		return "", fault.New(fault.BadInput, "connector name %q: want 1 to 32 of a-z 0-9 -, beginning and ending with a letter or digit", clip(s))
	}
	return ConnectorName(s), nil
}

// Connector is an OpenID provider at which people may sign in.
type Connector struct {
	Name     ConnectorName `json:"name"`
	Issuer   string        `json:"issuer"`
	ClientID string        `json:"client_id"`
	Secret   []byte        `json:"secret,omitempty"` // sealed; empty: a public client

	CA        string   `json:"ca,omitempty"`         // PEM, of the provider's TLS; "" means the system's
	PublicURL string   `json:"public_url,omitempty"` // where browsers find the proxies; "" means the proxy's own address
	Scopes    []string `json:"scopes,omitempty"`     // beside openid
	UserInfo  bool     `json:"userinfo,omitempty"`   // ask the provider's userinfo endpoint, too

	NameClaim   string            `json:"name_claim"`
	NameDomain  string            `json:"name_domain,omitempty"` // what follows the @, which is cut off
	LoginsClaim string            `json:"logins_claim,omitempty"`
	Traits      map[string]string `json:"traits,omitempty"` // trait: claim
	Rules       []ClaimRule       `json:"rules,omitempty"`
	RequireAMR  []string          `json:"require_amr,omitempty"` // of these one at least, as second factor
	Grace       time.Duration     `json:"grace,omitempty"`       // how long one sign-in is enough for the same key and address

	Revision int64 `json:"-"`
}

// A ClaimRule gives roles and logins to people one of whose values of a claim it
// names.
type ClaimRule struct {
	Claim  string           `json:"claim"`
	Values []string         `json:"values"` // one "*" in each stands for anything
	Roles  []names.RoleName `json:"roles,omitempty"`
	Logins []names.Login    `json:"logins,omitempty"`
}

// UserOrigin is where the identity of a user made by a connector is known.
type UserOrigin struct {
	Connector ConnectorName `json:"connector"`
	Issuer    string        `json:"issuer"`
	Subject   string        `json:"subject"`
}

func (o UserOrigin) check() error {
	if _, err := ParseConnectorName(string(o.Connector)); err != nil {
		return err
	}
	if o.Subject == "" || len(o.Subject) > maxSubject || o.Issuer == "" || len(o.Issuer) > maxConnectorText {
		return fault.New(fault.BadInput, "a user's origin: want an issuer and a subject of at most %d bytes", maxSubject)
	}
	return nil
}

// ParseConnectors reads a stream of YAML documents, each one connector, as
// strictly as [ParseRoles] reads roles. The secrets of the connectors come
// beside them, by name, in the clear.
func ParseConnectors(source string, data []byte) ([]Connector, map[ConnectorName]string, error) {
	p := &connectorParser{roleParser: roleParser{source: printable(source)}, secrets: map[ConnectorName]string{}}
	if len(data) > maxConnectorYAML {
		return nil, nil, fault.New(fault.BadInput, "%s: %d bytes of connectors, want at most %d", p.source, len(data), maxConnectorYAML)
	}
	var out []Connector
	dec := yaml.NewDecoder(bytes.NewReader(data))
	p.documents(dec, func(n *yaml.Node) {
		c := p.connector(n)
		if slices.ContainsFunc(out, func(o Connector) bool { return o.Name == c.Name }) {
			p.fail(n, "connector %q stands twice", c.Name)
		}
		if len(out) < maxConnectors {
			out = append(out, c)
			return
		}
		p.fail(n, "too many connectors: want at most %d", maxConnectors)
	})
	if len(p.problems) == 0 && len(out) == 0 {
		p.failLine(1, "no connector in it")
	}
	if len(p.problems) > 0 {
		return nil, nil, p.err()
	}
	return out, p.secrets, nil
}

// connectorParser reads connectors with the tools of roles.
type connectorParser struct {
	roleParser

	secrets map[ConnectorName]string
}

func (p *connectorParser) documents(dec *yaml.Decoder, take func(*yaml.Node)) {
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if isEOF(err) {
			return
		}
		if err != nil {
			p.syntax(err)
			return // where one document is broken the next cannot be found
		}
		for _, root := range doc.Content {
			if root.ShortTag() != "!!null" {
				take(root)
			}
		}
	}
}

func (p *connectorParser) connector(n *yaml.Node) Connector {
	c := Connector{NameClaim: "preferred_username"}
	before := len(p.problems)
	secret, kind := "", ""
	p.fields(n, "connector", func(key, value *yaml.Node) {
		if p.listField(&c, key.Value, value) {
			return
		}
		texts := map[string]*string{
			"kind": &kind, "name": (*string)(&c.Name), "issuer": &c.Issuer, "client_id": &c.ClientID, "client_secret": &secret,
			"ca": &c.CA, "public_url": &c.PublicURL, "name_claim": &c.NameClaim, "name_domain": &c.NameDomain, "logins_claim": &c.LoginsClaim,
		}
		if to, ok := texts[key.Value]; ok {
			*to, _ = p.text(value, key.Value)
			return
		}
		p.fail(key, "unknown field %q in a connector", clip(key.Value))
	})
	if len(p.problems) > before {
		return c
	}
	if kind != KindConnector {
		p.fail(n, `a connector begins with "kind: connector"`)
		return c
	}
	if len(secret) > maxConnectorSecret {
		p.fail(n, "client_secret: want at most %d bytes", maxConnectorSecret)
	}
	if secret != "" {
		p.secrets[c.Name] = secret
	}
	if err := c.Check(); err != nil {
		p.fail(n, "%v", err)
	}
	return c
}

// listField reads a field that is no text, and reports whether it is one.
func (p *connectorParser) listField(c *Connector, name string, value *yaml.Node) bool {
	texts := func(to *[]string) {
		p.list(value, name, func(_ *yaml.Node, s string) { *to = append(*to, s) })
	}
	switch name {
	case "scopes":
		texts(&c.Scopes)
	case "require_amr":
		texts(&c.RequireAMR)
	case "userinfo":
		c.UserInfo = p.boolean(value, name)
	case "grace":
		c.Grace = p.duration(value, name)
	case "traits":
		c.Traits = map[string]string{}
		p.fields(value, name, func(key, claim *yaml.Node) {
			c.Traits[key.Value], _ = p.text(claim, "trait "+strconv.Quote(clip(key.Value)))
		})
	case "rules":
		if !p.is(value, yaml.SequenceNode, "!!seq") || len(value.Content) == 0 || len(value.Content) > maxConnectorRules {
			p.fail(value, "rules: want a list of 1 to %d rules, got %s", maxConnectorRules, describe(value))
			return true
		}
		for _, entry := range value.Content {
			c.Rules = append(c.Rules, p.claimRule(entry))
		}
	default:
		return false
	}
	return true
}

func (p *connectorParser) claimRule(n *yaml.Node) ClaimRule {
	var r ClaimRule
	p.fields(n, "rules", func(key, value *yaml.Node) {
		switch key.Value {
		case "claim":
			r.Claim, _ = p.text(value, "claim")
		case "values":
			p.list(value, "values", func(_ *yaml.Node, s string) { r.Values = append(r.Values, s) })
		case "roles":
			p.list(value, "roles", func(_ *yaml.Node, s string) { r.Roles = append(r.Roles, names.RoleName(s)) })
		case "logins":
			p.list(value, "logins", func(_ *yaml.Node, s string) { r.Logins = append(r.Logins, names.Login(s)) })
		default:
			p.fail(key, "unknown field %q in a rule of a connector", clip(key.Value))
		}
	})
	return r
}

// Check returns a [fault.BadInput] error unless every part of c keeps its
// grammar and its bound.
func (c Connector) Check() error {
	if _, err := ParseConnectorName(string(c.Name)); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.BadInput, "connector %q: "+format, append([]any{c.Name}, args...)...)
	}
	if err := checkURL(c.Issuer); err != nil {
		return bad("issuer: %v", err)
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return bad("public_url %q: want https://HOST[:PORT]", clip(c.PublicURL))
		}
	}
	if c.ClientID == "" || len(c.ClientID) > maxConnectorText {
		return bad("client_id: want 1 to %d bytes", maxConnectorText)
	}
	if len(c.CA) > maxConnectorCA || (c.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CA))) {
		return bad("ca: want certificates in PEM, of at most %d bytes", maxConnectorCA)
	}
	if len(c.Scopes) > maxConnectorScopes || slices.ContainsFunc(c.Scopes, func(s string) bool { return !scopeGrammar.MatchString(s) }) {
		return bad("scopes: want at most %d words", maxConnectorScopes)
	}
	if c.Grace < 0 || c.Grace > maxGrace {
		return bad("grace %v: want at most %v", c.Grace, maxGrace)
	}
	if err := c.checkClaims(); err != nil {
		return bad("%v", err)
	}
	return nil
}

// scopeGrammar is that of RFC 6749, section 3.3.
var scopeGrammar = regexp.MustCompile(`^[!#-\[\]-~]{1,128}$`)

// checkURL refuses an issuer that is not https, but for one on this machine.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxConnectorText || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fault.New(fault.BadInput, "%q: want https://HOST[/PATH]", clip(s))
	}
	ip, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || (err == nil && ip.IsLoopback())
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return fault.New(fault.BadInput, "%q: want https", clip(s))
	}
	return nil
}

func (c Connector) checkClaims() error {
	claims := []string{c.NameClaim}
	if c.LoginsClaim != "" {
		claims = append(claims, c.LoginsClaim)
	}
	if strings.ContainsAny(c.NameDomain, "@ \n") || len(c.NameDomain) > maxConnectorText {
		return fault.New(fault.BadInput, "name_domain %q: want what follows the @", clip(c.NameDomain))
	}
	if len(c.Traits) > maxTraits {
		return fault.New(fault.BadInput, "traits: want at most %d", maxTraits)
	}
	for _, trait := range slices.Sorted(maps.Keys(c.Traits)) {
		if err := checkTraits(map[string][]string{trait: {"x"}}); err != nil {
			return err
		}
		claims = append(claims, c.Traits[trait])
	}
	if len(c.RequireAMR) > maxConnectorScopes {
		return fault.New(fault.BadInput, "require_amr: want at most %d", maxConnectorScopes)
	}
	if len(c.Rules) == 0 || len(c.Rules) > maxConnectorRules {
		return fault.New(fault.BadInput, "rules: want 1 to %d, since without one nobody has a role", maxConnectorRules)
	}
	for _, r := range c.Rules {
		claims = append(claims, r.Claim)
		if err := r.check(); err != nil {
			return err
		}
	}
	for _, claim := range claims {
		if claim == "" || len(claim) > maxConnectorText {
			return fault.New(fault.BadInput, "a claim's name: want 1 to %d bytes", maxConnectorText)
		}
	}
	return nil
}

func (r ClaimRule) check() error {
	if len(r.Roles)+len(r.Logins) == 0 {
		return fault.New(fault.BadInput, "a rule needs roles or logins")
	}
	if err := r.checkValues(); err != nil {
		return err
	}
	for _, role := range r.Roles {
		if _, err := names.ParseRoleName(string(role)); err != nil {
			return err
		}
	}
	for _, login := range r.Logins {
		if _, err := names.ParseLogin(string(login)); err != nil {
			return err
		}
	}
	return nil
}

func (r ClaimRule) checkValues() error {
	if len(r.Values) == 0 || len(r.Values) > maxList {
		return fault.New(fault.BadInput, "a rule needs 1 to %d values of its claim", maxList)
	}
	for _, v := range r.Values {
		if v == "" || len(v) > maxConnectorText || strings.Count(v, wildcard) > 1 {
			return fault.New(fault.BadInput, "value %q: want 1 to %d bytes with one * at most", clip(v), maxConnectorText)
		}
	}
	return nil
}

// connectorDoc is a connector as it stands in YAML: without its secret.
type connectorDoc struct {
	Kind        string            `yaml:"kind"`
	Name        string            `yaml:"name"`
	Issuer      string            `yaml:"issuer"`
	ClientID    string            `yaml:"client_id"`
	CA          string            `yaml:"ca,omitempty"`
	PublicURL   string            `yaml:"public_url,omitempty"`
	Scopes      []string          `yaml:"scopes,omitempty,flow"`
	UserInfo    bool              `yaml:"userinfo,omitempty"`
	NameClaim   string            `yaml:"name_claim,omitempty"`
	NameDomain  string            `yaml:"name_domain,omitempty"`
	LoginsClaim string            `yaml:"logins_claim,omitempty"`
	Traits      map[string]string `yaml:"traits,omitempty"`
	Rules       []claimRuleDoc    `yaml:"rules,omitempty"`
	RequireAMR  []string          `yaml:"require_amr,omitempty,flow"`
	Grace       string            `yaml:"grace,omitempty"`
}

type claimRuleDoc struct {
	Claim  string   `yaml:"claim"`
	Values []string `yaml:"values,flow"`
	Roles  []string `yaml:"roles,omitempty,flow"`
	Logins []string `yaml:"logins,omitempty,flow"`
}

// YAML returns c as a document that [ParseConnectors] reads into the same
// connector, without its secret.
func (c Connector) YAML() []byte {
	doc := connectorDoc{
		Kind: KindConnector, Name: string(c.Name), Issuer: c.Issuer, ClientID: c.ClientID, CA: c.CA, PublicURL: c.PublicURL,
		Scopes: c.Scopes, UserInfo: c.UserInfo, NameClaim: c.NameClaim, NameDomain: c.NameDomain, LoginsClaim: c.LoginsClaim,
		Traits: c.Traits, RequireAMR: c.RequireAMR, Grace: shortDuration(c.Grace),
	}
	for _, r := range c.Rules {
		d := claimRuleDoc{Claim: r.Claim, Values: r.Values}
		for _, role := range r.Roles {
			d.Roles = append(d.Roles, string(role))
		}
		for _, login := range r.Logins {
			d.Logins = append(d.Logins, string(login))
		}
		doc.Rules = append(doc.Rules, d)
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("services: internal error: encode a connector: %v", err)) // plain data only
	}
	return out
}

// Claims are what a provider says about somebody, verified.
type Claims map[string]any

// UserOf makes of claims the user they are about, with roles, logins and traits
// by c's rules. The error says why they make none.
func (c Connector) UserOf(claims Claims) (User, error) {
	name, err := c.nameOf(claims)
	if err != nil {
		return User{}, err
	}
	subject, _ := claims["sub"].(string)
	u := User{Name: name, Origin: &UserOrigin{Connector: c.Name, Issuer: c.Issuer, Subject: subject}}
	for _, r := range c.Rules {
		if slices.ContainsFunc(claims.values(r.Claim), r.matches) {
			u.Roles, u.Logins = append(u.Roles, r.Roles...), append(u.Logins, r.Logins...)
		}
	}
	if c.LoginsClaim != "" {
		for _, v := range claims.values(c.LoginsClaim) {
			if login, err := names.ParseLogin(v); err == nil {
				u.Logins = append(u.Logins, login)
			}
		}
	}
	slices.Sort(u.Roles)
	slices.Sort(u.Logins)
	u.Roles, u.Logins = slices.Compact(u.Roles), slices.Compact(u.Logins)
	for trait, claim := range c.Traits {
		for _, v := range claims.values(claim) {
			if checkTraits(map[string][]string{trait: {v}}) == nil { // what a label cannot hold no rule can match
				if u.Traits == nil {
					u.Traits = map[string][]string{}
				}
				u.Traits[trait] = append(u.Traits[trait], v)
			}
		}
	}
	if len(u.Roles) == 0 {
		return User{}, fault.New(fault.Denied, "no rule of connector %q gives %q a role", c.Name, name)
	}
	return u, u.Check()
}

// nameOf returns the user name that claims say. An e-mail address counts only
// when the provider has verified it: elsewhere people choose theirs.
func (c Connector) nameOf(claims Claims) (names.UserName, error) {
	s, _ := claims[c.NameClaim].(string)
	if s == "" {
		return "", fault.New(fault.Denied, "the provider sent no claim %q", c.NameClaim)
	}
	if c.NameClaim == "email" && claims["email_verified"] != true {
		return "", fault.New(fault.Denied, "the provider has not verified the e-mail address %q", clip(s))
	}
	if c.NameDomain != "" {
		local, domain, _ := strings.Cut(s, "@")
		if !strings.EqualFold(domain, c.NameDomain) {
			return "", fault.New(fault.Denied, "%q is not in domain %q", clip(s), c.NameDomain)
		}
		s = local
	}
	return names.ParseUserName(s)
}

func (r ClaimRule) matches(value string) bool {
	return slices.ContainsFunc(r.Values, func(pattern string) bool {
		before, after, glob := strings.Cut(pattern, wildcard)
		if !glob {
			return value == pattern
		}
		return len(value) >= len(before)+len(after) && strings.HasPrefix(value, before) && strings.HasSuffix(value, after)
	})
}

// values returns the values of a claim as texts. A dot in its name leads into an
// object, unless there is a claim of the whole name.
func (c Claims) values(claim string) []string {
	v, ok := c[claim]
	for rest := claim; !ok; {
		var head string
		head, rest, ok = strings.Cut(rest, ".")
		if !ok {
			return nil
		}
		inner, isObject := c[head].(map[string]any)
		if !isObject {
			return nil
		}
		c = inner
		v, ok = c[rest]
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, v := range list[:min(len(list), maxClaimValues)] {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case bool:
			out = append(out, strconv.FormatBool(v))
		case json.Number:
			out = append(out, v.String())
		}
	}
	return out
}

// SecondFactor returns how the provider says that a second factor was given
// (RFC 8176), or an error when c demands one and there was none.
func (c Connector) SecondFactor(claims Claims) (string, error) {
	if len(c.RequireAMR) == 0 {
		return "", nil
	}
	for _, v := range claims.values("amr") {
		if slices.Contains(c.RequireAMR, v) {
			return "sso", nil
		}
	}
	return "", fault.New(fault.Denied, "the provider names none of %s as how the person signed in", strings.Join(c.RequireAMR, ", "))
}
