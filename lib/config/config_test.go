package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/fault"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "accessd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestZeroConfigIsAWorkingAllInOne(t *testing.T) {
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatalf("Check = %v, want nil", err)
	}
	for _, r := range []string{"auth", "proxy", "node"} {
		if !c.Role(r) {
			t.Errorf("Role(%q) = false, want all roles by default", r)
		}
	}
	if got, want := c.Listen, "0.0.0.0:3022"; got != want {
		t.Errorf("Listen = %q, want %q", got, want)
	}
}

func TestFileIsRead(t *testing.T) {
	path := write(t, `
roles: [node]
join: {addresses: ["proxy.example.com:3022"]}
node:
  name: db-1
  labels: {env: dev}
  label_commands: {kernel: {command: [uname, -r]}}
limits: {login_timeout: 45s, exempt: [192.0.2.0/24]}
recordings: {store: "s3://bucket?region=x", mirror: "file:///mnt/copy", mirror_delete: true, recipients: [age1abc], retain: 2160h, max_size: 1099511627776, max_session: 1073741824}
`)
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if got, want := c.Limits.LoginTimeout, 45*time.Second; got != want {
		t.Errorf("LoginTimeout = %v, want %v", got, want)
	}
	if got, want := c.Limits.Exempt[0].String(), "192.0.2.0/24"; got != want {
		t.Errorf("Exempt[0] = %v, want %v", got, want)
	}
	want := config.Recordings{
		Store: "s3://bucket?region=x", Mirror: "file:///mnt/copy", Erase: true, Recipients: []string{"age1abc"}, Retain: 90 * 24 * time.Hour, MaxSize: 1 << 40,
		Quota: 10 << 30, MaxSession: 1 << 30,
	}
	if got := c.Recordings; !reflect.DeepEqual(got, want) {
		t.Errorf("Recordings = %+v, want %+v", got, want)
	}
	if got, want := c.Node.LabelCommands["kernel"].Interval, time.Minute; got != want {
		t.Errorf("label command interval = %v, want %v", got, want)
	}
}

func TestEveryMistakeIsNamedWithItsPlace(t *testing.T) {
	cases := []struct {
		name string
		yaml string
		want []string
	}{
		{"unknown fields, both of them", "listne: x\nnode:\n  nam: y\n", []string{`accessd.yaml:1: unknown field "listne"`, `accessd.yaml:3: unknown field "nam"`}},
		{"wrong type", "limits:\n  startups_begin: many\n", []string{"accessd.yaml:2: cannot unmarshal"}},
		{"not yaml", "roles: [auth\n", []string{"accessd.yaml:"}},
		{"second document", "listen: 127.0.0.1:1\n---\nlisten: 127.0.0.1:2\n", []string{"accessd.yaml:2: a second document"}},
		{"bad duration", "grace: soon\n", []string{"accessd.yaml:1:"}},
		{"values", "roles: [auth, king]\nlisten: nowhere\nnode: {name: UPPER, labels: {\"a b\": c}}\njoin: {ca_pins: [md5:1]}\nlog: {level: loud}\n", []string{
			`roles: "king": want one of auth, proxy, node`, `listen: "nowhere": want host:port`, `node.name: node name "UPPER"`,
			`node.labels: label key "a b"`, `join.ca_pins[0]: "md5:1"`, `log.level: "loud"`,
		}},
		{"node alone without an address", "roles: [node]\n", []string{"join.addresses: a process without the auth role needs"}},
		{"a page without TLS", "auth: {public_url: \"http://login.example\"}\n", []string{`auth.public_url: "http://login.example": want https://HOST[:PORT]`}},
		{"a page below another", "auth: {public_url: \"https://login.example/sso\"}\n", []string{`auth.public_url: "https://login.example/sso": want`}},
		{"auth that joins", "join: {addresses: [\"p:1\"]}\n", []string{"join.addresses: a process with the auth role is the authority"}},
		{"shell in a host name", "listen: \"a$(id):22\"\n", []string{"not a host name or address"}},
		{"files that are not there", "tls: {cert_file: /nonexistent/c.pem}\n", []string{"tls.cert_file: stat /nonexistent/c.pem", "tls: cert_file and key_file come together"}},
		{"limits", "limits: {startups_begin: 10, startups_full: 5, startups_rate: 500, per_source: -1}\n", []string{"limits.startups_full: 5", "limits.startups_rate: 500", "limits.per_source: negative"}},
		{"sinks", "audit: {sinks: [{name: A, type: mail, url: here, headers_file: /nonexistent/h}, {name: b, type: file, url: \"file:///x\"}, {name: b, type: file, url: \"file:///x\"}]}\n", []string{
			`audit.sinks[0].name: "A"`, `audit.sinks[0].type: "mail": want one of webhook`, `audit.sinks[0].url: "here"`,
			"audit.sinks[0].headers_file: stat", `audit.sinks[2].name: "b"`,
		}},
		{"audit", "audit: {mirror: x, rotate: weekly, witnesses: [{url: w.example.com}]}\n", []string{
			`audit.mirror: "x": want a URL`, `audit.rotate: "weekly": want one of never, monthly, yearly`, `audit.witnesses[0].url: "w.example.com"`, "audit.witnesses[0].key: none",
		}},
		{"recordings", "recordings: {store: /var/x, mirror: /var/x, retain: 5m, max_size: -1, quota: 100, max_session: 9}\n", []string{
			`recordings.store: "/var/x": want a URL`, `recordings.mirror: "/var/x": want a URL`, "want another place than recordings.store", "recordings.retain: 5m0s: want at least an hour",
			"recordings.max_size: -1 bytes", "recordings.quota: 100 bytes", "recordings.max_session: 9 bytes",
		}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, err := config.Load(write(t, tc.yaml))
			if err == nil {
				err = c.Check()
			}
			if !fault.Is(err, fault.BadInput) {
				t.Fatalf("error = %v, want bad input", err)
			}
			for _, want := range tc.want {
				if got := fault.Public(err); !strings.Contains(got, want) {
					t.Errorf("error %q lacks %q", got, want)
				}
			}
		})
	}
}

func FuzzLoadRefusesOrChecks(f *testing.F) {
	f.Add("roles: [node]\njoin: {addresses: [\"p:1\"]}\n")
	f.Add("limits: {exempt: [::1/128]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "accessd.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path)
		if err != nil {
			if !fault.Is(err, fault.BadInput) {
				t.Errorf("Load = %v, want bad input", err)
			}
			return
		}
		if err := c.Check(); err != nil && !fault.Is(err, fault.BadInput) {
			t.Errorf("Check = %v, want bad input", err)
		}
	})
}
