package integration

import (
	"crypto/tls"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// startProvider runs the OpenID provider of tools/openid for the cluster and
// returns its issuer.
func startProvider(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "openid")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Dir = filepath.Join("..", "tools", "openid")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the provider: %v\n%s", err, out)
	}
	person := func(sub, name string, groups ...string) map[string]any {
		return map[string]any{
			"sub": sub, "preferred_username": name, "groups": groups, "email": name + "@corp.example", "email_verified": true, "team": "blue",
		}
	}
	setup, err := json.Marshal(map[string]any{
		"client_id": "accessd", "client_secret": providerSecret, "redirect_uris": []string{"https://" + c.Addr + "/sso/callback"},
		"people": map[string]any{
			"alice": person("s-1", "alice", "ops"), "bob": person("s-2", "bob", "ops"), "carol": person("s-3", "carol", "ops"),
			"alice2": person("s-4", "alice", "ops"), "guest": person("s-5", "guest", "visitors"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, string(setup))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var line [256]byte
	n, err := out.Read(line[:])
	if err != nil {
		t.Fatalf("the provider says nothing: %v", err)
	}
	return strings.TrimSpace(string(line[:n]))
}

const providerSecret = "a secret of the client, for the provider alone"

// A surfer is a person's browser.
type surfer struct {
	t *testing.T
	http.Client
}

func newSurfer(t *testing.T) *surfer {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	return &surfer{t: t, Client: http.Client{Jar: jar, Transport: tr}}
}

// a view is one page as a person sees it.
type view struct {
	at     *url.URL
	status int
	onward string
	text   string
}

func (s *surfer) open(method, where string, form url.Values) view {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, where, strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := s.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	_, onward, _ := strings.Cut(resp.Header.Get("Refresh"), "url=")
	return view{resp.Request.URL, resp.StatusCode, onward, html.UnescapeString(string(body))}
}

var hidden = regexp.MustCompile(`name="(token|link)" value="([^"]*)"`)

// confirm types the code on the page of link and returns what comes then.
func (s *surfer) confirm(link, code string) view {
	s.t.Helper()
	page := s.open(http.MethodGet, link, nil)
	form := url.Values{"code": {code}}
	for _, m := range hidden.FindAllStringSubmatch(page.text, -1) {
		form.Set(m[1], m[2])
	}
	return s.open(http.MethodPost, page.at.Scheme+"://"+page.at.Host+"/sso", form)
}

// identify signs in at the provider and returns where that leads.
func (s *surfer) identify(provider, person string) view {
	s.t.Helper()
	page := s.open(http.MethodGet, provider, nil)
	return s.open(http.MethodPost, page.at.String(), url.Values{"person": {person}})
}

// shown is what a terminal shows of a sign-in.
type shown struct{ link, code, fingerprint, address string }

// wait begins a sign-in with stock ssh that waits for a browser.
func waitForBrowser(t *testing.T, c *harness.Cluster, user, key, connector string) (*harness.Terminal, shown) {
	t.Helper()
	k := signIn(t, c, user, key, "-o", "NumberOfPasswordPrompts=1")
	k.Expect(`Password, invite or join token \(empty: single sign-on\): `)
	k.Send("")
	if connector != "" {
		k.Expect(`Where: `)
		k.Send(connector)
	}
	m := k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+and type this code there:\s+([A-Z-]+)\s+Your key:\s+(\S+)\s+Your address: (\S+)\s`)
	return k, shown{m[1], m[2], m[3], m[4]}
}

// People of an OpenID provider sign in with stock ssh and any browser: the
// terminal and the page show the same, and nothing is granted before the page's
// person has said that it is theirs. Nobody gets a name by being called so.
func TestSingleSignOn(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	harness.WriteFile(t, file, "limits: {no_penalties: true}\n")
	c := harness.New(t, "--config", file)
	c.Node("n1")
	issuer := startProvider(t, c)
	c.Admin("users", "add", "carol", "--roles", "access", "--logins", c.Login)
	harness.Secret("the client's secret", providerSecret)
	secret := c.File("client-secret", providerSecret+"\n")
	document := "kind: connector\nname: NAME\nissuer: " + issuer + "\nclient_id: accessd\nscopes: [profile, groups]\ngrace: 10m\n" +
		"traits: {team: team}\nrules:\n- claim: groups\n  values: [ops]\n  roles: [admin, access]\n  logins: [" + c.Login + "]\n"
	c.Admin("connectors", "apply", "-f", c.File("corp.yaml", strings.Replace(document, "NAME", "corp", 1)), "--client-secret-file", secret)
	if got := c.Admin("connectors", "get", "corp"); strings.Contains(got, "secret") || !strings.Contains(got, issuer) {
		t.Errorf("connectors get = %s", got)
	}

	key := c.Key("sso-key")
	k, s := waitForBrowser(t, c, "alice", key, "")
	b := newSurfer(t)
	page := b.open(http.MethodGet, s.link, nil)
	for _, want := range []string{s.fingerprint, s.address, "alice", "corp"} {
		if !strings.Contains(page.text, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if wrong := b.confirm(s.link, "BBBB-BBBB"); wrong.status != http.StatusForbidden || wrong.onward != "" {
		t.Errorf("a wrong code = %d %q", wrong.status, wrong.onward)
	}
	sent := b.confirm(s.link, strings.ToLower(s.code))
	if !strings.HasPrefix(sent.onward, issuer+"/authorize?") || !strings.Contains(sent.onward, "code_challenge_method=S256") {
		t.Fatalf("confirmed = %d, onward %q\n%s", sent.status, sent.onward, sent.text)
	}
	done := b.identify(sent.onward, "alice")
	if done.status != http.StatusOK || !strings.Contains(done.text, "Signed in as alice") {
		t.Fatalf("back = %d %s", done.status, done.text)
	}
	r := k.Wait()
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
		t.Fatalf("login = %d, stdout %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	config := c.File("sso-config", c.Admin("ssh-config", "--identity", key))
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "accessd-proxy", "users", "ls", "--format", "json"); r.Code != 0 || !strings.Contains(r.Stdout, "alice") {
		t.Errorf("with the certificate = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true", "method": "sso", "connector": "corp"}, "--event", "user.login")
	wantEvent(t, c, map[string]string{"name": "alice", "by": "connector:corp"}, "--event", "user.create")

	t.Run("an answer counts once", func(t *testing.T) {
		if again := b.open(http.MethodGet, done.at.String(), nil); again.status != http.StatusNotFound {
			t.Errorf("the answer again = %d", again.status)
		}
		wantEvent(t, c, map[string]string{"success": "false", "error": "the provider's answer was used before"}, "--event", "user.login")
		if again := b.open(http.MethodGet, s.link, nil); again.status != http.StatusNotFound {
			t.Errorf("the link again = %d", again.status)
		}
	})
	t.Run("one sign-in is enough for a while", func(t *testing.T) {
		if err := os.Remove(key + "-cert.pub"); err != nil {
			t.Fatal(err)
		}
		if r := signIn(t, c, "alice", key, "-o", "BatchMode=yes").Wait(); r.Code != 0 || !strings.HasPrefix(r.Stdout, "ssh-ed25519-cert-v01@openssh.com ") {
			t.Errorf("again = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
		}
		if r := signIn(t, c, "alice", c.Key("another-key"), "-o", "BatchMode=yes").Wait(); r.Code == 0 {
			t.Errorf("with another key = %q", r.Stdout)
		}
		if r := signIn(t, c, "bob", key, "-o", "BatchMode=yes").Wait(); r.Code == 0 {
			t.Errorf("with another name = %q", r.Stdout)
		}
		// There is no such node, which only those hear who are let in.
		if r := signIn(t, c, c.Login+"@nowhere", key, "-o", "BatchMode=yes").Wait(); strings.Contains(r.Stderr, "Permission denied") || !strings.Contains(r.Stderr, "nowhere") {
			t.Errorf("as a visitor = %d %s", r.Code, r.Stderr)
		}
		if r := signIn(t, c, c.Login+"@nowhere", c.Key("visitor-key"), "-o", "BatchMode=yes").Wait(); !strings.Contains(r.Stderr, "Permission denied") {
			t.Errorf("as a visitor with another key = %d %s", r.Code, r.Stderr)
		}
	})
	t.Run("who the provider says it is not", func(t *testing.T) {
		for name, row := range map[string]struct{ typed, person, why string }{
			"another name":    {"alice", "bob", "the provider says that this is bob"},
			"a user of ours":  {"carol", "carol", "the name is somebody else's"},
			"another subject": {"alice", "alice2", "the name is somebody else's"},
			"nobody's role":   {"guest", "guest", `no rule of connector "corp" gives "guest" a role`},
			"gives up":        {"bob", "nobody", "the provider says: access_denied"},
		} {
			t.Run(name, func(t *testing.T) {
				k, s := waitForBrowser(t, c, row.typed, c.Key("key-"+row.typed+row.person), "")
				b := newSurfer(t)
				if back := b.identify(b.confirm(s.link, s.code).onward, row.person); back.status != http.StatusForbidden {
					t.Errorf("back = %d %s", back.status, back.text)
				}
				refused(t, k.Wait(), "Permission denied")
				wantEvent(t, c, map[string]string{"user": row.typed, "success": "false", "error": row.why}, "--event", "user.login")
			})
		}
	})
	t.Run("another browser", func(t *testing.T) {
		k, s := waitForBrowser(t, c, "bob", c.Key("phished"), "")
		defer k.Interrupt()
		mine, theirs := newSurfer(t), newSurfer(t)
		provider := mine.confirm(s.link, s.code).onward
		if back := theirs.identify(provider, "bob"); back.status != http.StatusForbidden {
			t.Errorf("back in another browser = %d %s", back.status, back.text)
		}
		if again := theirs.confirm(s.link, s.code); again.status != http.StatusForbidden && again.status != http.StatusNotFound {
			t.Errorf("the link in another browser = %d", again.status)
		}
	})
	t.Run("a guessed code", func(t *testing.T) {
		k, s := waitForBrowser(t, c, "bob", c.Key("guessed"), "")
		b := newSurfer(t)
		for range 3 {
			b.confirm(s.link, "BBBB-BBBB")
		}
		refused(t, k.Wait(), "Permission denied")
		if page := b.open(http.MethodGet, s.link, nil); page.status != http.StatusNotFound {
			t.Errorf("the link after three wrong codes = %d", page.status)
		}
	})
	t.Run("a visitor", func(t *testing.T) { visitorSignsIn(t, c) })
	t.Run("our program", func(t *testing.T) { programSignsIn(t, c) })
	t.Run("a second factor", func(t *testing.T) {
		c.Admin("roles", "apply", "-f", c.File("careful.yaml", carefulRole))
		asks := strings.Replace(strings.Replace(document, "NAME", "corp", 1), "[admin, access]", "[admin, access, careful]", 1)
		c.Admin("connectors", "apply", "-f", c.File("careful-corp.yaml", asks), "--client-secret-file", secret)
		browserCode(t, c)
	})
	t.Run("another connector", func(t *testing.T) {
		c.Admin("connectors", "apply", "-f", c.File("other.yaml", strings.Replace(document, "NAME", "other", 1)), "--client-secret-file", secret)
		k, s := waitForBrowser(t, c, "alice", c.Key("other-key"), "other")
		b := newSurfer(t)
		if back := b.identify(b.confirm(s.link, s.code).onward, "alice"); back.status != http.StatusForbidden {
			t.Errorf("back = %d %s", back.status, back.text)
		}
		refused(t, k.Wait(), "Permission denied")
	})
	c.Verify()
}

// carefulRole asks for a second factor for each connection.
const carefulRole = `kind: role
name: careful
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["*"]}
options: {mfa: session}
`

// browserCode has alice, who has no app here, give the second factor of connections
// from her browser: she signs in at a link, and types the code that its page shows.
// It is of no use to anybody else, nor twice.
func browserCode(t *testing.T, c *harness.Cluster) {
	t.Helper()
	key := c.Key("careful-key")
	k, s := waitForBrowser(t, c, "alice", key, "")
	b := newSurfer(t)
	b.identify(b.confirm(s.link, s.code).onward, "alice")
	harness.WriteFile(t, key+"-cert.pub", must(t, k.Wait()))
	config := c.File("careful-config", c.Admin("ssh-config", "--identity", key))
	for i, to := range [][]string{{c.Login + "@n1"}, {"-l", c.Login + "@n1", "accessd-proxy"}} {
		connect := func(person string) (*harness.Terminal, view) {
			k := harness.Type(t, "ssh", append(append([]string{"-F", config, "-o", "NumberOfPasswordPrompts=1"}, to...), "echo in")...)
			k.Expect(`Code: `)
			k.Send("")
			m := k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+type this code there:\s+([A-Z-]+)\s`)
			k.Expect(`Code: `)
			b := newSurfer(t)
			return k, b.identify(b.confirm(m[1], m[2]).onward, person)
		}
		k, page := connect("alice")
		code := pageCode.FindString(page.text)
		k.Send(code)
		if r := k.Wait(); r.Code != 0 || r.Stdout != "in\n" || code == "" {
			t.Errorf("ssh %v with the browser's code %q = %d %q\n%s\n%s", to, code, r.Code, r.Stdout, r.Stderr, page.text)
		}
		if i == 0 {
			k, _ = connect("alice")
			k.Send(code) // that of the connection before
			refused(t, k.Wait(), "that is not the code that the browser shows")
			continue
		}
		k, page = connect("bob")
		if page.status != http.StatusForbidden || pageCode.MatchString(page.text) {
			t.Errorf("bob at alice's link = %d %s", page.status, page.text)
		}
		k.Send("BBBB-BBBB")
		refused(t, k.Wait(), "the provider says that this is bob")
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true", "method": "sso", "node_name": "n1"}, "--event", "factor.verify")
}

// pageCode is a code as a page shows it.
var pageCode = regexp.MustCompile(`\b[B-Z]{4}-[B-Z]{4}\b`)

// visitorSignsIn has somebody come to a node as "ssh LOGIN@NODE@PROXY" with nothing
// but a name at the provider: no certificate, no password here, no key that is known.
func visitorSignsIn(t *testing.T, c *harness.Cluster) {
	t.Helper()
	visit := func(more ...string) *harness.Terminal {
		hosts := c.File("visitor-hosts", c.Admin("ca", "export", "--type", "host", "--format", "known-hosts"))
		_, port, _ := strings.Cut(c.Addr, ":")
		args := []string{"-F", "none", "-o", "UserKnownHostsFile=" + hosts, "-o", "GlobalKnownHostsFile=none", "-o", "PreferredAuthentications=keyboard-interactive", "-o", "NumberOfPasswordPrompts=1", "-p", port}
		k := harness.Type(t, "ssh", append(args, c.Login+"@n1@127.0.0.1", "echo in")...)
		k.Expect(`User: `)
		k.Send("bob")
		k.Expect(`Password, invite or join token \(empty: single sign-on[^)]*\): `)
		k.Send("")
		return k
	}
	k := visit()
	m := k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+and type this code there:\s+([A-Z-]+)\s`)
	b := newSurfer(t)
	if back := b.identify(b.confirm(m[1], m[2]).onward, "bob"); back.status != http.StatusOK || !strings.Contains(back.text, "Signed in as bob") {
		t.Errorf("back = %d %s", back.status, back.text)
	}
	if r := k.Wait(); r.Code != 0 || r.Stdout != "in\n" {
		t.Errorf("as a visitor = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "bob", "login": c.Login, "node_name": "n1", "kind": "exec"}, "--event", "session.start")

	k = visit() // and one whom the provider calls otherwise
	m = k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+and type this code there:\s+([A-Z-]+)\s`)
	b = newSurfer(t)
	if back := b.identify(b.confirm(m[1], m[2]).onward, "alice"); back.status != http.StatusForbidden {
		t.Errorf("as somebody else = %d %s", back.status, back.text)
	}
	refused(t, k.Wait(), "Permission denied")
}

// accessd login opens the browser and takes what it brings on a port of its own
// (RFC 8252); on a machine without a screen it shows a link and a code.
func programSignsIn(t *testing.T, c *harness.Cluster) {
	t.Helper()
	home := t.TempDir()
	opened := filepath.Join(home, "opened")
	browser := filepath.Join(home, "browser")
	if err := os.WriteFile(browser, []byte("#!/bin/sh\nprintf '%s' \"$1\" > "+opened+".new && mv "+opened+".new "+opened+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	accessd := func(more ...string) []string {
		return append([]string{"HOME=" + home, "BROWSER=" + browser, "ACCESSD_PROXY=" + c.Addr, harness.Binary(t)}, more...)
	}
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	if r := harness.Run(t, nil, "env", accessd("status")...); r.Code == 0 {
		t.Errorf("status before = %q", r.Stdout)
	}
	if r := harness.Run(t, nil, "env", accessd("login", "--user", "bob")...); r.Code == 0 || !strings.Contains(r.Stderr, "--ca-pin") {
		t.Errorf("login without a pin = %d %s", r.Code, r.Stderr)
	}
	k := harness.Type(t, "env", accessd("login", "--user", "bob", "--ca-pin", pin)...)
	harness.Eventually(t, "the browser opens", func() bool { _, err := os.Stat(opened); return err == nil })
	link, err := os.ReadFile(opened)
	if err != nil {
		t.Fatal(err)
	}
	b := newSurfer(t)
	back := b.identify(b.confirm(string(link), "").onward, "bob")
	if !strings.HasPrefix(back.onward, "http://127.0.0.1:") {
		t.Fatalf("back = %d, onward %q\n%s", back.status, back.onward, back.text)
	}
	if end := b.open(http.MethodGet, back.onward, nil); end.status != http.StatusOK {
		t.Errorf("at the program = %d %s", end.status, end.text)
	}
	if r := k.Wait(); r.Code != 0 {
		t.Fatalf("login = %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
	r := harness.Run(t, nil, "env", accessd("status", "--format", "json")...)
	if r.Code != 0 || !strings.Contains(r.Stdout, `"user": "bob"`) {
		t.Errorf("status = %d %q %s", r.Code, r.Stdout, r.Stderr)
	}
	if r := harness.Run(t, nil, "env", accessd("logout")...); r.Code != 0 {
		t.Errorf("logout = %d %s", r.Code, r.Stderr)
	}
	if r := harness.Run(t, nil, "env", accessd("status")...); r.Code == 0 {
		t.Errorf("status after logout = %q", r.Stdout)
	}

	token := filepath.Join(home, "token")
	k = harness.Type(t, "env", accessd("login", "--user", "bob", "--headless", "--api-token", token)...) // knows the cluster by now
	m := k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+and type this code there:\s+([A-Z-]+)`)
	b = newSurfer(t)
	if back := b.identify(b.confirm(m[1], m[2]).onward, "bob"); back.status != http.StatusOK {
		t.Errorf("back = %d %s", back.status, back.text)
	}
	if r := k.Wait(); r.Code != 0 {
		t.Errorf("login --headless = %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
	harness.Secret("an API token of bob", strings.TrimSpace(read(t, token)))
	if status, answer := (site{t, c.Addr, filepath.Join(c.Dir, "tls", "tls.crt")}).curl("APITokenService/ListAPITokens", strings.TrimSpace(read(t, token)), "{}"); status != "200" || !strings.Contains(answer, `"bob"`) {
		t.Errorf("with the token of the sign-in: %s %s", status, answer)
	}
}
