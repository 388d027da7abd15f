package integration

import (
	"crypto/x509"
	"encoding/json"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/client"
	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

// A site is a proxy as curl and the Go client see it.
type site struct {
	t          *testing.T
	addr, cert string
}

// curl calls a method with the stock client and returns the status and the answer.
func (s site) curl(method, token, body string, flags ...string) (status, answer string) {
	s.t.Helper()
	args := append([]string{"-sS", "--max-time", "30", "--cacert", s.cert, "-w", "\n%{http_code}", "--json", body}, flags...)
	if token != "" {
		args = append(args, "-H", "Authorization: Bearer "+token)
	}
	r := harness.Run(s.t, nil, "curl", append(args, "https://"+s.addr+"/accessd.v1."+method)...)
	if r.Code != 0 {
		s.t.Fatalf("curl %s: %d %s", method, r.Code, r.Stderr)
	}
	i := strings.LastIndexByte(r.Stdout, '\n')
	return r.Stdout[i+1:], r.Stdout[:i]
}

func (s site) dial(token string) *client.Client {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(read(s.t, s.cert)))
	api, err := client.DialHTTPS(client.HTTPSConfig{Address: s.addr, Token: token, Roots: roots})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = api.Close() })
	return api
}

// newToken makes an API token with stock ssh at the proxy at addr.
func newToken(t *testing.T, p *harness.Person, addr string, flags ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	r := p.SSH(append([]string{"-p", port, p.Name + "@" + host, "api-tokens", "add", "--quiet"}, flags...)...)
	token := strings.TrimSpace(r.Stdout)
	if r.Code != 0 || !strings.HasPrefix(token, "accessd-api-") {
		t.Fatalf("api-tokens add at %s: %d %q %q", addr, r.Code, r.Stdout, r.Stderr)
	}
	harness.Secret("an API token of "+p.Name, token)
	return token
}

// tokenAPI has programs call over HTTPS as anna, an auditor, who makes them tokens
// with stock ssh. They may what she may, at the proxy that is the authority and at
// the one that is not, until she or somebody else ends that.
func tokenAPI(t *testing.T, c *harness.Cluster, anna *harness.Person, other *harness.Process) {
	sites := []site{
		{t, c.Addr, filepath.Join(c.Dir, "tls", "tls.crt")},
		{t, other.Field("listen"), filepath.Join(other.DataDir(), "tls", "tls.crt")},
	}
	for i, s := range sites {
		token := newToken(t, anna, sites[1-i].addr, "--ttl", "1h", "--note", "report")
		for _, version := range []string{"--http1.1", "--http2"} {
			if status, answer := s.curl("NodeService/ListNodes", token, "{}", version); status != "200" || !strings.Contains(answer, `"n1"`) {
				t.Errorf("nodes at %s with %s: %s %s", s.addr, version, status, answer)
			}
		}
		for method, want := range map[string]struct{ status, code string }{
			"UserService/AddUser":         {"403", "permission_denied"},
			"APITokenService/AddAPIToken": {"403", "permission_denied"},
			"MemberService/AppendEvents":  {"403", "permission_denied"},
			"NodeService/NoSuchMethod":    {"404", ""},
		} {
			status, answer := s.curl(method, token, "{}")
			var e struct{ Code string }
			_ = json.Unmarshal([]byte(answer), &e) // what is not JSON has no code
			if status != want.status || e.Code != want.code {
				t.Errorf("%s: %s %s, want %s %s", method, status, answer, want.status, want.code)
			}
		}
		wantEvent(t, c, map[string]string{"user": "anna", "proto": "https", "action": "/accessd.v1.NodeService/ListNodes", "success": "true", "api_token": tokenID(token)}, "--event", "access.decision")

		for name, try := range map[string]struct {
			token string
			flags []string
		}{
			"no token":            {"", nil},
			"a password":          {"", []string{"-u", "anna:secret"}},
			"another's id":        {tokenID(token) + "." + strings.Repeat("a", 52), nil},
			"another secret":      {"accessd-api-" + tokenID(token) + "." + strings.Repeat("a", 52), nil},
			"in the proxy's name": {"", []string{"-H", "Accessd-Token: " + token, "-H", "Accessd-Client: 127.0.0.1:1"}},
			"a header taken out":  {"x", []string{"-H", "Accessd-Token: " + token, "-H", "Connection: Accessd-Token, Accessd-Client", "--http1.1"}},
		} {
			if status, answer := s.curl("NodeService/ListNodes", try.token, "{}", try.flags...); status != "401" || !strings.Contains(answer, `"unauthenticated"`) {
				t.Errorf("%s: %s %s, want 401", name, status, answer)
			}
		}
		if r := harness.Run(t, nil, "curl", "-sS", "--cacert", s.cert, "-w", "%{http_code}", "-H", "Accessd-Token: "+token, "--json", "{}",
			"https://"+s.addr+"/with-token/accessd.v1.NodeService/ListNodes"); r.Stdout != "not found\n404" {
			t.Errorf("the path between proxy and authority: %q", r.Stdout)
		}
		leaveAPI(t, c, s, anna)
	}
	wantEvent(t, c, map[string]string{"proto": "https", "method": "api_token", "reason": "no API token", "success": "false"}, "--event", "auth.rejected")
	wantEvent(t, c, map[string]string{"user": "anna", "by": "anna", "note": "report"}, "--event", "api_token.create")
	stolen := newToken(t, anna, other.Field("listen"))
	serial := regexp.MustCompile(`(?m)^\s*Serial: (\d+)$`).FindStringSubmatch(harness.Run(t, nil, "ssh-keygen", "-L", "-f", anna.Key+"-cert.pub").Stdout)
	if len(serial) == 0 {
		t.Fatal("anna's certificate has no serial number")
	}
	lock := strings.TrimSpace(c.Admin("locks", "add", "--serial", serial[1], "--message", "laptop stolen"))
	for _, s := range sites {
		c.Eventually("what stands for anna's certificate is locked out", func() bool {
			status, answer := s.curl("NodeService/ListNodes", stolen, "{}")
			return status == "403" && strings.Contains(answer, "laptop stolen")
		})
	}
	c.Admin("locks", "rm", lock)
	c.Eventually("anna is back", func() bool {
		status, _ := sites[1].curl("NodeService/ListNodes", stolen, "{}")
		return status == "200"
	})
	locked := newToken(t, anna, c.Addr)
	c.Admin("locks", "add", "--user", "anna", "--message", "out of office")
	for _, s := range sites {
		c.Eventually("anna is locked out", func() bool {
			status, answer := s.curl("NodeService/ListNodes", locked, "{}")
			return status == "403" && strings.Contains(answer, "out of office")
		})
	}
}

func tokenID(token string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(token, "accessd-api-"), ".")
	return id
}

// leaveAPI calls with the Go client, in two protocols and as a stream, until the
// token is removed.
func leaveAPI(t *testing.T, c *harness.Cluster, s site, anna *harness.Person) {
	t.Helper()
	token := newToken(t, anna, s.addr)
	api := s.dial(token)
	if res, err := api.Nodes().ListNodes(t.Context(), connect.NewRequest(&accessdv1.ListNodesRequest{})); err != nil || len(res.Msg.GetNodes()) != 1 {
		t.Errorf("nodes of the Go client = %v, %v", res, err)
	}
	grpc := accessdv1connect.NewNodeServiceClient(api.HTTP(), rpc.BaseURL, connect.WithGRPC())
	if res, err := grpc.ListNodes(t.Context(), connect.NewRequest(&accessdv1.ListNodesRequest{})); err != nil || len(res.Msg.GetNodes()) != 1 {
		t.Errorf("nodes over gRPC = %v, %v", res, err)
	}
	if _, err := api.Users().AddUser(t.Context(), connect.NewRequest(&accessdv1.AddUserRequest{Name: "mallory"})); !fault.Is(err, fault.Denied) || fault.Public(err) != "you may not create users" {
		t.Errorf("the auditor's token adds a user: %v", err)
	}
	host, port, _ := net.SplitHostPort(s.addr)
	var ended error
	removed := false
	for update, err := range api.Watch(t.Context(), "node") {
		if ended = err; err != nil || removed {
			continue
		}
		if update.GetSynced() {
			removed = true
			if r := anna.SSH("-p", port, "anna@"+host, "api-tokens", "rm", tokenID(token)); r.Code != 0 {
				t.Errorf("api-tokens rm: %d %s", r.Code, r.Stderr)
			}
		}
	}
	if !removed || !fault.Is(ended, fault.Denied) {
		t.Errorf("the stream of a token that is removed ended with %v (removed: %v), want denied", ended, removed)
	}
	if _, err := api.Nodes().ListNodes(t.Context(), connect.NewRequest(&accessdv1.ListNodesRequest{})); !fault.Is(err, fault.Denied) {
		t.Errorf("a call with the token that is removed: %v, want denied", err)
	}
	if r := anna.SSH("-p", port, "anna@"+host, "api-tokens", "ls", "--format", "json"); r.Code != 0 || strings.Contains(r.Stdout, tokenID(token)) {
		t.Errorf("api-tokens ls: %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"by": "anna", "api_token": tokenID(token)}, "--event", "api_token.delete")
}
