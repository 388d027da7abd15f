// Package config turns a configuration file and the command line's flags into
// one checked [Config].
//
// The file is YAML and strict: an unknown field, a wrong type or an impossible
// value is a mistake, and every mistake is in the one error that [Load] or
// [Config.Check] returns, with its place. The zero value of most fields means a
// default, which docs/config.md lists; that page is generated from the doc tags
// below. Secrets are never in the file: it names files that hold them.
package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/names"
)

// Config is everything that "accessd start" can be told.
type Config struct {
	DataDir         string        `yaml:"data_dir" doc:"Where everything is kept: state, keys, audit log, spool." default:"/var/lib/accessd"`
	Roles           []string      `yaml:"roles" doc:"What this process does: auth, proxy, node." default:"[auth, proxy, node]"`
	ClusterName     string        `yaml:"cluster_name" doc:"Name of a new cluster; it cannot be changed later." default:"the host's name"`
	Listen          string        `yaml:"listen" doc:"Address people, members and browsers connect to. A process with only the node role listens nowhere." default:"0.0.0.0:3022"`
	Listeners       []Listener    `yaml:"listeners" doc:"Further addresses, each may be limited to some protocols."`
	PublicAddresses []string      `yaml:"public_addresses" doc:"host[:port] under which people and nodes reach this proxy; they become names in its host certificate." default:"listen"`
	Join            Join          `yaml:"join" doc:"How a process without the auth role joins a cluster."`
	Node            Node          `yaml:"node" doc:"The node role."`
	Tunnel          Tunnel        `yaml:"tunnel" doc:"Reverse tunnels."`
	Storage         Storage       `yaml:"storage" doc:"Where the auth role keeps its state."`
	Keys            Keys          `yaml:"keys" doc:"How private keys are sealed at rest."`
	Auth            Auth          `yaml:"auth" doc:"The auth role."`
	Recordings      Recordings    `yaml:"recordings" doc:"What is recorded of sessions, and where it is kept."`
	Audit           Audit         `yaml:"audit" doc:"On the auth role: who else vouches for the audit log, and where else it is."`
	TLS             TLS           `yaml:"tls" doc:"TLS on the listener."`
	ProxyProtocol   ProxyHeaders  `yaml:"proxy_protocol" doc:"Load balancers in front of the listener."`
	Limits          Limits        `yaml:"limits" doc:"Bounds for peers that have not authenticated."`
	SSH             SSH           `yaml:"ssh" doc:"SSH algorithms."`
	Log             Log           `yaml:"log" doc:"Diagnostics on stderr; audit events are never there."`
	Grace           time.Duration `yaml:"grace" doc:"How long live sessions may go on after SIGTERM." default:"10s"`
}

// Listener is a further address.
type Listener struct {
	Address   string   `yaml:"address" doc:"host:port."`
	Protocols []string `yaml:"protocols" doc:"Some of ssh, https, data." default:"all"`
}

// Join is how a process finds and trusts its cluster.
type Join struct {
	Addresses []string `yaml:"addresses" doc:"host:port of proxies (or, for a proxy, of authorities)."`
	TokenFile string   `yaml:"token_file" doc:"File that holds the join token; needed at the first start only."`
	CAPins    []string `yaml:"ca_pins" doc:"sha256:… of the cluster's host CA, as \"accessd ca pin\" prints it."`

	// Token is the token itself, from --token; it is never read from the file.
	Token string `yaml:"-"`
}

// Node configures the node role.
type Node struct {
	Name          string             `yaml:"name" doc:"Name of the node in the cluster." default:"the host's name"`
	Labels        map[string]string  `yaml:"labels" doc:"Labels that roles match on."`
	LabelCommands map[string]Command `yaml:"label_commands" doc:"Labels whose value a command prints."`
	MaxSessions   int                `yaml:"max_sessions" doc:"Live sessions on this node." default:"1000"`
	OutliveCert   bool               `yaml:"outlive_certificate" doc:"Let a session go on after its certificate expired." default:"false"`
}

// Command is a label's command.
type Command struct {
	Command  []string      `yaml:"command" doc:"Program and arguments; no shell."`
	Interval time.Duration `yaml:"interval" doc:"Time between two runs." default:"1m"`
}

// Tunnel configures both ends of reverse tunnels.
type Tunnel struct {
	NoDialBack bool `yaml:"no_dial_back" doc:"Carry sessions in channels of the control connection only." default:"false"`
	Plain      bool `yaml:"plain" doc:"No TLS around data connections; what they carry is SSH from end to end already. For trusted networks." default:"false"`
	Proxies    int  `yaml:"proxies" doc:"How many proxies a node keeps tunnels to." default:"2"`
}

// Storage configures the backend.
type Storage struct {
	Etcd Etcd `yaml:"etcd" doc:"An external etcd; without endpoints one is embedded in the process."`
}

// Etcd configures an external etcd.
type Etcd struct {
	Endpoints []string `yaml:"endpoints" doc:"https://host:2379 of each member."`
	CAFile    string   `yaml:"ca_file" doc:"PEM file of the CA that signs the members' certificates."`
	CertFile  string   `yaml:"cert_file" doc:"PEM file of our client certificate."`
	KeyFile   string   `yaml:"key_file" doc:"PEM file of its key."`
	Prefix    string   `yaml:"prefix" doc:"Prefix of every key." default:"/accessd"`
}

// Keys configures sealing.
type Keys struct {
	SealURL string `yaml:"seal_url" doc:"URL of a KMS key: awskms://… or hashivault://… (gocloud.dev/secrets), in a binary that was built with that tag." default:"a key file in the data directory"`
	File    string `yaml:"file" doc:"The key file." default:"DATA_DIR/keys/seal.key"`
}

// Auth configures the authority.
type Auth struct {
	Argon2        Argon2        `yaml:"argon2" doc:"Cost of password hashing (RFC 9106)."`
	MaxHashing    int           `yaml:"max_hashing" doc:"Passwords hashed at the same time." default:"2"`
	UserTTL       time.Duration `yaml:"user_ttl" doc:"Lifetime of a person's certificate unless asked otherwise." default:"12h"`
	MaxUserTTL    time.Duration `yaml:"max_user_ttl" doc:"The longest that may be asked for." default:"720h"`
	MemberTTL     time.Duration `yaml:"member_ttl" doc:"Lifetime of a node's or proxy's certificates; renewed at half." default:"24h"`
	PublicURL     string        `yaml:"public_url" doc:"https://HOST[:PORT] where people's browsers find the proxies. Passkeys are for its host name, so all authorities of a cluster have the same." default:"the proxy's own address"`
	ParkedPerAddr int           `yaml:"parked_per_address" doc:"Interactive sign-ins under way per source address." default:"10"`
	Parked        int           `yaml:"parked" doc:"Interactive sign-ins under way in all." default:"1000"`
}

// Argon2 is the cost of argon2id.
type Argon2 struct {
	Time      uint32 `yaml:"time" doc:"Passes." default:"2"`
	MemoryKiB uint32 `yaml:"memory_kib" doc:"Memory in KiB." default:"65536"`
	Threads   uint8  `yaml:"threads" doc:"Lanes." default:"2"`
}

// Recordings configures recorders, on every process that serves sessions, and on
// the auth role the store and what it keeps. Roles say which sessions are
// recorded.
type Recordings struct {
	Store      string        `yaml:"store" doc:"On the auth role: where recordings are kept, a folder as file:///PATH or a bucket: s3://BUCKET?region=REGION and other URLs of gocloud.dev/blob." default:"a folder, DATA_DIR/recordings"`
	Mirror     string        `yaml:"mirror" doc:"On the auth role: a folder or bucket that every recording is copied to, a URL as for store, and another." default:"none"`
	Erase      bool          `yaml:"mirror_delete" doc:"On the auth role: remove from the mirror, too, what is removed from the store. Without it the mirror keeps everything, and need not let itself be deleted from." default:"false"`
	Recipients []string      `yaml:"recipients" doc:"On the auth role: public keys that recordings are sealed for (age1…, ssh-ed25519 …, ssh-rsa …), at most 32. With any, nothing on the server opens them, and there is no search in them." default:"none: not sealed"`
	Retain     time.Duration `yaml:"retain" doc:"On the auth role: remove what is older, such as 2160h for 90 days, unless it is on hold." default:"for ever"`
	MaxSize    int64         `yaml:"max_size" doc:"On the auth role: bytes of all recordings, past which the oldest are removed unless they are on hold." default:"no bound"`
	Quota      int64         `yaml:"quota" doc:"Bytes that wait on this machine's disk to be uploaded; past it nothing further is recorded, and sessions that must be end." default:"10737418240"`
	MaxSession int64         `yaml:"max_session" doc:"On the auth role: bytes of one session's recording, at which it counts as one that cannot be written." default:"no bound"`
}

// Audit configures what goes beyond this machine of the audit log.
type Audit struct {
	Witnesses []Witness `yaml:"witnesses" doc:"Witnesses that cosign checkpoints (C2SP tlog-witness)."`
	Rotate    string    `yaml:"rotate" doc:"When the log goes on in a new period, which can be archived and proven apart from the others: never, monthly or yearly, in UTC." default:"never"`
	Mirror    string    `yaml:"mirror" doc:"A folder or bucket that the log is copied to, a URL as for recordings.store." default:"none"`
	Sinks     []Sink    `yaml:"sinks" doc:"Where events go besides, each at least once and in order."`
}

// Sink is where events go as they are logged.
type Sink struct {
	Name        string     `yaml:"name" doc:"a-z, 0-9 and -; how far it has got is kept under this name."`
	Type        string     `yaml:"type" doc:"webhook, syslog, otlp or file."`
	URL         string     `yaml:"url" doc:"Where to."`
	HeadersFile string     `yaml:"headers_file" doc:"File with a line \"Name: value\" for each header to send, such as a token."`
	Filter      SinkFilter `yaml:"filter" doc:"Which events; what is left out selects all."`
}

// SinkFilter selects events as the flags of "accessd audit ls" do.
type SinkFilter struct {
	Event   string   `yaml:"event" doc:"A name, or its beginning up to a dot."`
	User    string   `yaml:"user" doc:"A user."`
	Login   string   `yaml:"login" doc:"A login."`
	Node    string   `yaml:"node" doc:"A node's name or id."`
	Labels  []string `yaml:"labels" doc:"KEY=VALUE that the node has."`
	Address string   `yaml:"address" doc:"An address or a network."`
	Outcome string   `yaml:"outcome" doc:"success or failure."`
	Text    string   `yaml:"text" doc:"Words that are in it."`
}

// Witness cosigns checkpoints.
type Witness struct {
	URL string `yaml:"url" doc:"https://HOST/PREFIX; /add-checkpoint follows."`
	Key string `yaml:"key" doc:"Its verifier key, as for C2SP signed notes."`
}

// TLS configures the listener's certificate.
type TLS struct {
	CertFile string `yaml:"cert_file" doc:"PEM file of the certificate chain." default:"a self-signed one"`
	KeyFile  string `yaml:"key_file" doc:"PEM file of its key."`
}

// ProxyHeaders configures the PROXY protocol.
type ProxyHeaders struct {
	Trusted []netip.Prefix `yaml:"trusted" doc:"Networks whose connections begin with a PROXY v1 or v2 header; from anywhere else such a header is refused."`
}

// Limits bounds peers before they have authenticated.
type Limits struct {
	StartupsBegin   int            `yaml:"startups_begin" doc:"Unauthenticated connections from which on some are dropped at random." default:"100"`
	StartupsRate    int            `yaml:"startups_rate" doc:"Percent dropped at startups_begin; grows to all at startups_full." default:"30"`
	StartupsFull    int            `yaml:"startups_full" doc:"Unauthenticated connections from which on all are dropped." default:"1000"`
	PerSource       int            `yaml:"per_source" doc:"Unauthenticated connections per source: an IPv4 address or an IPv6 /64." default:"50"`
	Exempt          []netip.Prefix `yaml:"exempt" doc:"Sources that are never penalised, such as a shared office address."`
	NoPenalties     bool           `yaml:"no_penalties" doc:"Do not make failing sources wait." default:"false"`
	KexTimeout      time.Duration  `yaml:"kex_timeout" doc:"From accept to the end of the key exchange." default:"10s"`
	LoginTimeout    time.Duration  `yaml:"login_timeout" doc:"From accept to a certificate login." default:"30s"`
	SignInTimeout   time.Duration  `yaml:"sign_in_timeout" doc:"For an interactive sign-in." default:"5m"`
	ParkedSignIns   int            `yaml:"parked_sign_ins" doc:"Interactive sign-ins under way at this proxy." default:"200"`
	ChannelsPerConn int            `yaml:"channels_per_connection" doc:"Channels open on one connection." default:"128"`
}

// SSH configures algorithms.
type SSH struct {
	Ciphers []string `yaml:"ciphers" doc:"Ciphers in order of preference." default:"AES-GCM where the CPU has AES instructions"`
}

// Log configures diagnostics.
type Log struct {
	Level  string `yaml:"level" doc:"debug, info, warn or error." default:"info"`
	Format string `yaml:"format" doc:"console or json." default:"console on a terminal, else json"`
}

// Role reports whether this process has the named role.
func (c *Config) Role(name string) bool {
	return slices.Contains(c.Roles, name)
}

// NodeLabels returns the static labels.
func (c *Config) NodeLabels() names.Labels { return c.Node.Labels }

// withDefaults fills what was left out and has a fixed default.
func (c *Config) withDefaults() {
	set(&c.DataDir, "/var/lib/accessd")
	set(&c.Listen, defaults.ListenAddr)
	set(&c.Storage.Etcd.Prefix, "/accessd")
	set(&c.Log.Level, "info")
	set(&c.Grace, defaults.Grace)
	set(&c.Node.MaxSessions, 1000)
	set(&c.Tunnel.Proxies, 2)
	set(&c.Auth.Argon2.Time, 2)
	set(&c.Auth.Argon2.MemoryKiB, 64<<10)
	set(&c.Auth.Argon2.Threads, 2)
	set(&c.Auth.MaxHashing, 2)
	set(&c.Auth.UserTTL, defaults.UserCertTTL)
	set(&c.Auth.MaxUserTTL, defaults.MaxUserCertTTL)
	set(&c.Auth.MemberTTL, defaults.MemberCertTTL)
	set(&c.Auth.ParkedPerAddr, 10)
	set(&c.Auth.Parked, 1000)
	set(&c.Limits.StartupsBegin, 100)
	set(&c.Limits.StartupsRate, 30)
	set(&c.Limits.StartupsFull, 1000)
	set(&c.Limits.PerSource, 50)
	set(&c.Limits.KexTimeout, defaults.KexTimeout)
	set(&c.Limits.LoginTimeout, defaults.LoginTimeout)
	set(&c.Limits.SignInTimeout, defaults.SignInTimeout)
	set(&c.Limits.ParkedSignIns, 200)
	set(&c.Limits.ChannelsPerConn, 128)
	set(&c.Recordings.Quota, 10<<30)
	for k, cmd := range c.Node.LabelCommands {
		set(&cmd.Interval, time.Minute)
		c.Node.LabelCommands[k] = cmd
	}
	if len(c.Roles) == 0 {
		c.Roles = []string{"auth", "proxy", "node"}
	}
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
