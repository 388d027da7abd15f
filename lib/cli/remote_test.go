package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/proxy"
)

// leaves calls f with every verb below c and its name.
func leaves(c *cobra.Command, path string, f func(name string, c *cobra.Command)) {
	for _, sub := range c.Commands() {
		name := strings.TrimPrefix(path+" "+sub.Name(), " ")
		if sub.HasSubCommands() {
			leaves(sub, name, f)
		} else {
			f(name, sub)
		}
	}
}

// Somebody has looked at every flag of every verb that exists at a proxy, and
// at every verb of the table.
func TestRemoteFlagsAreDecided(t *testing.T) {
	table := remoteVerbs()
	everywhere := map[string]*cobra.Command{}
	leaves(tree(&env{}), "", func(name string, c *cobra.Command) { everywhere[name] = c })
	for name, row := range table {
		c, ok := everywhere[name]
		if !ok {
			t.Errorf("remoteVerbs has %q, which is no verb", name)
			continue
		}
		decided := slices.Concat(row.flags, row.stdin, row.none)
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !slices.Contains(decided, f.Name) && f.Name != "help" {
				t.Errorf("%s --%s: say in remoteVerbs whether it is for people at a proxy, too", name, f.Name)
			}
		})
		for _, flag := range decided {
			if c.Flags().Lookup(flag) == nil {
				t.Errorf("remoteVerbs has %s --%s, which is no flag", name, flag)
			}
		}
	}
	// What a flag's own help says is the third opinion.
	files := regexp.MustCompile(`(?i)\b(file|files|director(y|ies)|path|write)\b`)
	leaves(remoteTree(&env{call: &proxy.VerbCall{}}), "", func(name string, c *cobra.Command) {
		if _, ok := table[name]; !ok {
			t.Errorf("%s exists at a proxy, and not in remoteVerbs", name)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if files.MatchString(f.Usage) && !f.Hidden {
				t.Errorf("%s --%s: %q names a file", name, f.Name, f.Usage)
			}
		})
		if regexp.MustCompile(`\b(FILE|DIR|PATH)\b`).MatchString(c.Use) {
			t.Errorf("%s: %q names a file", name, c.Use)
		}
	})
}

// A person at a proxy gives every flag and argument of every verb the name of a
// file: none is read, none is written.
func TestRemoteVerbsTouchNoFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	const marker = "the-marker-in-the-file"
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(marker+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ACCESSD_SECRET", marker)
	for _, value := range []string{secret, "@" + secret, "secret", "file://" + secret, filepath.Join(dir, "new"), "/dev/stdin", "/proc/self/environ", "$ACCESSD_SECRET"} {
		leaves(remoteTree(&env{call: &proxy.VerbCall{}}), "", func(name string, c *cobra.Command) {
			var flags [][]string
			c.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, []string{"--" + f.Name, value}) })
			lines := [][]string{{}, {value}, {value, value}, slices.Concat(flags...)}
			for _, f := range flags {
				lines = append(lines, f, append([]string{value}, f...))
			}
			for _, line := range lines {
				said := askRemote(t, append(strings.Fields(name), line...))
				if strings.Contains(said, marker) {
					t.Errorf("%s %q: what is in the file came out: %q", name, line, said)
				}
			}
		})
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v; want the one file that was there", entries, err)
	}
}

// askRemote runs args with an authority that is away, and returns all that was
// written and asked.
func askRemote(t *testing.T, args []string) string {
	t.Helper()
	var said bytes.Buffer
	RunAs(t.Context(), proxy.VerbCall{
		Args: args, In: strings.NewReader(""), Out: &said, Err: &said, User: "alice", Terminal: true,
		API:    &http.Client{Transport: asked{&said}},
		Nodes:  func() []proxy.Reachable { return nil },
		Attach: func(context.Context, names.SessionID, bool) error { return nil },
	})
	return said.String()
}

// asked notes every request and answers none.
type asked struct{ w io.Writer }

func (a asked) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, err := io.Copy(a.w, r.Body); err != nil {
		return nil, err
	}
	return nil, errors.New("the authority is away")
}

// Trees are made for every line that a person runs: none may stay in memory.
func TestRemoteTreesAreForgotten(t *testing.T) {
	kept := 0
	f := remoteTree(&env{call: &proxy.VerbCall{}})
	leaves(f, "", func(_ string, c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if _, ok := c.GetFlagCompletionFunc(f.Name); ok {
				kept++
			}
		})
	})
	if kept > 0 {
		t.Errorf("the parser keeps %d flags of every tree for good", kept)
	}
}

func TestRunAsWithoutArguments(t *testing.T) {
	if got := askRemote(t, nil); !strings.Contains(got, "Available Commands") {
		t.Errorf("no arguments: %q, want help, and not the arguments of this process", got)
	}
}
