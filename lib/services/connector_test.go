package services

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const wholeConnector = `kind: connector
name: corp
issuer: https://id.example/realms/main
client_id: accessd
client_secret: hush
public_url: https://login.example:3022
scopes: [profile, groups]
userinfo: true
name_claim: email
name_domain: corp.example
logins_claim: unix
traits: {team: department}
require_amr: [mfa, hwk]
grace: 10m
rules:
- claim: realm_access.roles
  values: [dba, "ops-*"]
  roles: [dba]
  logins: [postgres]
`

func parseOne(t *testing.T, doc string) Connector {
	t.Helper()
	list, _, err := ParseConnectors("f", []byte(doc))
	if err != nil || len(list) != 1 {
		t.Fatalf("ParseConnectors = %v, %v", list, err)
	}
	return list[0]
}

func TestConnectorYAMLRoundTrip(t *testing.T) {
	list, secrets, err := ParseConnectors("f", []byte(wholeConnector))
	if err != nil || len(list) != 1 || secrets["corp"] != "hush" {
		t.Fatalf("ParseConnectors = %+v, %v, %v", list, secrets, err)
	}
	c := list[0]
	if c.Grace != 10*time.Minute || c.NameClaim != "email" || len(c.Rules) != 1 || c.Traits["team"] != "department" {
		t.Errorf("connector = %+v", c)
	}
	if again := parseOne(t, string(c.YAML())); !reflect.DeepEqual(again, c) {
		t.Errorf("again = %+v, want %+v", again, c)
	}
	if strings.Contains(string(c.YAML()), "hush") {
		t.Error("the document has the secret")
	}
}

func TestConnectorMistakes(t *testing.T) {
	for name, row := range map[string]struct{ from, to, want string }{
		"unknown field":       {"userinfo: true", "user_info: true", `f:8: unknown field "user_info"`},
		"a word for a number": {"grace: 10m", "grace: soon", "f:14: grace: want a duration"},
		"endless grace":       {"grace: 10m", "grace: 1000h", "grace 1000h0m0s: want at most"},
		"another kind":        {"kind: connector", "kind: role", `begins with "kind: connector"`},
		"a name of no form":   {"name: corp", "name: Corp/1", "connector name"},
		"plain http":          {"issuer: https", "issuer: http", "want https"},
		"an issuer's query":   {"realms/main", "?x=y", "want https://HOST"},
		"pages on plain http": {"public_url: https", "public_url: http", "want https://HOST"},
		"pages on a path":     {"login.example:3022", "login.example/x", "want https://HOST"},
		"no client":           {"client_id: accessd", `client_id: ""`, "client_id"},
		"two stars":           {"ops-*", "*ops-*", "one * at most"},
		"nothing to give":     {"  roles: [dba]\n  logins: [postgres]\n", "", "roles or logins"},
		"a role of no form":   {"roles: [dba]", "roles: [\"D B A\"]", "role"},
		"a login of no form":  {"logins: [postgres]", "logins: [\"a,b\"]", "login"},
		"a scope of no form":  {"[profile, groups]", "[\"profile groups\"]", "scopes"},
		"no certificates":     {"userinfo: true", "ca: not PEM", "certificates in PEM"},
		"a trait of no form":  {"{team: department}", "{\"a b\": department}", "trait"},
		"an empty claim":      {"logins_claim: unix\ntraits: {team: department}", "traits: {team: \"\"}", "a claim's name"},
		"twice":               {"kind: connector", "kind: connector\nkind: connector", "stands twice"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := strings.Replace(wholeConnector, row.from, row.to, 1)
			if doc == wholeConnector {
				t.Fatal("the row changes nothing")
			}
			_, _, err := ParseConnectors("f", []byte(doc))
			if !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want %q", err, row.want)
			}
		})
	}
	if _, _, err := ParseConnectors("f", []byte(wholeConnector+"---\n"+wholeConnector)); !fault.Is(err, fault.BadInput) {
		t.Errorf("one name twice = %v", err)
	}
	if _, _, err := ParseConnectors("f", make([]byte, maxConnectorYAML+1)); !fault.Is(err, fault.BadInput) {
		t.Errorf("too much = %v", err)
	}
}

func claimsOf(t *testing.T, text string) Claims {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var c Claims
	if err := dec.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaimsToUser(t *testing.T) {
	c := parseOne(t, wholeConnector)
	const good = `{"sub": "s", "email": "alice@Corp.Example", "email_verified": true, "realm_access": {"roles": ["ops-eu", "x"]}, "department": ["blue", "no;good"], "unix": ["alice", "bad,login"]}`
	u, err := c.UserOf(claimsOf(t, good))
	if err != nil {
		t.Fatal(err)
	}
	want := User{
		Name: "alice", Roles: []names.RoleName{"dba"}, Logins: []names.Login{"alice", "postgres"}, Traits: map[string][]string{"team": {"blue"}},
		Origin: &UserOrigin{Connector: "corp", Issuer: "https://id.example/realms/main", Subject: "s"},
	}
	if !reflect.DeepEqual(u, want) {
		t.Errorf("user = %+v, want %+v", u, want)
	}
	for name, row := range map[string]struct{ from, to string }{
		"an address nobody verified":   {`"email_verified": true`, `"email_verified": false`},
		"a word for verified":          {`"email_verified": true`, `"email_verified": "true"`},
		"verified is not said":         {`"email_verified": true, `, ``},
		"another domain":               {"Corp.Example", "corp.example.evil"},
		"two domains":                  {"Corp.Example", "evil@corp.example"},
		"no domain":                    {"@Corp.Example", ""},
		"no name before the domain":    {"alice@", "@"},
		"a name with a comma":          {"alice@", "a,b@"},
		"a name that is a star":        {"alice@", "*@"},
		"no role":                      {`"ops-eu"`, `"ops"`},
		"a value in another's claim":   {`"realm_access": {"roles"`, `"realm": {"roles"`},
		"no subject":                   {`"sub": "s", `, ``},
		"a subject that is no text":    {`"sub": "s"`, `"sub": 5`},
		"a subject of too much":        {`"sub": "s"`, `"sub": "` + strings.Repeat("s", 256) + `"`},
		"a list for the address":       {`"alice@Corp.Example"`, `["alice@Corp.Example"]`},
		"an object where a list shall": {`["ops-eu", "x"]`, `{"ops-eu": true}`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, row.from, row.to, 1)
			if text == good {
				t.Fatal("the row changes nothing")
			}
			if u, err := c.UserOf(claimsOf(t, text)); err == nil {
				t.Errorf("user = %+v", u)
			}
		})
	}
}

func TestClaimValues(t *testing.T) {
	c := claimsOf(t, `{"a.b": "whole", "a": {"b": "inner", "c": {"d": [1, true, "x", null, {}]}}, "n": 12345678901234567890}`)
	for claim, want := range map[string][]string{
		"a.b": {"whole"}, "a.c.d": {"1", "true", "x"}, "n": {"12345678901234567890"}, "a": nil, "z": nil, "a.z": nil, "a.b.c": nil, "": nil, ".": nil,
	} {
		if got := c.values(claim); !slices.Equal(got, want) {
			t.Errorf("values(%q) = %q, want %q", claim, got, want)
		}
	}
	r := ClaimRule{Values: []string{"ops", "db-*-rw", "*"}}
	for value, want := range map[string]bool{"ops": true, "db--rw": true, "db-rw": false, "opss": false} {
		r := ClaimRule{Values: r.Values[:2]}
		if r.matches(value) != want {
			t.Errorf("matches(%q) = %v", value, !want)
		}
	}
}

func TestSecondFactorOfAProvider(t *testing.T) {
	c := Connector{RequireAMR: []string{"mfa", "hwk"}}
	for text, want := range map[string]string{
		`{"amr": ["pwd", "hwk"]}`: "sso", `{"amr": ["pwd"]}`: "", `{"amr": []}`: "", `{}`: "", `{"amr": "mfa"}`: "sso",
	} {
		got, err := c.SecondFactor(claimsOf(t, text))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("SecondFactor(%s) = %q, %v", text, got, err)
		}
	}
	if got, err := (Connector{}).SecondFactor(maps.Clone(Claims{"amr": []any{"mfa"}})); got != "" || err != nil {
		t.Errorf("where none is demanded = %q, %v; want none: nobody has said what it is worth", got, err)
	}
}
