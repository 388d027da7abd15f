//go:build unix

package events

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A name that nobody has is nowhere, not on disk and not in the log; that the same
// was tried again is seen. What is known, proven, or said by a provider stays.
func TestUnknownNamesAreNotKept(t *testing.T) {
	e := newTestEmitter(t, EmitterConfig{Known: func(name string) bool { return name == "alice" }})
	const typed = "hunter2\"\x00'; drop"
	for _, ev := range []Event{
		{Name: UserLogin, User: typed},
		{Name: AuthRejected, User: typed},
		{Name: InviteUse, User: "other"},
		{Name: UserLogin, User: "alice"},
		{Name: UserLogin, User: "proven", Success: true},
		{Name: UserLogin, User: "by-provider", Fields: map[string]any{"connector": "corp"}},
		{Name: SessionRejected, User: "gone"},
	} {
		if err := e.Emit(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(e.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var data []byte
			if data, err = os.ReadFile(path); bytes.Contains(data, []byte("hunter2")) {
				t.Errorf("%s has what was typed", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if err := e.Run(ctx, func(_ context.Context, list [][]byte) error {
		for _, data := range list {
			ev, err := ParseEvent(data)
			if err != nil {
				return err
			}
			users = append(users, string(ev.User))
		}
		stop()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(users) != 7 || users[0] != users[1] || users[0] == users[2] || !strings.HasPrefix(users[0], "(unknown:") || !strings.HasPrefix(users[2], "(unknown:") {
		t.Fatalf("users are %q", users)
	}
	if got := strings.Join(users[3:], " "); got != "alice proven by-provider gone" {
		t.Errorf("the others are %s", got)
	}
}
