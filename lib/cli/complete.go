package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// valuesAnnotation holds, on a flag, the values it takes.
const valuesAnnotation = "accessd_values"

// completeValues lets the shell complete the values of c's flags and of those
// below. It is for a tree of which a process makes one: the parser keeps every
// flag for good.
func completeValues(c *cobra.Command) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if values := f.Annotations[valuesAnnotation]; values != nil {
			_ = c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
		}
	})
	for _, sub := range c.Commands() {
		completeValues(sub)
	}
}

// complete prints what may stand in place of the last of words, one a line with
// a description behind a tab, and a last line that tells the script of the
// shell not to offer files.
func (e *env) complete(root *cobra.Command, words []string) error {
	var begun string
	if n := len(words); n > 0 {
		words, begun = words[:n-1], words[n-1]
	}
	c, rest, err := root.Find(words)
	if err != nil {
		c, rest = root, words
	}
	for _, s := range candidates(c, rest, begun) {
		if _, err := fmt.Fprintln(e.stdout, s); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.stdout, ":%d\n", cobra.ShellCompDirectiveNoFileComp)
	return err
}

// candidates returns what begins with begun and may follow rest, the words
// behind the name of c.
func candidates(c *cobra.Command, rest []string, begun string) []string {
	var found []string
	offer := func(word, about string) {
		if strings.HasPrefix(word, begun) {
			found = append(found, word+"\t"+about)
		}
	}
	if n := len(rest); n > 0 {
		if f := c.Flags().Lookup(strings.TrimPrefix(rest[n-1], "--")); f != nil && f.NoOptDefVal == "" && strings.HasPrefix(rest[n-1], "--") {
			for _, v := range f.Annotations[valuesAnnotation] {
				offer(v, f.Usage)
			}
			return found
		}
	}
	if strings.HasPrefix(begun, "-") {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				offer("--"+f.Name, f.Usage)
			}
		})
		return found
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && len(rest) == 0 {
			offer(sub.Name(), sub.Short)
		}
	}
	slices.Sort(found)
	return found
}
