package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

func TestPublicHidesCauses(t *testing.T) {
	cause := errors.New("open /var/lib/accessd/keys: permission denied")
	cases := []struct {
		name   string
		err    error
		public string
		log    string
		kind   fault.Kind
	}{
		{"unclassified", cause, "internal error", cause.Error(), fault.Internal},
		{"classified", fault.New(fault.NotFound, "no node named %q", "db"), `no node named "db"`, `no node named "db"`, fault.NotFound},
		{"wrapped cause", fault.Wrap(fault.Unavailable, cause, "the store is away"), "the store is away", "the store is away: " + cause.Error(), fault.Unavailable},
		{"outer context", fmt.Errorf("list nodes: %w", fault.New(fault.Denied, "not yours")), "not yours", "list nodes: not yours", fault.Denied},
		{"shown cause", fault.New(fault.BadInput, "line 3: %w", io.ErrUnexpectedEOF), "line 3: unexpected EOF", "line 3: unexpected EOF", fault.BadInput},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := fault.Public(c.err); got != c.public {
				t.Errorf("Public = %q, want %q", got, c.public)
			}
			if got := c.err.Error(); got != c.log {
				t.Errorf("Error = %q, want %q", got, c.log)
			}
			if got := fault.KindOf(c.err); got != c.kind {
				t.Errorf("KindOf = %v, want %v", got, c.kind)
			}
		})
	}
}

func TestShownCauseStaysMatchable(t *testing.T) {
	err := fault.New(fault.BadInput, "line 3: %w", io.ErrUnexpectedEOF)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("errors.Is(%v, io.ErrUnexpectedEOF) = false, want true", err)
	}
}

func TestHintSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("dial: %w", fault.New(fault.NotFound, "no such node").WithHint("run %q", "accessd nodes ls"))
	if got, want := fault.Hint(err), `run "accessd nodes ls"`; got != want {
		t.Errorf("Hint = %q, want %q", got, want)
	}
}

func TestExitCodesAreStable(t *testing.T) {
	want := map[fault.Kind]int{fault.Internal: 1, fault.BadInput: 2, fault.Denied: 3, fault.NotFound: 4, fault.Conflict: 5, fault.Unavailable: 6}
	for k, code := range want {
		if got := k.ExitCode(); got != code {
			t.Errorf("%v.ExitCode() = %d, want %d", k, got, code)
		}
	}
}
