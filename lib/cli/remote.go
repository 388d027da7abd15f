package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/proxy"
)

// RunAs runs one line of the command line for a person who is connected to a
// proxy, and returns its exit code. The authority decides what the person may
// do; what RunAs sees to is that nothing here touches the machine it runs on:
// only the verbs and flags of [remoteVerbs] exist, none of which can name a
// file, a directory or a variable of the environment.
func RunAs(ctx context.Context, call proxy.VerbCall) (exit int) {
	e := &env{stdin: call.In, stdout: call.Out, stderr: call.Err, call: &call}
	root := remoteTree(e)
	if len(call.Args) > 0 && (call.Args[0] == cobra.ShellCompRequestCmd || call.Args[0] == cobra.ShellCompNoDescRequestCmd) {
		return e.exit(e.complete(root, call.Args[1:]))
	}
	// The parser's own form of that, which it finds behind flags too, writes to
	// the standard error of this process.
	if slices.Contains(call.Args, cobra.ShellCompRequestCmd) || slices.Contains(call.Args, cobra.ShellCompNoDescRequestCmd) {
		return e.exit(fault.New(fault.BadInput, "%s comes first", cobra.ShellCompRequestCmd))
	}
	root.SetArgs(append([]string{}, call.Args...)) // of nil the parser makes this process's arguments
	return e.exit(root.ExecuteContext(ctx))
}

// remoteVerb is what there is of a verb at a proxy.
type remoteVerb struct {
	flags []string // that are as everywhere
	stdin []string // that name a file, and here take no other than -
	none  []string // that do not exist here
	use   string   // of the help text; "" is as everywhere
}

// remoteVerbs lists every verb that exists at a proxy. A flag that is named
// nowhere in its verb's row does not exist there either, and a test fails until
// somebody has decided.
func remoteVerbs() map[string]remoteVerb {
	filter := []string{
		"since", "until", "user", "login", "node", "label", "address", "event", "session", "text", "success", "failed", "format",
	}
	list := remoteVerb{flags: []string{"format"}}
	return map[string]remoteVerb{
		"ls":       list,
		"version":  {},
		"nodes ls": list,
		"nodes rm": {flags: []string{"force", "reason"}, stdin: []string{"end"}, use: "rm NODE [--force --reason TEXT [--end -]]"},
		"nodes add": {
			flags: []string{"address", "labels", "format"}, stdin: []string{"host-key"},
			use: "add NAME [--address HOST:PORT] [--labels K=V,…] [--host-key -]",
		},
		"users ls":    list,
		"users add":   {flags: []string{"roles", "logins", "traits", "invite-ttl", "format"}},
		"users rm":    {},
		"users reset": {flags: []string{"invite-ttl", "format"}},

		"password":    {},
		"factors ls":  list,
		"factors add": {},
		"factors rm":  {},

		"users keys add": {flags: []string{"format"}, none: []string{"attestation", "challenge"}, use: "add USER -"},
		"users keys ls":  list,
		"users keys rm":  {},

		"users keys challenge":      {},
		"users authenticators show": {},

		"bots ls":  list,
		"bots add": {flags: []string{"roles", "logins", "ttl", "token-ttl", "issuer", "audience", "claim", "format"}, none: []string{"issuer-ca"}},

		"roles ls":         list,
		"roles get":        {},
		"roles rm":         {},
		"roles apply":      {stdin: []string{"file"}, use: "apply -f -"},
		"roles diff":       {flags: []string{"without", "user", "format"}, stdin: []string{"file"}, use: "diff -f -"},
		"roles explain":    {flags: []string{"action", "command", "target", "resource", "verb", "format"}},
		"connectors ls":    list,
		"connectors get":   {},
		"connectors rm":    {},
		"connectors apply": {stdin: []string{"file"}, none: []string{"client-secret-file"}, use: "apply -f -"},

		"tokens ls":  list,
		"tokens add": {flags: []string{"role", "ttl", "uses", "names", "labels", "quiet", "format"}},
		"tokens rm":  {},

		"api-tokens add": {flags: []string{"ttl", "note", "quiet", "format"}},
		"api-tokens ls":  {flags: []string{"all", "format"}},
		"api-tokens rm":  {},

		"sessions ls":   list,
		"sessions kill": {flags: []string{"reason"}},

		"sessions watch": {},
		"sessions join":  {},

		"requests create":  {flags: []string{"roles", "node", "reason", "ttl", "wait", "format"}},
		"requests ls":      {flags: []string{"all", "format"}},
		"requests show":    list,
		"requests watch":   list,
		"requests approve": {flags: []string{"reason", "text"}, stdin: []string{"signature"}},
		"requests deny":    {flags: []string{"reason", "text"}, stdin: []string{"signature"}},
		"requests assume":  {flags: []string{"print"}},
		"requests drop":    {flags: []string{"reason"}},

		"recordings ls":     {flags: []string{"since", "until", "user", "login", "node", "interactive", "in-progress", "min-duration", "min-size", "limit", "format"}},
		"recordings play":   {flags: []string{"speed", "skip-idle", "follow", "format"}, none: []string{"identity", "copy", "key"}, use: "play SESSION [--speed N] [--skip-idle D] [--follow] [--format tty|text|json]"},
		"recordings export": {flags: []string{"format"}, none: []string{"identity", "out", "copy", "key"}, use: "export SESSION --format asciicast|text|json"},
		"recordings search": {flags: []string{"since", "until", "user", "node", "limit", "format"}},
		"recordings hold":   {flags: []string{"reason", "release"}},
		"recordings rm":     {flags: []string{"reason"}},

		"audit ls":     {flags: append([]string{"limit", "before", "after", "order", "reverse"}, filter...)},
		"audit tail":   {flags: append([]string{"lines"}, filter...)},
		"audit export": {flags: append([]string{"after", "follow"}, filter...), none: []string{"out"}, use: "export [--format jsonl|csv|syslog|otlp] [--after PLACE] [--follow]"},
		"audit verify": {flags: []string{"witness", "archived", "format"}, stdin: []string{"since"}, none: []string{"log", "key", "save"}, use: "verify [--since -] [--witness KEY] [--archived]"},
		"audit prove":  {none: []string{"out"}, use: "prove UID"},
		"audit rotate": {flags: []string{"reason", "format"}},
		"ca export":    {flags: []string{"type", "format"}},
		"ca pin":       {},
		"ca status":    list,
		"ca rotate":    {flags: []string{"type", "phase", "force", "format"}},
	}
}

// RemoteTree returns the command tree as it is at a proxy, from which documents
// are generated. Its verbs have no streams.
func RemoteTree() *cobra.Command {
	return remoteTree(&env{call: &proxy.VerbCall{User: "PERSON"}})
}

// remoteTree returns the command tree as it is at a proxy.
func remoteTree(e *env) *cobra.Command {
	root := newRoot(e)
	root.Use = "proxy"
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "ssh " + string(e.call.User) + "@PROXY"}
	root.Long = "What there is to do at the proxy, as " + string(e.call.User) + ". Without a verb, and with a terminal,\n" +
		"the menu of nodes opens. Also, without this program on your machine:\n\n" +
		"  ssh -J " + string(e.call.User) + "@PROXY LOGIN@NODE          log in to a node\n" +
		"  ssh " + string(e.call.User) + "@PROXY login > KEY-cert.pub   sign in and get a certificate\n" +
		"  ssh -t " + string(e.call.User) + "@PROXY menu --plain         the menu in lines, for a screen reader\n\n" +
		"A shell's completion may ask \"" + cobra.ShellCompRequestCmd + " WORD…\" for what can stand in place of the last word."
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(reachableCommand(e))
	root.AddCommand(nouns(e)...)
	restrict(root, "", remoteVerbs())
	return root
}

// restrict takes every verb below c out that verbs does not have.
func restrict(c *cobra.Command, path string, verbs map[string]remoteVerb) {
	for _, sub := range c.Commands() {
		name := strings.TrimPrefix(path+" "+sub.Name(), " ")
		if v, ok := verbs[name]; ok && !sub.HasSubCommands() {
			v.apply(sub)
			continue
		}
		if restrict(sub, name, verbs); !sub.HasSubCommands() {
			c.RemoveCommand(sub)
		}
	}
}

// apply makes of c what there is of it at a proxy.
func (v remoteVerb) apply(c *cobra.Command) {
	if v.use != "" {
		c.Use, c.Long = v.use, ""
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		switch {
		case slices.Contains(v.flags, f.Name):
		case slices.Contains(v.stdin, f.Name):
			f.Value, f.Usage = stdinOnly{f.Value}, "-, which is stdin"
		default:
			f.Value, f.Hidden = absent{f.Value}, true
		}
	})
}

// stdinOnly is the value of a flag that names a file: here that is stdin.
type stdinOnly struct{ pflag.Value }

// Set reads a flag's value.
func (v stdinOnly) Set(s string) error {
	if s != "-" {
		return errors.New("want -, which is stdin: your files are not at the proxy")
	}
	return v.Value.Set(s)
}

// absent is the value of a flag that does not exist here.
type absent struct{ pflag.Value }

// Set refuses a flag's value.
func (absent) Set(string) error { return errors.New("there is no such flag at a proxy") }
