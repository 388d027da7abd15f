package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

func factorsCommand(e *env) *cobra.Command {
	return noun("factors", "Manage how you sign in", factorsList(e), factorsAdd(e), factorsRemove(e))
}

func factorsList(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "ls [USER]",
		Short: "List how a person signs in",
		Args:  cobra.MaximumNArgs(1),
		RunE: verb(func(ctx context.Context, args []string) error {
			req := &accessdv1.ListFactorsRequest{}
			if len(args) > 0 {
				req.User = args[0]
			}
			res, err := e.factors().ListFactors(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			return list[*accessdv1.Factor]{
				head: []string{"FACTOR", "NAME", "FOR", "LEFT", "LAST USED"}, rows: res.Msg.GetFactors(),
				row: func(f *accessdv1.Factor) []string {
					left := ""
					if n := f.GetLeft(); n > 0 {
						left = strconv.Itoa(int(n))
					}
					return []string{f.GetKind(), f.GetName(), f.GetHost(), left, localTime(f.GetUsed())}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func factorsAdd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "add totp|recovery|passkey [NAME]",
		Short: "Set up an authenticator app, recovery codes or a passkey",
		Long: "Set up an authenticator app or recovery codes, in place of those before, or a\n" +
			"further passkey, which is made in a browser and signs in there. Your password\n" +
			"and a code are asked for first, on the terminal (ssh -t) or as lines of the\n" +
			"input, or a passkey that you have. A recovery code is good once, wherever a\n" +
			"code is asked for.",
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"totp", "recovery", "passkey"},
		RunE: verb(func(ctx context.Context, args []string) error {
			req := &accessdv1.BeginChangeRequest{}
			switch args[0] {
			case "totp":
				req.Change = accessdv1.BeginChangeRequest_CHANGE_TOTP
			case "recovery":
				req.Change = accessdv1.BeginChangeRequest_CHANGE_RECOVERY
			case "passkey":
				req.Change = accessdv1.BeginChangeRequest_CHANGE_PASSKEY
			default:
				return fault.New(fault.BadInput, "there is no factor %q: want totp, recovery or passkey", args[0])
			}
			return e.changeNamed(ctx, req, args[1:])
		}),
	}
}

func factorsRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:       "rm recovery|passkey [NAME]",
		Short:     "Give up your recovery codes or a passkey",
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"recovery", "passkey"},
		RunE: verb(func(ctx context.Context, args []string) error {
			switch args[0] {
			case "recovery":
				return e.changeNamed(ctx, &accessdv1.BeginChangeRequest{Change: accessdv1.BeginChangeRequest_CHANGE_RECOVERY_REMOVE}, args[1:])
			case "passkey":
				if len(args) < 2 {
					return fault.New(fault.BadInput, "which passkey?").WithHint("factors rm passkey NAME; \"factors ls\" lists them")
				}
				return e.changeNamed(ctx, &accessdv1.BeginChangeRequest{Change: accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE}, args[1:])
			case "totp":
				return fault.New(fault.BadInput, "nobody signs in without a second factor").WithHint("\"factors add totp\" sets up another app in its place")
			}
			return fault.New(fault.BadInput, "there is no factor %q to remove: want recovery or passkey", args[0])
		}),
	}
}

func passwordCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "password",
		Short: "Change your password",
		Long: "Change your password. The one you have and a code are asked for first, on the\n" +
			"terminal (ssh -t) or as lines of the input.",
		Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error {
			return e.change(ctx, &accessdv1.BeginChangeRequest{Change: accessdv1.BeginChangeRequest_CHANGE_PASSWORD})
		}),
	}
}

// changeNamed is change for what may have a name, which only passkeys have.
func (e *env) changeNamed(ctx context.Context, what *accessdv1.BeginChangeRequest, name []string) error {
	if len(name) > 0 {
		switch what.Change {
		case accessdv1.BeginChangeRequest_CHANGE_PASSKEY, accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE:
			what.Name = name[0]
		default:
			return fault.New(fault.BadInput, "only passkeys have a name: what is %q?", name[0])
		}
	}
	return e.change(ctx, what)
}

// change has the person answer what the authority asks before it changes how they
// sign in. What is typed is not shown: on a terminal at a proxy nothing is, and
// lines of an input have no terminal.
func (e *env) change(ctx context.Context, what *accessdv1.BeginChangeRequest) error {
	if e.call == nil {
		return fault.New(fault.BadInput, "people change how they sign in at a proxy").WithHint("ssh -t USER@PROXY password, or factors add")
	}
	step, err := e.factors().BeginChange(ctx, connect.NewRequest(what))
	for err == nil && !step.Msg.GetDone() {
		if text := step.Msg.GetInstruction(); text != "" {
			e.say("%s", text)
		}
		next := &accessdv1.ContinueRequest{Id: step.Msg.GetId()}
		for _, p := range step.Msg.GetPrompts() {
			answer, aerr := e.ask(p.GetText())
			if aerr != nil {
				return aerr
			}
			next.Answers = append(next.Answers, answer)
		}
		step, err = e.factors().ContinueChange(ctx, connect.NewRequest(next))
	}
	if err != nil {
		return err
	}
	words, codes, _ := strings.Cut(step.Msg.GetInstruction(), "\n\n")
	e.say("%s", words)
	if codes != "" {
		_, err = fmt.Fprintln(e.stdout, codes)
	}
	return err
}

// maxAnswer bounds an answer, in bytes; the authority takes no longer ones.
const maxAnswer = 1 << 10

// ask reads one line of the input, and nothing beyond it.
func (e *env) ask(prompt string) (string, error) {
	const ctrlC, ctrlD, backspace, del = 3, 4, 8, 127
	if e.call.Terminal {
		_, _ = io.WriteString(e.stderr, prompt)
		defer func() { _, _ = io.WriteString(e.stderr, "\n") }()
	}
	var line []byte
	for b := [1]byte{}; len(line) <= maxAnswer; {
		_, err := io.ReadFull(e.stdin, b[:])
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return "", fault.New(fault.BadInput, "no answer to %q", strings.TrimSpace(prompt)).WithHint("run it with ssh -t, or give the answers as lines of the input")
		case errors.Is(err, io.EOF):
			return string(line), nil
		case err != nil:
			return "", err
		}
		switch {
		case b[0] == '\n', b[0] == '\r' && e.call.Terminal:
			return strings.TrimSuffix(string(line), "\r"), nil
		case e.call.Terminal && (b[0] == ctrlC || b[0] == ctrlD):
			return "", fault.New(fault.BadInput, "given up")
		case e.call.Terminal && (b[0] == backspace || b[0] == del):
			line = line[:max(0, len(line)-1)]
		default:
			line = append(line, b[0])
		}
	}
	return "", fault.New(fault.BadInput, "an answer of more than %d bytes", maxAnswer)
}
