package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/proxy"
)

// One line says what an event is about, and on which node it was, even where
// that node is a plain sshd and a proxy wrote the event.
func TestEventRow(t *testing.T) {
	for _, c := range []struct {
		event        events.Event
		node, detail string
	}{
		{
			events.Event{Name: events.SFTP, ServerHostname: "proxy-1", Fields: map[string]any{
				"node_name": "old-1", "action": "close", "path": "/srv/a b", "bytes_read": 0, "bytes_written": 7, "sha256": "x", "connection": "y",
			}},
			"old-1", "action=close path=/srv/a b bytes_read=0 bytes_written=7",
		},
		{
			events.Event{Name: events.Port, ServerHostname: "web-1", Fields: map[string]any{
				"state": "refused", "action": "forward:local", "target": "db:5432", "reason": "no role",
			}},
			"web-1", "state=refused action=forward:local target=db:5432 reason=no role",
		},
		{
			events.Event{Name: events.SessionJoin, ServerHostname: "web-1", Fields: map[string]any{"mode": "watch", "participant": "alice", "node_name": ""}},
			"web-1", "mode=watch participant=alice",
		},
		{
			events.Event{Name: events.SessionEnd, Error: "lost", Fields: map[string]any{"exit_code": 255, "node_name": "web-2"}},
			"web-2", "lost exit_code=255",
		},
	} {
		row := eventRow(c.event)
		if row[5] != c.node || row[7] != c.detail {
			t.Errorf("%s: node %q, detail %q; want %q, %q", c.event.Name, row[5], row[7], c.node, c.detail)
		}
	}
}

// shelf is a log whose pages have three events at most. Places are numbers.
type shelf struct {
	accessdv1connect.UnimplementedAuditServiceHandler

	events [][]byte
	filter *accessdv1.EventFilter
}

func (s *shelf) place(text string, empty int) int {
	if n, err := strconv.Atoi(text); err == nil {
		return n
	}
	return empty
}

func (s *shelf) ListEvents(_ context.Context, req *connect.Request[accessdv1.ListEventsRequest]) (*connect.Response[accessdv1.ListEventsResponse], error) {
	s.filter = req.Msg.GetFilter()
	n := min(int(req.Msg.GetLimit()), 3)
	res := &accessdv1.ListEventsResponse{}
	if req.Msg.GetAfter() != "" {
		from := s.place(req.Msg.GetAfter(), 0)
		end := min(from+n, len(s.events))
		res.Events, res.NextBefore, res.NextAfter = s.events[from:end], strconv.Itoa(from), strconv.Itoa(end)
		return connect.NewResponse(res), nil
	}
	end := s.place(req.Msg.GetBefore(), len(s.events))
	from := max(end-n, 0)
	if res.Events, res.NextAfter = s.events[from:end], strconv.Itoa(end); from > 0 {
		res.NextBefore = strconv.Itoa(from)
	}
	return connect.NewResponse(res), nil
}

func (s *shelf) ExportEvents(_ context.Context, req *connect.Request[accessdv1.ExportEventsRequest], stream *connect.ServerStream[accessdv1.ExportEventsResponse]) error {
	for from := s.place(req.Msg.GetAfter(), 0); ; from += 3 {
		end := min(from+3, len(s.events))
		if err := stream.Send(&accessdv1.ExportEventsResponse{Events: s.events[from:end], After: strconv.Itoa(end)}); err != nil || end == len(s.events) {
			return err
		}
	}
}

// newShelf has n events whose commands are their numbers; the third last is late.
func newShelf(t *testing.T, n int) *shelf {
	t.Helper()
	s := &shelf{}
	for i := range n {
		when := time.Date(2026, 3, 1, 9, i, 0, 0, time.UTC)
		if i == n-3 {
			when = when.Add(-time.Hour)
		}
		ev := events.Event{
			Name: events.Exec, Code: "A3004I", Time: when, UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Success: true,
			Fields: map[string]any{"command": fmt.Sprintf("run-%d\x1b[2J", i)},
		}
		data, err := ev.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		s.events = append(s.events, data)
	}
	return s
}

// on runs a line of the command line, as on a machine of one's own, with the
// shelf as authority.
func (s *shelf) on(t *testing.T, line ...string) (out, said string, code int) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewAuditServiceHandler(s))
	var stdout, stderr bytes.Buffer
	e := &env{
		stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr,
		call: &proxy.VerbCall{User: "alice", API: rpc.Local(mux, rpc.Peer{Local: true})},
	}
	root := newRoot(e)
	root.AddCommand(nouns(e)...)
	root.SetArgs(line)
	code = e.exit(root.ExecuteContext(t.Context()))
	return stdout.String(), stderr.String(), code
}

// runs returns the numbers in the order in which text has them.
func runs(text string) (out []string) {
	for _, part := range strings.Split(text, "run-")[1:] {
		number, _, _ := strings.Cut(part, `\`)
		out = append(out, number)
	}
	return out
}

// A list is put together from pages, in the order asked for, and says where the
// ones beside it begin.
func TestAuditListPages(t *testing.T) {
	s := newShelf(t, 10)
	for _, c := range []struct {
		line, want, said string
	}{
		{"--limit 5", "7 5 6 8 9", "older: --before 5   newer: --after 10\n"},
		{"--limit 5 --order log", "5 6 7 8 9", "older: --before 5   newer: --after 10\n"},
		{"--limit 5 --order log --reverse", "9 8 7 6 5", "older: --before 5   newer: --after 10\n"},
		{"--limit 5 --before 5", "0 1 2 3 4", "newer: --after 5\n"},
		{"--limit 4 --after 5 --order log", "5 6 7 8", "older: --before 5   newer: --after 9\n"},
		{"--limit 4 --after 9", "9", "older: --before 9   newer: --after 10\n"},
		{"--after 10", "", "older: --before 10   newer: --after 10\n"},
	} {
		out, said, code := s.on(t, append([]string{"audit", "ls"}, strings.Fields(c.line)...)...)
		if got := strings.Join(runs(out), " "); code != 0 || got != c.want || said != c.said {
			t.Errorf("%s: exit %d, %s, said %q; want %s, %q", c.line, code, got, said, c.want, c.said)
		}
		if strings.Contains(out, "\x1b") {
			t.Errorf("%s: a terminal is driven by %q", c.line, out)
		}
	}
	if _, _, code := s.on(t, "audit", "ls", "--login", "root", "--label", "a=b", "--label", "c", "--address", "10.0.0.0/8", "--text", "x y", "--failed"); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if f := s.filter; f.GetLogin() != "root" || !slices.Equal(f.GetLabels(), []string{"a=b", "c"}) || f.GetAddress() != "10.0.0.0/8" || f.GetText() != "x y" || f.Success == nil || f.GetSuccess() {
		t.Errorf("filter = %v", f)
	}
	for line, want := range map[string]string{
		"--success --failed":   "--success and --failed exclude each other",
		"--before 1 --after 1": "--before and --after exclude each other",
		"--order size":         `--order: "size": want time or log`,
		"--limit 0":            "--limit: 0: want at least 1",
	} {
		if _, said, code := s.on(t, append([]string{"audit", "ls"}, strings.Fields(line)...)...); code != 2 || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, %q; want %q", line, code, said, want)
		}
	}
}

// An export goes on where the last one ended, in the same file, with one head.
func TestAuditExport(t *testing.T) {
	s := newShelf(t, 8)
	path := filepath.Join(t.TempDir(), "events.csv")
	if _, said, code := s.on(t, "audit", "export", "--format", "csv", "-o", path); code != 0 || said != "newer: --after 8\n" {
		t.Fatalf("exit %d, %q", code, said)
	}
	more := newShelf(t, 11)
	if out, said, code := more.on(t, "audit", "export", "--format", "csv", "-o", path, "--after", "8"); code != 0 || said != "newer: --after 11\n" || out != "" {
		t.Fatalf("exit %d, %q, %q", code, said, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 12 || strings.Count(string(text), "event,code,time,") != 1 {
		t.Errorf("%d lines:\n%s", n, text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	out, _, _ := s.on(t, "audit", "export")
	if want := string(bytes.Join(s.events, []byte("\n"))) + "\n"; out != want {
		t.Errorf("jsonl is\n%s\nwant\n%s", out, want)
	}
	if _, said, code := s.on(t, "audit", "export", "--format", "xml"); code != 2 || !strings.Contains(said, "want jsonl, csv, syslog or otlp") {
		t.Errorf("exit %d, %q", code, said)
	}
}
