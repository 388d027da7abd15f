package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

func rolesTest(e *env) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "test FIXTURES...",
		Short: "Check that roles answer what fixtures say",
		Long: "Check the questions and answers of fixtures (docs/roles.md) against the cluster's roles or, with --file, against the\n" +
			"roles of files and those built in, which needs no cluster. An answer that is not as expected is an error.",
		Args: cobra.MinimumNArgs(1),
		RunE: verb(func(ctx context.Context, args []string) error {
			roles, err := e.rolesToTest(ctx, files)
			if err != nil {
				return err
			}
			var tests, wrong int
			for _, file := range args {
				text, err := e.readFile(file)
				if err != nil {
					return err
				}
				fixtures, err := authz.ParseFixtures(file, text)
				if err != nil {
					return err
				}
				for _, f := range fixtures {
					outcomes, err := f.Run(roles)
					if err != nil {
						return fault.Wrap(fault.BadInput, err, file)
					}
					tests += len(outcomes)
					wrong += e.report(file, outcomes)
				}
			}
			if wrong > 0 {
				return fault.New(fault.Conflict, "%d of %d tests failed", wrong, tests)
			}
			e.say("%d tests passed", tests)
			return nil
		}),
	}
	c.Flags().StringSliceVarP(&files, "file", "f", nil, "YAML files of roles to test instead of the cluster's")
	return c
}

// rolesToTest returns the roles of files and those built in, or the cluster's.
func (e *env) rolesToTest(ctx context.Context, files []string) (map[names.RoleName]services.Role, error) {
	if len(files) == 0 {
		return e.clusterRoles(ctx)
	}
	roles := builtinRoles()
	for _, file := range files {
		list, err := e.readRoles(file)
		if err != nil {
			return nil, err
		}
		put(roles, list)
	}
	return roles, nil
}

// report prints the outcomes that are not as expected, and returns how many.
func (e *env) report(file string, outcomes []authz.Outcome) int {
	wrong := 0
	for _, o := range outcomes {
		if o.Good {
			continue
		}
		wrong++
		expected := "refused"
		if *o.Allow {
			expected = "allowed"
		}
		if o.Rule != "" {
			expected += " by " + o.Rule
		}
		fmt.Fprintf(e.stdout, "%s:%d: %s: want %s, got: %s\n", file, o.Line, o, expected, o.Got.Reason)
	}
	return wrong
}
