package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// withKeys writes an ssh_config with which mia has the keys and the authenticator,
// and nothing can be asked.
func (c *careful) withKeys(t *testing.T, name string, a *harness.Authenticator, keys ...string) string {
	t.Helper()
	config := filepath.Join(c.Home, name)
	old := "IdentityFile " + filepath.Join(c.Home, "mia-key") + "\n"
	text := strings.NewReplacer(old, "IdentityFile "+strings.Join(keys, "\n  IdentityFile ")+"\n  SecurityKeyProvider "+a.Provider+"\n",
		"mia-config", name, "BatchMode no", "BatchMode yes").Replace(read(t, c.config))
	harness.WriteFile(t, config, text)
	return config
}

// touch connects with security keys: that one was touched is the second factor of
// the connection, and nothing is asked. It is that of the certificate, or another
// that is enrolled.
func (c *careful) touch(t *testing.T) {
	t.Helper()
	a := harness.NewAuthenticator(t)
	key := a.Key(filepath.Join(c.Home, "mia-sk"), "ed25519-sk")
	c.Admin("users", "sign", "mia", "--public-key", key+".pub", "--ttl", "1h", "--out", key+"-cert.pub")
	other := a.Key(filepath.Join(c.Home, "mia-other-sk"), "ecdsa-sk")
	own := c.withKeys(t, "mia-sk-config", a, key+"\n  CertificateFile "+key+"-cert.pub")
	second := c.withKeys(t, "mia-second-config", a, filepath.Join(c.Home, "mia-key"), other)
	hosts := []string{"n1-jump", "n1-at", "n2-jump", "n2-at"}
	in := func(what, config string, touches ...int) {
		t.Helper()
		for i, host := range hosts {
			before := a.Signed()
			if r := c.batch(t, "ssh", "-F", config, host, "echo in"); r.Code != 0 || r.Stdout != "in\n" || a.Signed() != before+touches[i%2] {
				t.Errorf("%s: ssh %s = %d %q after %d signatures\n%s", what, host, r.Code, r.Stdout, a.Signed()-before, r.Stderr)
			}
		}
	}
	in("the key of the certificate", own, 2, 1) // that is, at the proxy and at the node
	wantEvent(t, c.Cluster, map[string]string{"user": "mia", "success": "true", "method": "touch", "node_name": "n2"}, "--event", "factor.verify")
	if r := c.batch(t, "ssh", "-F", own, "-n", "proxy", "recordings ls"); r.Code != 0 {
		t.Errorf("recordings ls = %d\n%s", r.Code, r.Stderr)
	}
	for _, host := range hosts[:2] {
		refused(t, c.batch(t, "ssh", "-F", second, host, "echo in"), "Permission denied (keyboard-interactive)") // it is nobody's
	}
	c.enrol(t, "mia", other)
	in("a key that is enrolled", second, 1, 1)
	a.Leave(true)
	for _, config := range []string{own, second} {
		for _, host := range hosts[1:3] {
			if r := c.batch(t, "ssh", "-F", config, host, "echo in"); r.Code == 0 || r.Stdout != "" {
				t.Errorf("ssh -F %s %s without a touch = %d %q\n%s", config, host, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	a.Leave(false)
	c.Admin("users", "keys", "rm", "mia", must(t, harness.Run(t, nil, "ssh-keygen", "-l", "-f", other+".pub"))[len("256 "):len("256 SHA256:")+43])
	for _, host := range []string{"n1-jump", "n2-at"} { // of which the first hears of it over its tunnel
		harness.Eventually(t, "a key that is not enrolled any more is of no use", func() bool {
			r := c.batch(t, "ssh", "-F", second, host, "echo in")
			return r.Code == 255 && strings.Contains(r.Stderr, "Permission denied (keyboard-interactive)")
		})
	}
}

// pinnedRole asks for a security key that makes sure who touches it.
const pinnedRole = `kind: role
name: pinned
allow:
  - {nodes: {"*": "*"}, logins: ["{{user.logins}}"], actions: ["*"]}
options: {key: pin}
`

// attested has ben's security keys enrolled with what their maker says of them, and
// connects where a role takes no others. Whoever has no maker's word, a wrong one,
// or one for somebody else's challenge is refused by name.
func (c *careful) attested(t *testing.T) {
	t.Helper()
	a, fake := harness.NewAuthenticator(t), harness.NewAuthenticator(t)
	c.Admin("roles", "apply", "-f", c.File("pinned.yaml", pinnedRole))
	c.Admin("users", "add", "ben", "--roles", "pinned", "--logins", login)
	c.Admin("users", "authenticators", "set", "--roots", c.File("makers.pem", a.Root), "--aaguid", a.Model())
	t.Cleanup(func() { c.Admin("users", "authenticators", "set", "--every") })
	challenge := c.File("challenge", c.Admin("users", "keys", "challenge", "ben"))
	others := c.File("mia-challenge", c.Admin("users", "keys", "challenge", "mia"))
	forge := func(a *harness.Authenticator, name, challenge string, options ...string) string {
		key := filepath.Join(c.Home, name)
		return a.Key(key, "ed25519-sk", append(options, "-O", "challenge="+challenge, "-O", "write-attestation="+key+".att")...)
	}
	good := forge(a, "ben-good", challenge, "-O", "verify-required")
	for what, x := range map[string]struct{ key, attestation, challenge, words string }{
		"no attestation":        {good, "", "", "has no attestation"},
		"somebody's challenge":  {forge(a, "ben-others", others), "", others, "none that was given out for this user"},
		"another challenge":     {forge(a, "ben-own", c.File("own", "made up")), "", challenge, "not signed, or for another challenge"},
		"another maker":         {forge(fake, "ben-fake", challenge), "", challenge, "no maker that counts"},
		"another key's":         {forge(a, "ben-moved", challenge), good + ".att", challenge, "it is of another key"},
		"an ordinary key's too": {c.Key("ben-plain"), good + ".att", challenge, "is no security key"},
	} {
		args := []string{"users", "keys", "add", "ben", x.key + ".pub"}
		if x.challenge != "" {
			if x.attestation == "" {
				x.attestation = x.key + ".att"
			}
			args = append(args, "--attestation", x.attestation, "--challenge", x.challenge)
		}
		if r := c.Try(args...); r.Code == 0 || !strings.Contains(r.Stderr, x.words) {
			t.Errorf("%s: exit %d, want %q\n%s", what, r.Code, x.words, r.Stderr)
		}
	}
	again := forge(a, "ben-again", challenge)
	second := c.File("second-challenge", c.Admin("users", "keys", "challenge", "ben"))
	touch := forge(a, "ben-touch", second)
	for key, challenge := range map[string]string{good: challenge, touch: second} {
		c.Admin("users", "keys", "add", "ben", key+".pub", "--attestation", key+".att", "--challenge", challenge)
	}
	if r := c.Try("users", "keys", "add", "ben", again+".pub", "--attestation", again+".att", "--challenge", challenge); r.Code == 0 || !strings.Contains(r.Stderr, "the challenge was used before") {
		t.Errorf("a second key with one challenge: exit %d\n%s", r.Code, r.Stderr)
	}
	wantEvent(t, c.Cluster, map[string]string{"user": "ben", "success": "true", "aaguid": a.Model(), "pin": "true"}, "--event", "user.key.create")
	connect := func(key, host string) harness.Result {
		t.Helper()
		if _, err := os.Stat(key + "-cert.pub"); err != nil {
			c.Admin("users", "sign", "ben", "--public-key", key+".pub", "--ttl", "1h", "--out", key+"-cert.pub")
		}
		config := c.withKeys(t, filepath.Base(key)+"-config", a, key+"\n  CertificateFile "+key+"-cert.pub")
		harness.WriteFile(t, config, strings.ReplaceAll(read(t, config), "User mia\n", "User ben\n"))
		return c.batch(t, "ssh", "-F", config, host, "echo in")
	}
	for _, host := range []string{"n1-jump", "n1-at", "n2-jump", "n2-at"} {
		if r := connect(good, host); r.Code != 0 || r.Stdout != "in\n" {
			t.Errorf("ssh %s with a key that verifies = %d %q\n%s", host, r.Code, r.Stdout, r.Stderr)
		}
		for _, key := range map[string][]string{
			"n1-jump": {touch, filepath.Join(c.Home, "ben-others")}, "n1-at": {touch}, "n2-at": {touch, filepath.Join(c.Home, "ben-plain")},
		}[host] {
			if r := connect(key, host); r.Code == 0 || !strings.Contains(r.Stderr, "sign in with a security key") {
				t.Errorf("ssh %s with %s = %d %q\n%s", host, filepath.Base(key), r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	// A stock sshd that takes such certificates looks at the signature itself.
	c.base.Configure(t, "TrustedUserCAKeys "+c.File("user-ca", c.Admin("ca", "export", "--type", "user")))
	if r := connect(good, stock); r.Code != 0 || r.Stdout != "in\n" {
		t.Errorf("ssh to a stock sshd = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
	a.Forget(true)
	if r := connect(good, stock); r.Code == 0 {
		t.Error("a stock sshd took a signature of somebody who was not verified: the certificate does not say verify-required")
	}
	// One of a model that does not count any more is no security key.
	a.Forget(false)
	c.Admin("users", "authenticators", "set", "--roots", filepath.Join(c.Home, "makers.pem"), "--aaguid", fake.Model())
	if err := os.Remove(good + "-cert.pub"); err != nil {
		t.Fatal(err)
	}
	if r := connect(good, "n1-at"); r.Code == 0 || !strings.Contains(r.Stderr, "sign in with a security key") {
		t.Errorf("ssh with a model that does not count = %d %q\n%s", r.Code, r.Stdout, r.Stderr)
	}
}
