// Package client calls the services of a cluster (api/accessd/v1) from Go: over SSH
// through a proxy, as a person with a certificate; over HTTPS, with an API token of
// a person's (see [DialHTTPS]); or over the admin socket of an authority's machine.
// What may be called is decided by the roles, as it is for
// the command line, which uses the same services.
//
//	c, err := client.Dial(ctx, client.Config{
//		Address: "proxy.example.com:3022", User: "alice",
//		Signer: signer,  // see ssh.NewCertSigner
//		HostKey: hostKey, // see HostCA
//	})
//	…
//	res, err := c.Nodes().ListNodes(ctx, connect.NewRequest(&accessdv1.ListNodesRequest{}))
//
// Errors are those of package lib/fault.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// DefaultTimeout bounds connecting and logging in.
const DefaultTimeout = 30 * time.Second

// Config says where to call, and as whom.
type Config struct {
	Address string // HOST:PORT of a proxy
	User    string // the person, whose certificate Signer has

	Signer  ssh.Signer          // with a certificate; see [ssh.NewCertSigner]
	HostKey ssh.HostKeyCallback // checks the proxy; see [HostCA]

	Timeout time.Duration // 0 means DefaultTimeout
}

// A Client calls services. Its methods may be called at the same time.
type Client struct {
	http  *http.Client
	close func() error
}

// hostAlgorithms are those by which a proxy proves itself, certificates first (RFC
// 8709, PROTOCOL.certkeys).
func hostAlgorithms() []string {
	return []string{
		ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
		ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
}

// HostCA returns what trusts the hosts of a cluster: keys is what "accessd ca export
// --type host" prints, one public key a line in authorized_keys format.
func HostCA(keys []byte) (ssh.HostKeyCallback, error) {
	var trust sshca.Trust
	for rest := bytes.TrimSpace(keys); len(rest) > 0; {
		key, _, _, next, err := ssh.ParseAuthorizedKey(rest)
		if err != nil {
			return nil, fault.Wrap(fault.BadInput, err, "read the host authority's keys")
		}
		trust.Host, rest = append(trust.Host, key), bytes.TrimSpace(next)
	}
	if len(trust.Host) == 0 {
		return nil, fault.New(fault.BadInput, "read the host authority's keys: there is none")
	}
	return func(address string, remote net.Addr, key ssh.PublicKey) error {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return fault.Wrap(fault.BadInput, err, "address of the proxy")
		}
		return trust.HostKeyCallback(host, time.Now)(address, remote, key)
	}, nil
}

// Dial connects to a proxy and logs in. Every call then travels on that
// connection; when it ends, so does the Client.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Address == "" || cfg.User == "" || cfg.Signer == nil || cfg.HostKey == nil {
		return nil, fault.New(fault.BadInput, "client: address, user, signer and host key are required")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "connect to "+cfg.Address)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, channels, requests, err := ssh.NewClientConn(raw, cfg.Address, &ssh.ClientConfig{
		User: cfg.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(cfg.Signer)},
		HostKeyCallback: cfg.HostKey, HostKeyAlgorithms: hostAlgorithms(),
	})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Denied, err, "log in to "+cfg.Address+" as "+cfg.User), raw.Close())
	}
	far := ssh.NewClient(conn, channels, requests)
	var opening sync.Mutex // a call that finds no connection opens one channel, not several
	calls := rpc.Client(func(context.Context) (net.Conn, error) {
		opening.Lock()
		defer opening.Unlock()
		ch, reqs, err := far.OpenChannel(sshwire.ChannelAPI, nil)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "open a channel to the services")
		}
		go ssh.DiscardRequests(reqs)
		return rpc.ChannelConn(ch, far.LocalAddr(), far.RemoteAddr()), nil
	})
	return &Client{http: calls, close: far.Close}, nil
}

// HTTPSConfig says where to call with an API token.
type HTTPSConfig struct {
	Address string // HOST:PORT of a proxy
	Token   string // what "accessd api-tokens add" prints

	Roots *x509.CertPool // whom the proxy's TLS certificate must be of; nil means the system's
}

// DialHTTPS returns a client that calls over HTTPS with an API token, as the person
// whose it is. It connects when there is something to call.
func DialHTTPS(cfg HTTPSConfig) (*Client, error) {
	if cfg.Address == "" || cfg.Token == "" {
		return nil, fault.New(fault.BadInput, "client: address and token are required")
	}
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, fault.Wrap(fault.BadInput, err, "address of the proxy")
	}
	conns := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, DisableCompression: true,
		TLSHandshakeTimeout: DefaultTimeout, IdleConnTimeout: DefaultTimeout, Proxy: http.ProxyFromEnvironment,
	}
	calls := &http.Client{
		Transport:     withToken{host: cfg.Address, token: cfg.Token, next: conns},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a token is for one place
	}
	return &Client{http: calls, close: func() error { conns.CloseIdleConnections(); return nil }}, nil
}

// withToken sends calls to a proxy, with a token.
type withToken struct {
	host, token string
	next        http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (t withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host, out.Host = "https", t.host, ""
	out.Header.Set("Authorization", "Bearer "+t.token)
	return t.next.RoundTrip(out)
}

// Local returns a client of the authority whose data directory this is, over its
// admin socket: root, or the user it runs as, may call everything.
func Local(dataDir string) *Client {
	calls := rpc.Client(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dataDir, "admin.sock"))
	})
	return &Client{http: calls, close: func() error { calls.CloseIdleConnections(); return nil }}
}

// Close ends the connection and every call on it.
func (c *Client) Close() error {
	err := c.close()
	c.http.CloseIdleConnections()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// HTTP returns what calls travel on, for the services that have no method here:
// rpc.Service(c.HTTP(), accessdv1connect.NewXServiceClient).
func (c *Client) HTTP() *http.Client { return c.http }

// Users manages people.
func (c *Client) Users() accessdv1connect.UserServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewUserServiceClient)
}

// Roles manages roles.
func (c *Client) Roles() accessdv1connect.RoleServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewRoleServiceClient)
}

// Policy explains decisions.
func (c *Client) Policy() accessdv1connect.PolicyServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewPolicyServiceClient)
}

// Nodes manages nodes.
func (c *Client) Nodes() accessdv1connect.NodeServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewNodeServiceClient)
}

// Tokens manages join tokens.
func (c *Client) Tokens() accessdv1connect.TokenServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewTokenServiceClient)
}

// Sessions lists and ends live sessions.
func (c *Client) Sessions() accessdv1connect.SessionServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewSessionServiceClient)
}

// Requests makes and reviews access requests.
func (c *Client) Requests() accessdv1connect.RequestServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewRequestServiceClient)
}

// Locks manages locks.
func (c *Client) Locks() accessdv1connect.LockServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewLockServiceClient)
}

// Audit reads and proves the audit log.
func (c *Client) Audit() accessdv1connect.AuditServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewAuditServiceClient)
}

// Recordings lists and reads recordings.
func (c *Client) Recordings() accessdv1connect.ArchiveServiceClient {
	return rpc.Service(c.http, accessdv1connect.NewArchiveServiceClient)
}

// Watch yields all resources of kinds and then every change, until ctx or the loop
// ends, or with the error that ended the stream. What has been told before is to
// be forgotten where an update resets. See [accessdv1.WatchRequest] for the kinds.
func (c *Client) Watch(ctx context.Context, kinds ...string) iter.Seq2[*accessdv1.PolicyUpdate, error] {
	return func(yield func(*accessdv1.PolicyUpdate, error) bool) {
		stream, err := rpc.Service(c.http, accessdv1connect.NewWatchServiceClient).Watch(ctx, connect.NewRequest(&accessdv1.WatchRequest{Kinds: kinds}))
		if err != nil {
			yield(nil, err)
			return
		}
		defer func() { _ = stream.Close() }() // it has ended, or nobody reads on
		for stream.Receive() {
			if !yield(stream.Msg(), nil) {
				return
			}
		}
		if err := stream.Err(); err != nil {
			yield(nil, err)
		}
	}
}
