package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// minRecordings is the least bound on recordings, in bytes: a few parts.
const minRecordings = 1 << 20

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Load reads the file at path, or nothing when path is empty. It does not check
// the values: flags may still change them; call [Config.Check] afterwards.
func Load(path string) (*Config, error) {
	c := &Config{}
	if path == "" {
		return c, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.BadInput, "read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fault.New(fault.BadInput, "read configuration %q: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, fault.New(fault.BadInput, "read configuration %q: larger than %d bytes", path, maxFile)
	}
	return c, parse(path, data, c)
}

// parse decodes the one document of data into c.
func parse(path string, data []byte, c *Config) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.BadInput, "%s", explain(path, err))
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fault.New(fault.BadInput, "%s:%d: a second document; a configuration is one", path, max(more.Line, 1))
	}
	return nil
}

var (
	unknownField = regexp.MustCompile(`^line (\d+): field (\S+) not found in type \S+$`)
	placed       = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
)

// explain turns the decoder's errors into one line per mistake, each with file
// and line.
func explain(path string, err error) string {
	lines := []string{err.Error()}
	if typed, ok := errors.AsType[*yaml.TypeError](err); ok {
		lines = typed.Errors
	}
	for i, l := range lines {
		if m := unknownField.FindStringSubmatch(l); m != nil {
			lines[i] = fmt.Sprintf("%s:%s: unknown field %q", path, m[1], m[2])
		} else if m := placed.FindStringSubmatch(l); m != nil {
			lines[i] = fmt.Sprintf("%s:%s: %s", path, m[1], m[2])
		} else {
			lines[i] = path + ": " + l
		}
	}
	return strings.Join(lines, "\n")
}

// Check fills defaults and returns every mistake of c in one error of kind
// [fault.BadInput].
func (c *Config) Check() error {
	c.withDefaults()
	var m mistakes
	c.checkRoles(&m)
	c.checkAddresses(&m)
	c.checkJoin(&m)
	c.checkNode(&m)
	c.checkFiles(&m)
	c.checkLimits(&m)
	c.checkRecordings(&m)
	m.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	if c.Log.Format != "" {
		m.oneOf("log.format", c.Log.Format, "console", "json")
	}
	return m.err()
}

type mistakes []string

func (m *mistakes) add(format string, args ...any) { *m = append(*m, fmt.Sprintf(format, args...)) }

func (m *mistakes) wrap(field string, err error) {
	if err != nil {
		m.add("%s: %s", field, fault.Public(err))
	}
}

func (m *mistakes) oneOf(field, got string, want ...string) {
	if !slices.Contains(want, got) {
		m.add("%s: %q: want one of %s", field, got, strings.Join(want, ", "))
	}
}

func (m *mistakes) hostPort(field, s string) {
	host, port, err := net.SplitHostPort(s)
	_, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		m.add("%s: %q: want host:port", field, s)
		return
	}
	if strings.ContainsAny(host, " /@%\"'`$;&|<>") {
		m.add("%s: %q: not a host name or address", field, s)
	}
}

func (m *mistakes) storeURL(field, s string) {
	if u, err := url.Parse(s); s != "" && (err != nil || u.Scheme == "") {
		m.add("%s: %q: want a URL, such as file:///var/lib/recordings or s3://bucket?region=eu-central-1", field, s)
	}
}

func (m *mistakes) err() error {
	if len(*m) == 0 {
		return nil
	}
	return fault.New(fault.BadInput, "%s", strings.Join(*m, "\n"))
}

func (c *Config) checkRoles(m *mistakes) {
	for _, r := range c.Roles {
		m.oneOf("roles", r, "auth", "proxy", "node")
	}
	if c.DataDir != "" {
		abs, err := filepath.Abs(c.DataDir)
		if err != nil {
			m.add("data_dir: %q: %v", c.DataDir, err)
		}
		c.DataDir = abs
	}
	if c.ClusterName != "" {
		_, err := names.ParseNodeName(c.ClusterName)
		m.wrap("cluster_name", err)
	}
}

func (c *Config) checkAddresses(m *mistakes) {
	m.hostPort("listen", c.Listen)
	for i, l := range c.Listeners {
		m.hostPort(fmt.Sprintf("listeners[%d].address", i), l.Address)
		for _, p := range l.Protocols {
			m.oneOf(fmt.Sprintf("listeners[%d].protocols", i), p, "ssh", "https", "data")
		}
	}
	for i, a := range c.PublicAddresses {
		if !strings.Contains(a, ":") {
			a = net.JoinHostPort(a, "0")
		}
		m.hostPort(fmt.Sprintf("public_addresses[%d]", i), a)
	}
	if c.Auth.PublicURL != "" {
		u, err := url.Parse(c.Auth.PublicURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" || u.User != nil {
			m.add("auth.public_url: %q: want https://HOST[:PORT]", c.Auth.PublicURL)
		}
		c.Auth.PublicURL = strings.TrimRight(c.Auth.PublicURL, "/")
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		m.add("tls: cert_file and key_file come together")
	}
}

var pinGrammar = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (c *Config) checkJoin(m *mistakes) {
	for i, a := range c.Join.Addresses {
		m.hostPort(fmt.Sprintf("join.addresses[%d]", i), a)
	}
	for i, p := range c.Join.CAPins {
		if !pinGrammar.MatchString(p) {
			m.add(`join.ca_pins[%d]: %q: want "sha256:" and 64 hexadecimal digits, as "accessd ca pin" prints`, i, p)
		}
	}
	if c.Join.Token != "" && c.Join.TokenFile != "" {
		m.add("join: token and token_file contradict each other")
	}
	joins := len(c.Join.Addresses) > 0
	switch auth := c.Role("auth"); {
	case auth && joins:
		m.add("join.addresses: a process with the auth role is the authority and joins nobody")
	case !auth && !joins:
		m.add("join.addresses: a process without the auth role needs the address of a proxy to join")
	case !auth && len(c.Join.CAPins) == 0 && (c.Join.Token != "" || c.Join.TokenFile != ""):
		m.add(`join.ca_pins: joining needs the pin of the cluster's host CA, as "accessd ca pin" prints`)
	}
}

func (c *Config) checkNode(m *mistakes) {
	if c.Node.Name != "" {
		_, err := names.ParseNodeName(c.Node.Name)
		m.wrap("node.name", err)
	}
	m.wrap("node.labels", names.Labels(c.Node.Labels).Check())
	for k, cmd := range c.Node.LabelCommands {
		m.wrap("node.label_commands", names.Labels{k: "x"}.Check())
		if len(cmd.Command) == 0 {
			m.add("node.label_commands.%s: no command", k)
		}
		if _, twice := c.Node.Labels[k]; twice {
			m.add("node.label_commands.%s: also a static label", k)
		}
	}
}

func (c *Config) checkFiles(m *mistakes) {
	files := []struct{ field, path string }{
		{"join.token_file", c.Join.TokenFile},
		{"storage.etcd.ca_file", c.Storage.Etcd.CAFile},
		{"storage.etcd.cert_file", c.Storage.Etcd.CertFile},
		{"storage.etcd.key_file", c.Storage.Etcd.KeyFile},
		{"tls.cert_file", c.TLS.CertFile},
		{"tls.key_file", c.TLS.KeyFile},
	}
	for i, s := range c.Audit.Sinks {
		files = append(files, struct{ field, path string }{fmt.Sprintf("audit.sinks[%d].headers_file", i), s.HeadersFile})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			m.add("%s: %v", f.field, err)
		}
	}
	e := c.Storage.Etcd
	if (e.CertFile == "") != (e.KeyFile == "") {
		m.add("storage.etcd: cert_file and key_file come together")
	}
	for i, ep := range e.Endpoints {
		if !strings.HasPrefix(ep, "https://") && !strings.HasPrefix(ep, "http://") {
			m.add("storage.etcd.endpoints[%d]: %q: want https://host:port", i, ep)
		}
	}
	if !strings.HasPrefix(e.Prefix, "/") || strings.HasSuffix(e.Prefix, "/") {
		m.add("storage.etcd.prefix: %q: want a path that begins and does not end with a slash", e.Prefix)
	}
}

var sinkGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// checkSinks leaves the filters to who reads events.
func (c *Config) checkSinks(m *mistakes) {
	seen := map[string]bool{}
	for i, s := range c.Audit.Sinks {
		at := fmt.Sprintf("audit.sinks[%d].", i)
		if !sinkGrammar.MatchString(s.Name) || seen[s.Name] {
			m.add("%sname: %q: want 1 to 63 of a-z, 0-9 and -, and no other sink's", at, s.Name)
		}
		seen[s.Name] = true
		m.oneOf(at+"type", s.Type, "webhook", "syslog", "otlp", "file")
		if u, err := url.Parse(s.URL); err != nil || u.Scheme == "" {
			m.add("%surl: %q: want a URL", at, s.URL)
		}
	}
}

// checkRecordings checks what concerns recordings and what leaves of the log. It
// leaves the keys to who knows their forms.
func (c *Config) checkRecordings(m *mistakes) {
	r := c.Recordings
	m.storeURL("recordings.store", r.Store)
	m.storeURL("recordings.mirror", r.Mirror)
	m.storeURL("audit.mirror", c.Audit.Mirror)
	if r.Mirror != "" && r.Mirror == r.Store {
		m.add("recordings.mirror: %q: want another place than recordings.store", r.Mirror)
	}
	for i, w := range c.Audit.Witnesses {
		if u, err := url.Parse(w.URL); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
			m.add("audit.witnesses[%d].url: %q: want https://HOST/PREFIX", i, w.URL)
		}
		if w.Key == "" {
			m.add("audit.witnesses[%d].key: none; without it nobody knows whose signature it is", i)
		}
	}
	if c.Audit.Rotate != "" {
		m.oneOf("audit.rotate", c.Audit.Rotate, "never", "monthly", "yearly")
	}
	c.checkSinks(m)
	if r.Retain != 0 && r.Retain < time.Hour {
		m.add("recordings.retain: %v: want at least an hour", r.Retain)
	}
	for _, p := range []struct {
		field string
		n     int64
	}{{"max_size", r.MaxSize}, {"quota", r.Quota}, {"max_session", r.MaxSession}} {
		if p.n < 0 || p.n > 0 && p.n < minRecordings {
			m.add("recordings.%s: %d bytes: want at least %d", p.field, p.n, minRecordings)
		}
	}
}

func (c *Config) checkLimits(m *mistakes) {
	l := c.Limits
	if l.StartupsFull < l.StartupsBegin {
		m.add("limits.startups_full: %d: less than startups_begin, %d", l.StartupsFull, l.StartupsBegin)
	}
	if l.StartupsRate < 1 || l.StartupsRate > 100 {
		m.add("limits.startups_rate: %d: want percent, 1 to 100", l.StartupsRate)
	}
	positive := []struct {
		field string
		n     int64
	}{
		{"limits.startups_begin", int64(l.StartupsBegin)},
		{"limits.per_source", int64(l.PerSource)},
		{"limits.kex_timeout", int64(l.KexTimeout)},
		{"limits.login_timeout", int64(l.LoginTimeout)},
		{"limits.sign_in_timeout", int64(l.SignInTimeout)},
		{"limits.parked_sign_ins", int64(l.ParkedSignIns)},
		{"limits.channels_per_connection", int64(l.ChannelsPerConn)},
		{"grace", int64(c.Grace)},
		{"node.max_sessions", int64(c.Node.MaxSessions)},
		{"tunnel.proxies", int64(c.Tunnel.Proxies)},
		{"auth.max_hashing", int64(c.Auth.MaxHashing)},
		{"auth.user_ttl", int64(c.Auth.UserTTL)},
		{"auth.member_ttl", int64(c.Auth.MemberTTL)},
		{"auth.parked", int64(c.Auth.Parked)},
		{"auth.parked_per_address", int64(c.Auth.ParkedPerAddr)},
	}
	for _, p := range positive {
		if p.n < 0 {
			m.add("%s: negative", p.field)
		}
	}
	if c.Auth.UserTTL > c.Auth.MaxUserTTL {
		m.add("auth.user_ttl: %v: longer than max_user_ttl, %v", c.Auth.UserTTL, c.Auth.MaxUserTTL)
	}
}
