// Package cli is the command line: "accessd NOUN VERB".
//
// Data goes to stdout, words to stderr. A failure is two lines at most, what is
// wrong and what to do next, and an exit code that docs/cli.md lists. Every
// verb talks to the authority through the same services, over the admin socket
// of a data directory; nothing here reaches into another package's state.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/proxy"
)

// env is what every verb works with.
type env struct {
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	dataDir string
	call    *proxy.VerbCall // of a person at a proxy; nil on a machine of one's own
}

// say writes one line of words for a person.
func (e *env) say(format string, args ...any) {
	fmt.Fprintf(e.stderr, format+"\n", args...)
}

// exitError carries the exit code of a command that ran elsewhere.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// Streams are the standard streams of one run of the command line.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command line args, without the program's name, and returns the
// process's exit code. It returns when ctx ends.
func Main(ctx context.Context, args []string, std Streams) int {
	e := &env{stdin: std.In, stdout: std.Out, stderr: std.Err}
	root := tree(e)
	root.SetArgs(args)
	return e.exit(root.ExecuteContext(ctx))
}

// exit prints err, if it is one, and returns the exit code.
func (e *env) exit(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[exitError](err); ok {
		return exit.code
	}
	return e.fail(err)
}

// fail prints err and returns its exit code.
func (e *env) fail(err error) int {
	text, code := err.Error(), fault.BadInput.ExitCode() // cobra's own errors are usage errors
	classified, ok := errors.AsType[*fault.Error](err)
	internal, unclassified := errors.AsType[internalError](err)
	switch {
	case ok:
		text, code = err.Error(), classified.Kind.ExitCode()
	case unclassified:
		text, code = internal.Error(), fault.Internal.ExitCode()
	}
	if e.call != nil && (ok || unclassified) {
		text = fault.Public(err) // the rest is for who runs the proxy
	}
	for line := range strings.Lines(text) {
		fmt.Fprintf(e.stderr, "accessd: error: %s\n", events.Display(strings.TrimRight(line, "\n")))
	}
	if hint := fault.Hint(err); hint != "" {
		fmt.Fprintf(e.stderr, "accessd: hint: %s\n", events.Display(hint))
	}
	return code
}

// internalError marks an unclassified error that a verb returned, to tell it
// from the command-line parser's.
type internalError struct{ error }

func (e internalError) Unwrap() error { return e.error }

// verb adapts a verb's function to the parser: it classifies what has no kind.
func verb(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := run(cmd.Context(), args)
		if err == nil {
			return nil
		}
		if _, ok := errors.AsType[*fault.Error](err); ok {
			return err
		}
		if _, ok := errors.AsType[exitError](err); ok {
			return err
		}
		if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil { // such as when the proxy stops
			return fault.Wrap(fault.Unavailable, err, "broken off")
		}
		return internalError{err}
	}
}

// Tree returns the whole command tree, from which documents are generated. Its
// verbs have no streams.
func Tree() *cobra.Command { return tree(&env{}) }

func tree(e *env) *cobra.Command {
	root := newRoot(e)
	root.PersistentFlags().StringVar(&e.dataDir, "data-dir", "", "data directory of the cluster (default $ACCESSD_DATA_DIR or /var/lib/accessd)")
	root.AddCommand(serverCommands(e)...)
	root.AddCommand(nouns(e)...)
	root.AddCommand(nodesList(e), sshConfigCommand(e), loginCommand(e), logoutCommand(e), statusCommand(e))
	completeValues(root)
	return root
}

// nouns are the verbs that need no more than the services.
func nouns(e *env) []*cobra.Command {
	return []*cobra.Command{
		usersCommand(e), factorsCommand(e), passwordCommand(e), connectorsCommand(e), botsCommand(e), rolesCommand(e), tokensCommand(e), apiTokensCommand(e), nodesCommand(e),
		sessionsCommand(e), requestsCommand(e), locksCommand(e), recordingsCommand(e), auditCommand(e), caCommand(e), versionCommand(e),
	}
}

// newRoot returns the root of a tree, without verbs.
func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "accessd",
		Short:         "Certificate-based, role-checked, provably audited SSH access",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       defaults.Version,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fault.New(fault.BadInput, "unknown verb %q", args[0]).WithHint("run %q for the list of verbs", cmd.CommandPath()+" help")
		},
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fault.New(fault.BadInput, "%s", err.Error()).WithHint("run %q", cmd.CommandPath()+" --help")
	})
	root.SetVersionTemplate("accessd {{.Version}}\n")
	return root
}

// noun groups verbs; alone it lists them, an unknown verb is a usage error.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fault.New(fault.BadInput, "unknown verb %q", name+" "+args[0]).
				WithHint("run %q for the list of verbs", cmd.CommandPath()+" --help")
		},
	}
	c.AddCommand(verbs...)
	return c
}

// want checks the number of arguments and names what is missing.
func want(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fault.New(fault.BadInput, "%s: %s is missing", cmd.CommandPath(), strings.Join(names[len(args):], " and ")).
				WithHint("run %q", cmd.CommandPath()+" --help")
		}
		if len(args) > len(names) {
			return fault.New(fault.BadInput, "%s: %q is one argument too many", cmd.CommandPath(), args[len(names)]).
				WithHint("run %q", cmd.CommandPath()+" --help")
		}
		return nil
	}
}

func versionCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  want(),
		RunE: verb(func(context.Context, []string) error {
			_, err := fmt.Fprintf(e.stdout, "accessd %s\n", defaults.Version)
			return err
		}),
	}
}
