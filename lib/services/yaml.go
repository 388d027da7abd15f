package services

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// roleDoc is a role as it stands in YAML.
type roleDoc struct {
	Kind    string      `yaml:"kind"`
	Name    string      `yaml:"name"`
	Allow   []ruleDoc   `yaml:"allow,omitempty"`
	Deny    []ruleDoc   `yaml:"deny,omitempty"`
	Options *optionsDoc `yaml:"options,omitempty"`

	Requests []requestDoc `yaml:"requests,omitempty"`
	Review   []reviewDoc  `yaml:"review,omitempty"`
}

type ruleDoc struct {
	Nodes     map[string][]string `yaml:"nodes,omitempty,flow"`
	Logins    []string            `yaml:"logins,omitempty,flow"`
	Actions   []string            `yaml:"actions,omitempty,flow"`
	ForwardTo []string            `yaml:"forward_to,omitempty,flow"`
	Commands  []string            `yaml:"commands,omitempty,flow"`
	Resources map[string][]string `yaml:"resources,omitempty,flow"`
}

type optionsDoc struct {
	SessionTTL  string `yaml:"session_ttl,omitempty"`
	IdleTimeout string `yaml:"idle_timeout,omitempty"`
	MaxSessions int    `yaml:"max_sessions,omitempty"`
	PinSource   bool   `yaml:"pin_source,omitempty"`
	PlainKeys   bool   `yaml:"plain_keys,omitempty"`
	MFA         string `yaml:"mfa,omitempty"`
	Key         string `yaml:"key,omitempty"`

	CreateAccount *accountDoc `yaml:"create_account,omitempty"`

	Record      string `yaml:"record,omitempty"`
	RecordInput bool   `yaml:"record_input,omitempty"`
}

// accountDoc is a [CreateAccount] as it stands in YAML.
type accountDoc struct {
	Groups  []string `yaml:"groups,omitempty,flow"`
	Sudoers []string `yaml:"sudoers,omitempty"`
	Shell   string   `yaml:"shell,omitempty"`
	Keep    bool     `yaml:"keep,omitempty"`
}

// YAML returns r as a document that [ParseRoles] reads into the same role.
func (r Role) YAML() []byte {
	doc := roleDoc{Kind: KindRole, Name: string(r.Name), Allow: ruleDocs(r.Allow), Deny: ruleDocs(r.Deny)}
	if o := r.Options; o != (RoleOptions{}) {
		doc.Options = &optionsDoc{
			shortDuration(o.SessionTTL), shortDuration(o.IdleTimeout), o.MaxSessions, o.PinSource, o.PlainKeys, string(o.MFA), string(o.Key),
			(*accountDoc)(o.CreateAccount), string(o.Record), o.RecordInput,
		}
	}
	doc.Requests, doc.Review = requestDocs(r.Requests), reviewDocs(r.Review)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		panic(fmt.Sprintf("services: internal error: role %q as YAML: %v", r.Name, err)) // strings and numbers only
	}
	return out.Bytes()
}

func ruleDocs(rules []Rule) []ruleDoc {
	out := make([]ruleDoc, len(rules))
	for i, r := range rules {
		out[i] = ruleDoc{r.Nodes.values(), r.Logins, r.Actions, forwards(r.ForwardTo), commandTexts(r.Commands), r.Resources}
	}
	return out
}

// shortDuration writes d without zero parts at its end, and zero as nothing.
func shortDuration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
