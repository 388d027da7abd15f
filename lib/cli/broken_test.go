package cli

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/spf13/cobra"
)

// TestBrokenOff: a verb that ends because its caller went away, or the proxy that
// runs it stops, is no internal error, and may be tried again.
func TestBrokenOff(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	run := verb(func(context.Context, []string) error { return fmt.Errorf("ask the authority: %w", context.Canceled) })
	for _, c := range []struct {
		over bool
		code int
		want string
	}{
		{false, 1, "accessd: error: ask the authority: context canceled\n"}, // of some other context
		{true, 6, "accessd: error: broken off: ask the authority: context canceled\n"},
	} {
		if c.over {
			cancel()
		}
		var words bytes.Buffer
		e := &env{stderr: &words}
		if code := e.exit(run(cmd, nil)); code != c.code || words.String() != c.want {
			t.Errorf("over %v: exit %d %q, want %d %q", c.over, code, words.String(), c.code, c.want)
		}
	}
	cancel()
}
