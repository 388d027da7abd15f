package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/names"
)

// aCopy has a directory with a copy of the vault's recording, and the key that its
// proof is checked with.
func aCopy(t *testing.T, v *vault) (dir, key string) {
	t.Helper()
	dir = t.TempDir()
	signer, verifier, err := events.NewAuditKey("example.com/audit")
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(signer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := events.OpenLog(t.Context(), events.LogConfig{Dir: filepath.Join(dir, "log"), Signer: s, VerifierKey: verifier})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	prove := func(ev events.Event) []byte {
		t.Helper()
		ev.Time, ev.SID = time.Unix(1, 0).UTC(), tapeID
		data, err := ev.MarshalJSON()
		if err == nil {
			err = l.Append(t.Context(), [][]byte{data})
		}
		if err != nil {
			t.Fatal(err)
		}
		proof, err := l.Prove(context.Background(), ev.UID)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	of, err := recording.Copied{Session: tapeID, Parts: 1, Root: v.root}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	complete := events.Event{Name: events.RecordingComplete, Code: "A6001I", UID: "00000000-0000-4000-8000-000000000001", Success: true, Fields: map[string]any{"recording_root": v.root}}
	other := events.Event{Name: events.RecordingRead, Code: "A6003I", UID: "00000000-0000-4000-8000-000000000002", Success: true}
	broken := events.Event{
		Name: events.RecordingComplete, Code: "A6001W", UID: "00000000-0000-4000-8000-000000000003", Error: "1 of 2 parts never came",
		Fields: map[string]any{"recording_root": strings.Repeat("5", 64)},
	}
	for name, data := range map[string][]byte{
		"audit.pub": []byte(verifier + "\n"),
		"other":     prove(other), "broken": prove(broken),
		"recordings/" + string(tapeID) + "/000001.part":     v.parts[0],
		"recordings/" + string(tapeID) + "/recording.json":  of,
		"recordings/" + string(tapeID) + "/recording.proof": prove(complete),
		"recordings/mirror": []byte("x"),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, filepath.Join(dir, "audit.pub")
}

// run runs a line on this machine, without a cluster.
func run(t *testing.T, args ...string) (out, said string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = Main(t.Context(), append([]string{"--data-dir", t.TempDir()}, args...), Streams{Out: &stdout, Err: &stderr})
	return stdout.String(), stderr.String(), code
}

// A copy of a recording is what the log's proof says, or it is said what is wrong
// with it; no file of the copy leads anywhere else.
func TestRecordingsVerify(t *testing.T) {
	v := newVault(t)
	dir, key := aCopy(t, v)
	whole, err := os.ReadFile(filepath.Join(dir, "recordings", string(tapeID), "recording.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(at string) error
		code   int
		said   string
	}{
		"whole":               {func(string) error { return nil }, 0, "verified " + string(tapeID) + ": 1 parts, entry"},
		"a part changed":      {func(at string) error { return os.WriteFile(at+"000001.part", []byte("x"), 0o600) }, 5, "is not the recording in the log"},
		"a part gone":         {func(at string) error { return os.Remove(at + "000001.part") }, 5, "is not the recording in the log"},
		"a part more":         {func(at string) error { return os.WriteFile(at+"000002.part", []byte("x"), 0o600) }, 5, "is not the recording in the log"},
		"a part too large":    {func(at string) error { return os.WriteFile(at+"000001.part", make([]byte, recording.MaxPart+1), 0o600) }, 5, "larger than"},
		"a link out":          {func(at string) error { return swap(at+"000001.part", key) }, 5, "escapes"},
		"not closed":          {func(at string) error { return os.Remove(at + "recording.json") }, 4, "went on when it was copied"},
		"no proof":            {func(at string) error { return os.Remove(at + "recording.proof") }, 4, "no proof"},
		"another's proof":     {func(at string) error { return os.Rename(filepath.Join(dir, "other"), at+"recording.proof") }, 5, "of another event"},
		"another root proven": {func(at string) error { return os.Rename(filepath.Join(dir, "broken"), at+"recording.proof") }, 5, "says that the root"},
		"another description": {func(at string) error {
			return os.WriteFile(at+"recording.json", bytes.ReplaceAll(whole, []byte(tapeID), []byte(strings.Repeat("0", 36))), 0o600)
		}, 5, "of another session"},
		"a later form": {func(at string) error {
			return os.WriteFile(at+"recording.json", bytes.Replace(whole, []byte(`"version": 1`), []byte(`"version": 2`), 1), 0o600)
		}, 5, "version 2"},
		"no description": {func(at string) error { return os.WriteFile(at+"recording.json", []byte("[]"), 0o600) }, 5, "want what a copy"},
	} {
		at := filepath.Join(dir, "recordings", string(tapeID)) + string(filepath.Separator)
		kept := filepath.Join(t.TempDir(), "kept")
		if err := os.CopyFS(kept, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := c.change(at); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, said, code := run(t, "recordings", "verify", "--copy", dir, "--key", key)
		if code != c.code || !strings.Contains(out+said, c.said) {
			t.Errorf("%s: exit %d, %q, said %q; want %d, %q", name, code, out, said, c.code, c.said)
		}
		if err := os.RemoveAll(at); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"000001.part", "recording.json", "recording.proof"} {
			data, err := os.ReadFile(filepath.Join(kept, "recordings", string(tapeID), file))
			if err == nil {
				err = os.MkdirAll(at, 0o700)
			}
			if err == nil {
				err = os.WriteFile(at+file, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}

	for line, want := range map[string]string{
		"play " + string(tapeID) + " --format text --key " + key: "",
		"play " + string(tapeID) + " --format text":              "was not held against the log",
		"export " + string(tapeID) + " --format text":            "was not held against the log",
	} {
		out, said, code := run(t, append([]string{"recordings"}, append(strings.Fields(line), "--copy", dir)...)...)
		if code != 0 || out != "$ ls\ncafe\u0301\n" || want == "" && said != "" || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, %q, said %q", line, code, out, said)
		}
	}
	if _, said, code := run(t, "recordings", "play", string(names.NewSessionID()), "--copy", dir); code != 4 || !strings.Contains(said, "no recording of session") {
		t.Errorf("one that is not there: exit %d, said %q", code, said)
	}
	if sum := hex.EncodeToString(make([]byte, 32)); string(recording.AppendSum(nil, 12, [32]byte{})) != sum+"  000012.part\n" {
		t.Error("a sum is not written as sha256sum writes it")
	}
}

// swap puts a link to a file in the place of another.
func swap(path, to string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Symlink(to, path)
}
