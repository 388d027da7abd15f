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
				head: []string{"FACTOR", "LEFT"}, rows: res.Msg.GetFactors(),
				row: func(f *accessdv1.Factor) []string {
					left := ""
					if n := f.GetLeft(); n > 0 {
						left = strconv.Itoa(int(n))
					}
					return []string{f.GetKind(), left}
				},
			}.print(e.stdout, f)
		}),
	}
	addFormat(c, &f)
	return c
}

func factorsAdd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "add totp|recovery",
		Short: "Set up an authenticator app or recovery codes, in place of those before",
		Long: "Set up an authenticator app or recovery codes, in place of those before. Your\n" +
			"password and a code are asked for first, on the terminal (ssh -t) or as lines\n" +
			"of the input. A recovery code is good once, wherever a code is asked for.",
		Args:      want("totp|recovery"),
		ValidArgs: []string{"totp", "recovery"},
		RunE: verb(func(ctx context.Context, args []string) error {
			switch args[0] {
			case "totp":
				return e.change(ctx, accessdv1.BeginChangeRequest_CHANGE_TOTP)
			case "recovery":
				return e.change(ctx, accessdv1.BeginChangeRequest_CHANGE_RECOVERY)
			}
			return fault.New(fault.BadInput, "there is no factor %q: want totp or recovery", args[0])
		}),
	}
}

func factorsRemove(e *env) *cobra.Command {
	return &cobra.Command{
		Use:       "rm recovery",
		Short:     "Give up your recovery codes",
		Args:      want("recovery"),
		ValidArgs: []string{"recovery"},
		RunE: verb(func(ctx context.Context, args []string) error {
			switch args[0] {
			case "recovery":
				return e.change(ctx, accessdv1.BeginChangeRequest_CHANGE_RECOVERY_REMOVE)
			case "totp":
				return fault.New(fault.BadInput, "nobody signs in without a second factor").WithHint("\"factors add totp\" sets up another app in its place")
			}
			return fault.New(fault.BadInput, "there is no factor %q to remove: want recovery", args[0])
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
			return e.change(ctx, accessdv1.BeginChangeRequest_CHANGE_PASSWORD)
		}),
	}
}

// change has the person answer what the authority asks before it changes how they
// sign in. What is typed is not shown: on a terminal at a proxy nothing is, and
// lines of an input have no terminal.
func (e *env) change(ctx context.Context, what accessdv1.BeginChangeRequest_Change) error {
	if e.call == nil {
		return fault.New(fault.BadInput, "people change how they sign in at a proxy").WithHint("ssh -t USER@PROXY password, or factors add")
	}
	step, err := e.factors().BeginChange(ctx, connect.NewRequest(&accessdv1.BeginChangeRequest{Change: what}))
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
