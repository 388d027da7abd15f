package names_test

import (
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// Names that try to be more than a name (F35, F31): lists, wildcards, paths,
// shell words, policy lines, control characters, look-alikes.
var hostile = []string{
	"", " ", "a b", "a,b", "*", "root*", "..", "a/b", "a:b", "a@b", "a%b", "-a", "a\n", "a\x00", "a\x1b[2J", "a\u202eb", "аlice", "$(id)",
	"`id`", "a;b", "a|b", "a'b", `a"b`, "p, admin, *", "g, me, admin", strings.Repeat("a", 4096), "\xff",
}

func TestHostileNamesAreRefused(t *testing.T) {
	parsers := map[string]func(string) error{
		"user":    func(s string) error { _, err := names.ParseUserName(s); return err },
		"login":   func(s string) error { _, err := names.ParseLogin(s); return err },
		"role":    func(s string) error { _, err := names.ParseRoleName(s); return err },
		"node":    func(s string) error { _, err := names.ParseNodeName(s); return err },
		"node id": func(s string) error { _, err := names.ParseNodeID(s); return err },
		"session": func(s string) error { _, err := names.ParseSessionID(s); return err },
	}
	for kind, parse := range parsers {
		for _, s := range hostile {
			err := parse(s)
			if !fault.Is(err, fault.BadInput) {
				t.Errorf("%s %q: %v, want bad input", kind, s, err)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("%s: the error has %d bytes, want it bounded", kind, len(err.Error()))
			}
		}
	}
}

func TestGoodNames(t *testing.T) {
	cases := []struct {
		kind  string
		parse func(string) error
		good  []string
		bad   []string
	}{
		{"user", func(s string) error { _, err := names.ParseUserName(s); return err }, []string{"alice", "A.B-c_d", "0x"}, []string{".a", "a" + strings.Repeat("b", 63)}},
		{"login", func(s string) error { _, err := names.ParseLogin(s); return err }, []string{"root", "www-data", "pc$"}, []string{"a$b", strings.Repeat("a", 34)}},
		{"node", func(s string) error { _, err := names.ParseNodeName(s); return err }, []string{"n1", "db.prod.example"}, []string{"N1", "n1.", "localhost", "x.localhost", "10.0.0.1", "1b671a64-40d5-491e-99b0-da01ff1f3341", strings.Repeat("a", 64)}},
		{"id", func(s string) error { _, err := names.ParseNodeID(s); return err }, []string{"1b671a64-40d5-491e-99b0-da01ff1f3341"}, []string{"1B671A64-40D5-491E-99B0-DA01FF1F3341", "{1b671a64-40d5-491e-99b0-da01ff1f3341}", "urn:uuid:1b671a64-40d5-491e-99b0-da01ff1f3341"}},
	}
	for _, c := range cases {
		for _, s := range c.good {
			if err := c.parse(s); err != nil {
				t.Errorf("%s %q: %v, want nil", c.kind, s, err)
			}
		}
		for _, s := range c.bad {
			if err := c.parse(s); err == nil {
				t.Errorf("%s %q is taken", c.kind, s)
			}
		}
	}
}

func TestLabels(t *testing.T) {
	l, err := names.ParseLabels("env=dev,team=a b,accessd/os=linux")
	if err != nil || l["team"] != "a b" || len(l) != 3 {
		t.Errorf("ParseLabels = %v, %v", l, err)
	}
	for _, s := range []string{"env", "=x", "env=", "env=a,env=b", "e v=x", "env=a\nb", "env=\x1b[2J", ",", "env=" + strings.Repeat("x", 200)} {
		if l, err := names.ParseLabels(s); err == nil {
			t.Errorf("ParseLabels(%q) = %v, want an error", s, l)
		}
	}
}

func TestSecretsAreLongAndDiffer(t *testing.T) {
	a, b := names.NewSecret(), names.NewSecret()
	if a == b || len(a) != 52 {
		t.Errorf("NewSecret = %q, %q: want two different ones of 52 characters", a, b)
	}
}
