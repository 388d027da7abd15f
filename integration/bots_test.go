package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/integration/impostor"
	"github.com/accessd/accessd/lib/fault"
)

// bot is one that comes to the proxy with stock ssh.
type bot struct {
	c    *harness.Cluster
	name string
	key  string
}

// ssh runs a verb at the proxy; with a token it is typed where ssh asks.
func (b bot) ssh(t *testing.T, key, token string, verb ...string) harness.Result {
	t.Helper()
	host, port, _ := net.SplitHostPort(b.c.Addr)
	hosts := b.c.File("bot-hosts", b.c.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
	args := []string{"-F", "none", "-o", "UserKnownHostsFile=" + hosts, "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", key, "-p", port, b.name + "@" + host}
	if token == "" {
		return harness.Run(t, nil, "ssh", append(append([]string{"-o", "BatchMode=yes"}, args...), verb...)...)
	}
	ask := b.c.File("bot-askpass-"+b.name, "#!/bin/sh\necho "+token+"\n")
	harness.Run(t, nil, "chmod", "700", ask)
	return harness.Run(t, nil, "env", append(append([]string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force", "ssh"}, args...), verb...)...)
}

// renew renews with the certificate beside key, and keeps what comes of it.
func (b bot) renew(t *testing.T, key string) harness.Result {
	t.Helper()
	r := b.ssh(t, key, "", "renew")
	if r.Code == 0 {
		harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	}
	return r
}

// A bot comes in once with a token and stock ssh, renews, and works; a copy of its
// key is found at the next renewal of either, and both are out.
func TestBotsAndTheirCopies(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	token := strings.TrimSpace(c.Admin("bots", "add", "deployer", "--roles", "access", "--logins", c.Login, "--ttl", "5m"))
	harness.Secret("a bot's token", token)
	b := bot{c, "deployer", c.Key("deployer")}
	r := b.ssh(t, b.key, token, "login")
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
		t.Fatalf("login = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	harness.WriteFile(t, b.key+"-cert.pub", r.Stdout)
	if r := b.ssh(t, c.Key("thief"), token, "login"); r.Code == 0 {
		t.Error("the token was good twice")
	}
	config := c.File("bot-config", c.Admin("ssh-config", "--identity", b.key))
	work := func() harness.Result {
		return harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", c.Login+"@n1", "echo done")
	}
	if r := work(); r.Stdout != "done\n" {
		t.Fatalf("the bot's work = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := b.renew(t, b.key); r.Code != 0 {
		t.Fatalf("renew = %d %q", r.Code, r.Stderr)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	for _, ext := range []string{"", "-cert.pub"} {
		harness.WriteFile(t, copied+ext, read(t, b.key+ext))
	}
	harness.Run(t, nil, "chmod", "600", copied)
	for range 2 {
		if r := b.renew(t, b.key); r.Code != 0 {
			t.Fatalf("renew = %d %q", r.Code, r.Stderr)
		}
	}
	if r := work(); r.Stdout != "done\n" {
		t.Fatalf("the bot's work = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := b.renew(t, copied); r.Code != fault.Denied.ExitCode() || r.Stdout != "" {
		t.Errorf("the copy renewed: %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := b.renew(t, b.key); r.Code == 0 {
		t.Error("the bot that was copied renewed")
	}
	if r := work(); r.Code != 255 || !strings.Contains(r.Stderr, "copied") {
		t.Errorf("the bot's work after that = %d %q %q, want the lock's message", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "deployer", "method": "bot_renew", "success": "false"}, "--event", "user.login", "--failed")
	wantEvent(t, c, map[string]string{"message": "this bot's key was copied"}, "--event", "lock.created")
}

// jobToken is an ID token of a job of the CI system ci, with some claims in place of
// its own.
func jobToken(ci *impostor.Provider, claims map[string]any) string {
	all := map[string]any{"sub": "repo:org/app:ref:refs/heads/main", "repository": "org/app", "ref": "refs/heads/main"}
	maps.Copy(all, claims)
	return ci.Sign(all)
}

// A job of a CI system has a certificate for the price of one HTTPS request with its
// ID token, when issuer, audience and every claim are as the bot's rules say.
func TestBotsOfCI(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Node("n1")
	ci := impostor.New(t, time.Now)
	c.Admin("bots", "add", "ci", "--roles", "access", "--logins", c.Login, "--issuer", ci.URL, "--audience", "accessd",
		"--claim", "repository=org/app", "--claim", "ref=refs/heads/*")
	b := bot{c, "ci", c.Key("ci")}
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // its own certificate: SSH proves the proxy
	defer browser.CloseIdleConnections()
	ask := func(name, token string) (int, string) {
		t.Helper()
		body, err := json.Marshal(map[string]string{"bot": name, "public_key": read(t, b.key+".pub"), "id_token": token})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := browser.Post("https://"+c.Addr+"/bots/certificate", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, text.String()
	}
	other := impostor.New(t, time.Now)
	for name, token := range map[string]string{
		"another repository": jobToken(ci, map[string]any{"repository": "org/other"}),
		"another ref":        jobToken(ci, map[string]any{"ref": "refs/pull/1/merge"}),
		"another's key":      jobToken(other, map[string]any{"iss": ci.URL}),
	} {
		// Failures of one source slow it down; each comes when it may again.
		harness.Eventually(t, "the answer to "+name, func() bool {
			status, text := ask("ci", token)
			if status == http.StatusOK {
				t.Errorf("%s: %d %q", name, status, text)
			}
			return status == http.StatusForbidden
		})
	}
	var cert string
	harness.Eventually(t, "a certificate", func() bool {
		status, text := ask("ci", jobToken(ci, nil))
		cert = text
		return status == http.StatusOK
	})
	harness.WriteFile(t, b.key+"-cert.pub", cert)
	config := c.File("ci-config", c.Admin("ssh-config", "--identity", b.key))
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", c.Login+"@n1", "echo built"); r.Stdout != "built\n" {
		t.Errorf("the job's work = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := b.renew(t, b.key); r.Code == 0 {
		t.Error("a certificate of a job was renewed")
	}
	wantEvent(t, c, map[string]string{"user": "ci", "method": "bot_oidc", "success": "false"}, "--event", "user.login", "--failed", "--text", "repository")
}
