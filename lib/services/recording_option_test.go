package services_test

import (
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/services"
)

func optionsOf(t *testing.T, text string) services.RoleOptions {
	t.Helper()
	roles, err := services.ParseRoles("r", []byte("kind: role\nname: x\nallow: [{nodes: \"*\", logins: [a], actions: [shell]}]\noptions: "+text+"\n"))
	if err != nil {
		t.Fatalf("options %s: %v", text, err)
	}
	wantRoundTrip(t, roles[0])
	return roles[0].Options
}

// Who says nothing is recorded strictly; who says something else must say a
// word that is known.
func TestRecordOption(t *testing.T) {
	for text, want := range map[string]services.Recording{
		"{max_sessions: 2}":     services.RecordStrict,
		"{record: strict}":      services.RecordStrict,
		"{record: best_effort}": services.RecordBestEffort,
		"{record: off}":         services.RecordOff,
		`{record: "off"}`:       services.RecordOff,
	} {
		if got := optionsOf(t, text).Recording(); got != want {
			t.Errorf("%s: Recording = %q, want %q", text, got, want)
		}
	}
	if got := (services.RoleOptions{Record: "maybe"}).Recording(); got != services.RecordStrict {
		t.Errorf("Recording of a word that is not known = %q, want strict", got)
	}
	for _, text := range []string{"{record: Strict}", "{record: 1}", "{record: [off]}", "{record: false}", `{record: ""}`, "{record_input: 1}"} {
		_, err := services.ParseRoles("r", []byte("kind: role\nname: x\nallow: [{nodes: \"*\", logins: [a], actions: [shell]}]\noptions: "+text+"\n"))
		if err == nil || !strings.HasPrefix(err.Error(), "r:4: record") {
			t.Errorf("options %s: error %v, want one in line 4 about record", text, err)
		}
	}
}

// Of several roles that grant the strictest word counts, whatever their order,
// and one that says nothing leaves it to the others.
func TestStrictestRecording(t *testing.T) {
	for _, tc := range []struct{ a, b, want services.Recording }{
		{"", "", services.RecordStrict},
		{"", "off", services.RecordOff},
		{"", "best_effort", services.RecordBestEffort},
		{"off", "best_effort", services.RecordBestEffort},
		{"off", "strict", services.RecordStrict},
		{"best_effort", "strict", services.RecordStrict},
		{"off", "maybe", services.RecordStrict},
		{"off", "off", services.RecordOff},
	} {
		a, b := services.RoleOptions{Record: tc.a}, services.RoleOptions{Record: tc.b, RecordInput: true}
		for _, got := range []services.RoleOptions{a.Strictest(b), b.Strictest(a)} {
			if got.Recording() != tc.want || !got.RecordInput {
				t.Errorf("%q and %q with input: %q, input %v, want %q with input", tc.a, tc.b, got.Recording(), got.RecordInput, tc.want)
			}
		}
	}
}
