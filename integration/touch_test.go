package integration

import (
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
	for _, host := range hosts {
		refused(t, c.batch(t, "ssh", "-F", second, host, "echo in"), "Permission denied (keyboard-interactive)") // it is nobody's
	}
	c.enrol(t, "mia", other)
	in("a key that is enrolled", second, 1, 1)
	a.Leave(true)
	for _, config := range []string{own, second} {
		for _, host := range hosts {
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
