package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/proxy"
)

const tapeID names.SessionID = "00000000-0000-4000-8000-00000000000a"

// vault is an authority with one recording, whose pages have two rows at most.
type vault struct {
	accessdv1connect.UnimplementedArchiveServiceHandler
	accessdv1connect.UnimplementedAuditServiceHandler

	parts    [][]byte
	root     string // as the store has it
	logged   string // as the log has it; "" is no session.end
	late     string // session.end has none, and recording.complete this
	denied   bool   // the caller may not read the log
	missing  []*accessdv1.MissingLog
	rows     int
	terminal bool // the caller has one

	asked []any // requests, in order
}

// newVault records a session with a terminal for recipients.
func newVault(t *testing.T, recipients ...string) *vault {
	t.Helper()
	dir := t.TempDir()
	r, err := recording.New(recording.Config{Dir: dir, Recipients: func() []string { return recipients }})
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.Begin(recording.Header{
		Session: tapeID, User: "alice", Login: "root", NodeName: "web-1", Kind: "shell", Terminal: true, Columns: 80, Rows: 24,
	})
	if err == nil {
		err = w.Print(accessdv1.Stream_STREAM_STDOUT, []byte("$ lss\b\x1b[K\r\ncafe\u0301\x1b]0;title\a\r\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	sum, err := w.Close()
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	part, err := os.ReadFile(filepath.Join(dir, string(tapeID), "000001.part"))
	if err != nil {
		t.Fatal(err)
	}
	return &vault{parts: [][]byte{part}, root: sum.Root, logged: sum.Root}
}

func (v *vault) ReadRecording(_ context.Context, req *connect.Request[accessdv1.ReadRecordingRequest], stream *connect.ServerStream[accessdv1.ReadRecordingResponse]) error {
	v.asked = append(v.asked, req.Msg)
	if req.Msg.GetSession() != string(tapeID) {
		return fault.New(fault.NotFound, "no recording of session %s", req.Msg.GetSession())
	}
	if err := stream.Send(&accessdv1.ReadRecordingResponse{Recording: &accessdv1.Recording{Session: string(tapeID), Root: v.root}}); err != nil {
		return err
	}
	for i, part := range v.parts {
		if err := stream.Send(&accessdv1.ReadRecordingResponse{Part: uint32(i + 1), Data: part}); err != nil {
			return err
		}
	}
	return nil
}

func (v *vault) ListEvents(_ context.Context, req *connect.Request[accessdv1.ListEventsRequest]) (*connect.Response[accessdv1.ListEventsResponse], error) {
	if v.denied {
		return nil, fault.New(fault.Denied, "not yours")
	}
	res := &accessdv1.ListEventsResponse{Missing: v.missing}
	if v.logged != "" {
		root := v.logged
		if v.late != "" {
			root = map[string]string{string(events.RecordingComplete): v.late}[req.Msg.GetFilter().GetEvent()]
		}
		e := events.Event{Name: events.Name(req.Msg.GetFilter().GetEvent()), Code: "A3002I", Time: time.Unix(1, 0).UTC(), UID: string(tapeID), SID: tapeID, Fields: map[string]any{"recording_root": root}}
		data, err := e.MarshalJSON()
		if err != nil {
			return nil, err
		}
		res.Events = [][]byte{data}
	}
	return connect.NewResponse(res), nil
}

func (v *vault) ListRecordings(_ context.Context, req *connect.Request[accessdv1.ListRecordingsRequest]) (*connect.Response[accessdv1.ListRecordingsResponse], error) {
	v.asked = append(v.asked, req.Msg)
	res := &accessdv1.ListRecordingsResponse{}
	for range min(req.Msg.GetLimit(), 2, int32(v.rows)) {
		v.rows--
		res.Recordings = append(res.Recordings, &accessdv1.Recording{
			Session: string(tapeID), Duration: durationpb.New(90 * time.Second), Size: 3 << 20, InProgress: true, Hold: "court", Fault: "part 2 was changed",
			Of: &accessdv1.RecordingOf{User: "alice", Login: "root", NodeName: "web-1", Kind: "exec", Terminal: true, Command: "rm -rf \x1b[2J", Sealed: true, Started: timestamppb.Now()},
		})
	}
	if v.rows > 0 {
		res.NextBefore = "more"
	}
	return connect.NewResponse(res), nil
}

func (v *vault) SearchRecordings(_ context.Context, req *connect.Request[accessdv1.SearchRecordingsRequest]) (*connect.Response[accessdv1.SearchRecordingsResponse], error) {
	v.asked = append(v.asked, req.Msg)
	return connect.NewResponse(&accessdv1.SearchRecordingsResponse{Sealed: 3, Matches: []*accessdv1.RecordingMatch{{
		Recording: &accessdv1.Recording{Session: string(tapeID), Of: &accessdv1.RecordingOf{User: "alice", NodeName: "web-1"}},
		At:        durationpb.New(61 * time.Second), Line: "root:\x1b[2Jx",
	}}}), nil
}

func (v *vault) HoldRecording(_ context.Context, req *connect.Request[accessdv1.HoldRecordingRequest]) (*connect.Response[accessdv1.HoldRecordingResponse], error) {
	v.asked = append(v.asked, req.Msg)
	return connect.NewResponse(&accessdv1.HoldRecordingResponse{}), nil
}

func (v *vault) RemoveRecording(_ context.Context, req *connect.Request[accessdv1.RemoveRecordingRequest]) (*connect.Response[accessdv1.RemoveRecordingResponse], error) {
	v.asked = append(v.asked, req.Msg)
	return connect.NewResponse(&accessdv1.RemoveRecordingResponse{}), nil
}

// on runs a line of the command line with the vault as authority.
func (v *vault) on(t *testing.T, line ...string) (out, said string, code int) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewArchiveServiceHandler(v, rpc.ServerOptions(zap.NewNop())...))
	mux.Handle(accessdv1connect.NewAuditServiceHandler(v, rpc.ServerOptions(zap.NewNop())...))
	var stdout, stderr bytes.Buffer
	e := &env{
		stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr,
		call: &proxy.VerbCall{User: "alice", Terminal: v.terminal, API: rpc.Local(mux, rpc.Peer{Local: true})},
	}
	root := newRoot(e)
	root.AddCommand(nouns(e)...)
	root.SetArgs(line)
	code = e.exit(root.ExecuteContext(t.Context()))
	return stdout.String(), stderr.String(), code
}

// A recording is shown in each form, and nothing in it drives a terminal that did
// not ask to be driven.
func TestRecordingsPlay(t *testing.T) {
	v := newVault(t)
	text := "$ ls\ncafe\u0301\n"
	for _, c := range []struct {
		line     string
		terminal bool
		want     string // all of it, or where it begins with "…" some of it
	}{
		{"play --format text", true, text},
		{"play", false, text},
		{"export --format text", true, text},
		{"play", true, "…$ lss\b\x1b[K\r\ncafe\u0301\r\n"},
		{"play --speed 1000 --skip-idle 1ms --follow --format tty", false, "…cafe\u0301\r\n"},
		{"play --format json", false, `…"type":"print","stream":"stdout","data":"JCBsc3M`},
		{"export", false, `…{"version":2,"width":80,"height":24,`},
		{"export --format json", false, `…"type":"end"`},
	} {
		v.terminal = c.terminal
		words := strings.Fields(c.line)
		out, said, code := v.on(t, append([]string{"recordings", words[0], string(tapeID)}, words[1:]...)...)
		part, some := strings.CutPrefix(c.want, "…")
		if code != 0 || said != "" || out != part && (!some || !strings.Contains(out, part)) {
			t.Errorf("%s: exit %d, said %q, %q; want %q", c.line, code, said, out, c.want)
		}
		if strings.Contains(out, "title\a") {
			t.Errorf("%s: %q sets a title", c.line, out)
		}
	}
	if !slices.ContainsFunc(v.asked, func(m any) bool { r, ok := m.(*accessdv1.ReadRecordingRequest); return ok && r.GetFollow() }) {
		t.Error("--follow was not passed on")
	}
	for line, want := range map[string]string{
		"play x":                                     "accessd: error: session id",
		"play " + string(tapeID) + " --speed 0":      "--speed: want more than 0",
		"play " + string(tapeID) + " --format csv":   `--format: "csv": want tty, text or json`,
		"export " + string(tapeID) + " --format tty": `--format: "tty": want asciicast, text or json`,
		"play": "SESSION",
	} {
		if out, said, code := v.on(t, append([]string{"recordings"}, strings.Fields(line)...)...); code != 2 || out != "" || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, %q, said %q; want 2 and %q", line, code, out, said, want)
		}
	}
	if _, said, code := v.on(t, "recordings", "play", "00000000-0000-4000-8000-00000000000b"); code != fault.NotFound.ExitCode() || !strings.Contains(said, "no recording of session") {
		t.Errorf("one that is not there: exit %d, said %q", code, said)
	}
}

// What was read is held against the log, where the caller may read that, and else
// against the store.
func TestRecordingsPlayVerifies(t *testing.T) {
	const other = "5555555555555555555555555555555555555555555555555555555555555555"
	for name, c := range map[string]struct {
		change func(v *vault)
		code   int
		said   string
	}{
		"the log vouches":             {func(*vault) {}, 0, ""},
		"the log has another":         {func(v *vault) { v.logged = other }, 2, "the recording is not the one in the log"},
		"the store lies, the log not": {func(v *vault) { v.root = other }, 0, ""},
		"the log vouches later":       {func(v *vault) { v.late = v.logged }, 0, ""},
		"the log later has another":   {func(v *vault) { v.late = other }, 2, "the recording is not the one in the log"},
		"the log is not for them":     {func(v *vault) { v.denied = true }, 0, ""},
		"nor does the store have it":  {func(v *vault) { v.denied, v.root = true, other }, 2, "the recording is not the one"},
		"the session goes on":         {func(v *vault) { v.logged, v.root = "", "" }, 0, "The log does not vouch for this recording yet"},
		"an authority is away": {func(v *vault) {
			v.logged, v.root, v.missing = "", "", []*accessdv1.MissingLog{{Id: "x"}}
		}, 0, "It cannot be said whether the log vouches for this recording"},
		"a part is damaged": {func(v *vault) { v.parts[0][len(v.parts[0])/2] ^= 1 }, 2, "the recording is not the one in the log"},
		"a part is gone":    {func(v *vault) { v.parts = nil }, 2, "the recording is not the one in the log"},
	} {
		v := newVault(t)
		c.change(v)
		if _, said, code := v.on(t, "recordings", "play", string(tapeID)); code != c.code || c.said == "" && said != "" || !strings.Contains(said, c.said) {
			t.Errorf("%s: exit %d, said %q; want %d, %q", name, code, said, c.code, c.said)
		}
	}
}

// A sealed recording opens with the key of a recipient alone: an age identity or an
// SSH key, of which the file is not too large.
func TestRecordingsIdentities(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	public, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ssh.MarshalPrivateKey(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	protected, err := ssh.MarshalPrivateKeyWithPassphrase(secret, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	v := newVault(t, mine.Recipient().String(), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
	notMine := file("not-mine", []byte(other.String()))
	for name, c := range map[string]struct {
		files []string
		code  int
		said  string
	}{
		"none":             {nil, fault.Denied.ExitCode(), "give the identity of one of its recipients"},
		"another's":        {[]string{notMine}, fault.Denied.ExitCode(), "no identity given opens the recording"},
		"age":              {[]string{file("age", []byte("# mine\n"+mine.String()+"\n"))}, 0, ""},
		"ssh":              {[]string{file("ssh", pem.EncodeToMemory(plain))}, 0, ""},
		"one of two":       {[]string{notMine, file("ssh2", pem.EncodeToMemory(plain))}, 0, ""},
		"with passphrase":  {[]string{file("locked", pem.EncodeToMemory(protected))}, fault.Denied.ExitCode(), "there is no terminal to ask for it"},
		"no identity file": {[]string{file("text", []byte("hello"))}, 2, "neither age identities nor an SSH private key"},
		"not there":        {[]string{filepath.Join(dir, "gone")}, 2, "gone"},
		"too large":        {[]string{file("large", make([]byte, maxIdentity+1))}, 2, "large"},
	} {
		line := []string{"recordings", "play", string(tapeID), "--format", "text"}
		for _, f := range c.files {
			line = append(line, "--identity", f)
		}
		out, said, code := v.on(t, line...)
		if code != c.code || !strings.Contains(said, c.said) || (code == 0) != (out == "$ ls\ncafe\u0301\n") {
			t.Errorf("%s: exit %d, %q, said %q; want %d, %q", name, code, out, said, c.code, c.said)
		}
	}
}

// An export to a file replaces it, for its owner alone.
func TestRecordingsExportToFile(t *testing.T) {
	v, path := newVault(t), filepath.Join(t.TempDir(), "out.cast")
	for range 2 {
		if out, said, code := v.on(t, "recordings", "export", string(tapeID), "-o", path); code != 0 || out != "" || said != "" {
			t.Fatalf("exit %d, %q, said %q", code, out, said)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("line %q is no JSON", line)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || strings.Count(string(data), `"version":2`) != 1 {
		t.Errorf("the file has mode %v, %v, and holds %q", info.Mode(), err, data)
	}
	if _, said, code := v.on(t, "recordings", "export", string(tapeID), "-o", t.TempDir()); code != 2 || !strings.Contains(said, "write ") {
		t.Errorf("into a directory: exit %d, said %q", code, said)
	}
}

// A list is put together from pages until there are as many as asked for; what
// people chose is shown escaped.
func TestRecordingsList(t *testing.T) {
	for _, c := range []struct{ have, limit, want, calls int }{{5, 100, 5, 3}, {5, 3, 3, 2}, {0, 100, 0, 1}} {
		v := &vault{rows: c.have}
		out, said, code := v.on(t, "recordings", "ls", "--limit", strconv.Itoa(c.limit))
		if got := strings.Count(out, string(tapeID)); code != 0 || said != "" || got != c.want || len(v.asked) != c.calls {
			t.Errorf("%+v: exit %d, said %q, %d rows in %d calls", c, code, said, got, len(v.asked))
		}
		if c.want > 0 && (strings.Contains(out, "\x1b") || !strings.Contains(out, "1m30s") || !strings.Contains(out, "3.0 MiB") || !strings.Contains(out, "exec+tty") ||
			!strings.Contains(out, "in progress, sealed, held, damaged: part 2 was changed")) {
			t.Errorf("rows are %q", out)
		}
	}
	v := &vault{}
	line := "recordings ls --user alice --login root --node web-1 --since 2026-03-01T09:00:00Z --interactive=false --in-progress --min-duration 1m --min-size 9 --format json"
	if out, _, code := v.on(t, strings.Fields(line)...); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Fatalf("exit %d, %q", code, out)
	}
	m, ok := v.asked[0].(*accessdv1.ListRecordingsRequest)
	if !ok || m.GetUser() != "alice" || m.GetLogin() != "root" || m.GetNode() != "web-1" || m.GetSince().AsTime().Hour() != 9 || m.GetUntil() != nil ||
		m.Terminal == nil || m.GetTerminal() || !m.GetInProgress() || m.GetMinDuration().AsDuration() != time.Minute || m.GetMinSize() != 9 {
		t.Errorf("asked for %v", m)
	}
	for line, want := range map[string]string{
		"--limit 0":    "--limit: 0: want at least 1",
		"--limit 1001": "--limit: 1001: want at most 1000 at a proxy",
		"--since then": "--since",
		"--until then": "--until",
	} {
		if _, said, code := v.on(t, append([]string{"recordings", "ls"}, strings.Fields(line)...)...); code != 2 || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, said %q; want %q", line, code, said, want)
		}
	}
}

// What is found is shown escaped, and what was not searched is said.
func TestRecordingsSearch(t *testing.T) {
	v := &vault{}
	out, said, code := v.on(t, "recordings", "search", "root x", "--user", "alice", "--node", "web-1", "--since", "2h", "--limit", "7")
	if code != 0 || said != "3 recordings in this time are sealed and were not searched\n" || !strings.Contains(out, "1m1s") || !strings.Contains(out, `root:\x1b[2Jx`) {
		t.Errorf("exit %d, %q, said %q", code, out, said)
	}
	if m, ok := v.asked[0].(*accessdv1.SearchRecordingsRequest); !ok || m.GetWords() != "root x" || m.GetUser() != "alice" || m.GetNode() != "web-1" || m.GetSince() == nil || m.GetLimit() != 7 {
		t.Errorf("asked for %v", m)
	}
	for _, flag := range []string{"--since", "--until"} {
		if _, said, code := v.on(t, "recordings", "search", "x", flag, "then"); code != 2 || !strings.Contains(said, flag) {
			t.Errorf("%s: exit %d, said %q", flag, code, said)
		}
	}
}

// Holding wants a reason, letting go none, and removing one again.
func TestRecordingsHoldAndRemove(t *testing.T) {
	v := &vault{}
	for line, ok := range map[string]bool{
		"hold S --reason court": true, "hold S --release": true, "hold S": false, "hold S --reason court --release": false, "hold": false,
		"rm S --reason space": true, "rm S": false, "rm": false,
	} {
		v.asked = nil
		_, said, code := v.on(t, append([]string{"recordings"}, strings.Fields(line)...)...)
		if (code == 0) != ok || len(v.asked) != map[bool]int{true: 1}[ok] || code != 0 && code != 2 {
			t.Errorf("%s: exit %d, said %q, %d calls", line, code, said, len(v.asked))
		}
	}
	if got := []string{bytesText(0), bytesText(1023), bytesText(1024), bytesText(1 << 40), bytesText(1 << 62)}; !slices.Equal(got, []string{"0 B", "1023 B", "1.0 KiB", "1.0 TiB", "4096.0 PiB"}) {
		t.Errorf("sizes are %q", got)
	}
}
