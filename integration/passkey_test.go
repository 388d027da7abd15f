package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

const (
	passwordPrompt = `Password, invite or join token: `
	passkeyPrompt  = `Password, invite or join token \(empty: passkey\): `
	linkShown      = `(?s)(https://\S+/sso\?link=\S+)\s+and type this code there:\s+([A-Z-]+)`
	certificateIs  = "ssh-ed25519-cert-v01@openssh.com "
)

// vouch opens a link, types the code and uses the passkey that the browser has, or
// makes one.
func vouch(b *harness.Browser, link, code string) {
	b.Open(link)
	b.Fill("code", strings.ToLower(code))
	b.Press("passkey")
}

// withPasskey begins a sign-in and returns its link and code.
func withPasskey(t *testing.T, c *harness.Cluster, user, key string) (k *harness.Terminal, link, code string) {
	t.Helper()
	k = signIn(t, c, user, key, "-o", "NumberOfPasswordPrompts=1")
	k.Expect(passkeyPrompt)
	k.Send("")
	m := k.Expect(linkShown)
	return k, m[1], m[2]
}

// People sign in with stock ssh and a passkey of any browser: made with an invite
// instead of a password, or beside a password, at the proxy's own name, and good
// for nothing but who and what the terminal said.
func TestPasskeys(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--public-address", "127.0.0.1,login.example")
	b := harness.NewBrowser(t)
	device := b.Authenticator()
	c.Admin("roles", "apply", "-f", c.File("readers.yaml", "kind: role\nname: readers\nallow: [{resources: {users: [read]}}]\noptions: {mfa: session}\n"))
	invite := strings.TrimSpace(c.Admin("users", "add", "alice", "--roles", "access,readers", "--logins", c.Login))
	key := c.Key("alice-key")

	k := signIn(t, c, "alice", key)
	k.Expect(passwordPrompt)
	k.Send(invite)
	k.Expect(`leave both empty to sign in with a passkey`)
	k.Expect(`New password: `)
	k.Send("")
	k.Expect(`New password again: `)
	k.Send("")
	m := k.Expect(linkShown)
	if !strings.HasPrefix(m[1], "https://login.example:") {
		t.Errorf("the link is %q", m[1])
	}
	vouch(b, m[1], "BBBB-BBBB")
	b.Expect("That is not the code your terminal shows.")
	b.Fill("code", m[2])
	b.Press("passkey")
	b.Expect("The passkey is made")
	r := k.Wait()
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, certificateIs) {
		t.Fatalf("login with an invite and a passkey = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true", "method": "invite", "mfa": "passkey"}, "--event", "user.login")

	k, link, code := withPasskey(t, c, "alice", key)
	b.Open(link)
	if text := b.Text(); !strings.Contains(text, "alice") || !strings.Contains(text, "127.0.0.1") || !strings.Contains(text, "SHA256:") {
		t.Errorf("the page shows %q", text)
	}
	// What the page sends is kept, to be sent again.
	b.Eval(`const real = window.fetch; window.fetch = (p, o) => { window.last = [p, String(o.body)]; return real(p, o); }; window.real = real; ""`)
	b.Fill("code", code)
	b.Press("passkey")
	b.Expect("Signed in as alice")
	if r = k.Wait(); r.Code != 0 || !strings.HasPrefix(r.Stdout, certificateIs) {
		t.Fatalf("login with a passkey = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true", "method": "passkey", "mfa": "passkey"}, "--event", "user.login")
	again := `real(last[0], {method: "POST", body: new URLSearchParams(last[1])}).then((r) => r.status + last[0])`
	if got := b.Eval(again); got != "404/sso/passkey/answer" {
		t.Errorf("the same answer again = %q", got)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "false", "error": "the passkey's answer was used before"}, "--event", "user.login")
	harness.WriteFile(t, key+"-cert.pub", r.Stdout)
	config := c.File("alice-config", c.Admin("ssh-config", "--identity", key))
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "accessd-proxy", "factors", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, "login.example") {
		t.Errorf("factors ls with the certificate = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}

	t.Run("somebody else's name", func(t *testing.T) {
		c.Admin("users", "add", "bob", "--roles", "access", "--logins", c.Login)
		for user, known := range map[string]string{"bob": "bob", "nobody-at-all": "(unknown:"} {
			k, link, code := withPasskey(t, c, user, c.Key(user))
			vouch(b, link, code)
			b.Expect("The sign-in was refused.")
			refused(t, k.Wait(), "Permission denied")
			c.WaitEvent("alice's passkey for "+user, func(e harness.Event) bool {
				return strings.HasPrefix(e.Str("user"), known) && e.Str("error") == "the passkey is that of alice"
			}, "--event", "user.login")
		}
	})
	t.Run("another page", func(t *testing.T) {
		k, link, code := withPasskey(t, c, "alice", c.Key("phished"))
		defer k.Interrupt()
		vouch(b, strings.Replace(link, "login.example", "login.example.evil.test", 1), code)
		b.Expect("The browser gave no passkey")
	})
	t.Run("second factor", func(t *testing.T) { passkeyForConnection(t, c, b, config) })
	t.Run("our program", func(t *testing.T) { programUsesPasskey(t, c, b) })
	t.Run("beside a password", func(t *testing.T) {
		invite := strings.TrimSpace(c.Admin("users", "reset", "bob"))
		bob := c.Key("bob-key")
		k := signIn(t, c, "bob", bob)
		k.Expect(passkeyPrompt)
		k.Send(invite)
		k.Expect(`New password: `)
		k.Send(password)
		k.Expect(`New password again: `)
		k.Send(password)
		a := &app{secret: k.Expect(`(?s)type the secret into it:\s+([A-Z2-7]{16,})`)[1]}
		k.Expect(`Code: `)
		k.Send(a.code(t))
		r := k.Wait()
		harness.WriteFile(t, bob+"-cert.pub", r.Stdout)
		config := c.File("bob-config", c.Admin("ssh-config", "--identity", bob))
		atProxy := func(words ...string) *harness.Terminal {
			return harness.Type(t, "ssh", append([]string{"-F", config, "-tt", "accessd-proxy"}, words...)...)
		}
		b.Call("WebAuthn.clearCredentials", map[string]any{"authenticatorId": device}, nil) // alice leaves
		k = atProxy("factors", "add", "passkey", "laptop")
		k.Expect(`Password: `)
		k.Send(password)
		k.Expect(`Code: `)
		k.Send(a.code(t))
		m := k.Expect(linkShown)
		vouch(b, m[1], m[2])
		b.Expect("The passkey is made")
		k.Expect(`Passkey laptop is set up, for login.example.`)
		k.Wait()
		wantEvent(t, c, map[string]string{"user": "bob", "success": "true", "method": "passkey"}, "--event", "factor.create")
		if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "accessd-proxy", "factors", "ls"); !strings.Contains(r.Stdout, "laptop") || !strings.Contains(r.Stdout, "login.example") {
			t.Errorf("factors ls = %d %q %s", r.Code, r.Stdout, r.Stderr)
		}
		k = atProxy("factors", "rm", "passkey", "laptop")
		k.Expect(`Password \(empty: passkey\): `)
		k.Send("")
		k.Expect(`Code: `)
		k.Send("")
		m = k.Expect(linkShown)
		vouch(b, m[1], m[2])
		b.Expect("Your terminal goes on now.")
		k.Expect(`Passkey laptop is of no use any more.`)
		k.Wait()
		k, link, code := withPasskey(t, c, "bob", c.Key("bob-again"))
		vouch(b, link, code)
		b.Expect("The sign-in was refused.")
		refused(t, k.Wait(), "Permission denied")
		wantEvent(t, c, map[string]string{"user": "bob", "success": "false", "error": "no such passkey"}, "--event", "user.login")
	})
	c.Verify()
}

// passkeyForConnection gives the second factor of a connection with the passkey of
// a browser: its page shows the code that the terminal asks for.
func passkeyForConnection(t *testing.T, c *harness.Cluster, b *harness.Browser, config string) {
	t.Helper()
	k := harness.Type(t, "ssh", "-F", config, "-tt", "accessd-proxy", "users", "ls")
	k.Expect(`Code: `)
	k.Send("")
	m := k.Expect(`(?s)(https://\S+/sso\?link=\S+)\s+type this code there:\s+([A-Z-]+)\s`)
	k.Expect(`Code: `)
	vouch(b, m[1], m[2])
	b.Expect("Type this code in your terminal:")
	k.Send(pageCode.FindString(b.Text()))
	if r := k.Wait(); r.Code != 0 || !strings.Contains(r.Stdout, "access,readers") {
		t.Errorf("users ls with a code of the browser = %d %q", r.Code, r.Stdout)
	}
	wantEvent(t, c, map[string]string{"user": "alice", "success": "true", "method": "passkey"}, "--event", "factor.verify")
}

// accessd login takes the browser's answer on a port of its own.
func programUsesPasskey(t *testing.T, c *harness.Cluster, b *harness.Browser) {
	t.Helper()
	home := t.TempDir()
	opened := filepath.Join(home, "opened")
	browser := filepath.Join(home, "browser")
	if err := os.WriteFile(browser, []byte("#!/bin/sh\nprintf '%s' \"$1\" > "+opened+".new && mv "+opened+".new "+opened+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	pin := strings.TrimSpace(c.Admin("ca", "pin"))
	k := harness.Type(t, "env", "HOME="+home, "BROWSER="+browser, "ACCESSD_PROXY="+c.Addr, harness.Binary(t), "login", "--user", "alice", "--ca-pin", pin)
	k.Expect(passkeyPrompt)
	k.Send("")
	harness.Eventually(t, "the browser opens", func() bool { _, err := os.Stat(opened); return err == nil })
	link, err := os.ReadFile(opened)
	if err != nil {
		t.Fatal(err)
	}
	b.Open(string(link))
	b.Press("passkey")
	b.Expect("You are signed in.")
	if r := k.Wait(); r.Code != 0 {
		t.Errorf("accessd login with a passkey = %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
}
