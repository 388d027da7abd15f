//go:build unix

package events

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/tessera"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what))
	}
	goleak.VerifyTestMain(m)
}

// The key pair of test logs: note.GenerateKey with a fixed source.
type testKey struct {
	signer   note.Signer
	verifier string
}

func newTestKey(t testing.TB, origin string) testKey {
	t.Helper()
	secret, public, err := NewAuditKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return testKey{signer, public}
}

func openTestLog(t testing.TB, dir string, key testKey) *Log {
	t.Helper()
	l, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: key.signer, VerifierKey: key.verifier})
	if err != nil {
		t.Fatalf("OpenLog: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// numbered returns n events of alice, whose commands are "0" to n-1 from the
// given first one.
func numbered(t testing.TB, first, n int) [][]byte {
	t.Helper()
	out := make([][]byte, n)
	for i := range out {
		out[i] = encode(t, Event{
			Name: Exec, User: "alice", Success: true, Time: testTime.Add(time.Duration(first+i) * time.Second),
			Fields: map[string]any{"command": fmt.Sprint(first + i)},
		})
	}
	return out
}

func mustAppend(t testing.TB, l *Log, events ...[]byte) {
	t.Helper()
	for chunk := range slices.Chunk(events, maxAppend) {
		if err := l.Append(t.Context(), chunk); err != nil {
			t.Fatalf("Append: %v", err)
		}
	}
}

// contents returns all entries of the log, oldest first.
func contents(t testing.TB, l *Log, f Filter) [][]byte {
	t.Helper()
	var all [][]byte
	before := ""
	for {
		page, err := l.Query(t.Context(), f, 0, before)
		if err != nil {
			t.Fatalf("Query: %v", err)
		}
		all = append(page.Events, all...)
		if page.Before == "" {
			return all
		}
		before = page.Before
	}
}

func checkSame(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d events, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("%s: event %d is\n%s\nwant\n%s", what, i, got[i], want[i])
			return
		}
	}
}

func mustVerify(t testing.TB, l *Log, want int) {
	t.Helper()
	r, err := l.Verify(t.Context())
	if err != nil || r.Size != uint64(want) {
		t.Errorf("Verify = %+v, %v; want %d entries", r, err, want)
	}
}

func TestLogKeepsWhatIsAppended(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 257, 5000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir, key := t.TempDir(), newTestKey(t, "example.com/audit")
			events := numbered(t, 0, n)
			l := openTestLog(t, dir, key)
			mustAppend(t, l, events[:n/2]...)
			mustAppend(t, l, events[n/2:]...)
			checkSame(t, "query", contents(t, l, Filter{}), events)
			mustVerify(t, l, n)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openTestLog(t, dir, key)
			checkSame(t, "query after reopening", contents(t, l, Filter{}), events)
			mustAppend(t, l, events...)
			mustVerify(t, l, n)
		})
	}
}

func TestLogTakesEachUIDOnce(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 300)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := slices.Concat(events[i*20:], events[:i*20], events[5:9])
			for chunk := range slices.Chunk(mine, 37) {
				if err := l.Append(t.Context(), chunk); err != nil {
					t.Errorf("Append: %v", err)
				}
			}
		})
	}
	wg.Wait()
	uids := map[string]int{}
	for _, data := range contents(t, l, Filter{}) {
		e, err := ParseEvent(data)
		if err != nil {
			t.Fatal(err)
		}
		uids[e.UID]++
	}
	for uid, n := range uids {
		if n != 1 {
			t.Errorf("uid %s is in the log %d times", uid, n)
		}
	}
	mustVerify(t, l, len(events))
	if len(uids) != len(events) {
		t.Errorf("%d uids, want %d", len(uids), len(events))
	}
	// The first of two with one uid stays.
	other := encode(t, Event{Name: Exec, UID: uuid.NewString(), Fields: map[string]any{"command": "first"}})
	mustAppend(t, l, other, bytes.Replace(other, []byte("first"), []byte("other"), 1))
	mustVerify(t, l, len(events)+1)
}

func TestLogRefusesMalformedEvents(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	good := numbered(t, 0, 2)
	for name, bad := range map[string][]byte{"empty": nil, "space": append([]byte(" "), good[0]...), "text": []byte("hello")} {
		if err := l.Append(t.Context(), [][]byte{good[0], bad, good[1]}); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: Append = %v, want bad input", name, err)
		}
	}
	if err := l.Append(t.Context(), slices.Repeat(good[:1], maxAppend+1)); !fault.Is(err, fault.BadInput) {
		t.Errorf("Append of too many = %v, want bad input", err)
	}
	if got := l.Size(); got != 0 {
		t.Errorf("the log holds %d entries, want none", got)
	}
}

func TestLogHasOneOpener(t *testing.T) {
	dir, key := t.TempDir(), newTestKey(t, "example.com/audit")
	l := openTestLog(t, dir, key)
	if _, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: key.signer, VerifierKey: key.verifier}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second OpenLog = %v, want a conflict", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), numbered(t, 0, 1)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Append after Close = %v, want unavailable", err)
	}
	openTestLog(t, dir, key)
	other := newTestKey(t, "example.com/audit")
	if _, err := OpenLog(t.Context(), LogConfig{Dir: t.TempDir(), Signer: other.signer, VerifierKey: key.verifier}); !fault.Is(err, fault.BadInput) {
		t.Errorf("OpenLog with another's verifier = %v, want bad input", err)
	}
}

func TestIndexIsRebuilt(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, path string){
		"deleted": func(t *testing.T, path string) {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(path + suffix); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
		},
		"garbage": func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("garbage", 1000))) },
		"empty":   func(t *testing.T, path string) { write(t, path, nil) },
		"of another version": func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", path)
			if err == nil {
				_, err = db.ExecContext(t.Context(), "DROP TABLE texts; PRAGMA user_version = 1")
			}
			if err = errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, key := t.TempDir(), newTestKey(t, "example.com/audit")
			events := numbered(t, 0, 700)
			l := openTestLog(t, dir, key)
			mustAppend(t, l, events...)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			harm(t, filepath.Join(dir, indexName))
			l = openTestLog(t, dir, key)
			checkSame(t, "query", contents(t, l, Filter{User: "alice"}), events)
			checkSame(t, "query for words", contents(t, l, Filter{User: "alice", Words: wordsOf(t, "EXEC alice")}), events)
			mustAppend(t, l, events...)
			mustVerify(t, l, len(events))
		})
	}
}

// A crash between the tree and the index: the index is behind, and duplicates
// are still found.
func TestIndexIsCaughtUp(t *testing.T) {
	dir, key := t.TempDir(), newTestKey(t, "example.com/audit")
	events := numbered(t, 0, 600)
	l := openTestLog(t, dir, key)
	mustAppend(t, l, events[:300]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(dir, indexName))
	if err != nil {
		t.Fatal(err)
	}
	l = openTestLog(t, dir, key)
	mustAppend(t, l, events[300:]...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, indexName), old)
	l = openTestLog(t, dir, key)
	mustAppend(t, l, events...)
	checkSame(t, "query", contents(t, l, Filter{}), events)
	// 300 stands in a block that two processes filled.
	checkSame(t, "query for words", contents(t, l, Filter{Until: testTime.Add(301 * time.Second), Since: testTime.Add(299 * time.Second), Words: wordsOf(t, "EXEC alice")}), events[299:301])
	mustVerify(t, l, len(events))
}

// An index that fails does not lose events, and what it missed is not doubled.
func TestLogOutlivesItsIndex(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 400)
	mustAppend(t, l, events[:100]...)
	ctx, cancel := context.WithCancel(t.Context())
	l.groups.acquire()
	a, err := l.index.begin(ctx)
	if err == nil {
		_, err = l.grow(t.Context(), []entry{{data: events[100]}})
	}
	cancel()
	l.stale = true
	_ = a.Rollback()
	l.note(t.Context(), nil)
	l.groups.release()
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "query beyond the index", contents(t, l, Filter{User: "alice"}), events[:101])
	mustAppend(t, l, events...)
	checkSame(t, "query", contents(t, l, Filter{}), events)
	mustVerify(t, l, len(events))
}

// Tessera may swap the parts of a batch when the process stalls in between: the
// events are in the log all the same, and the index follows the tree.
func TestLogFollowsTheTreesOrder(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 20)
	mustAppend(t, l, events[:5]...)
	tree, calls := l.tree, 0
	l.tree = &tessera.Appender{Add: func(ctx context.Context, _ *tessera.Entry) tessera.IndexFuture {
		calls++
		future := tree.Add(ctx, tessera.NewEntry(events[7-calls])) // 6, then 5
		return func() (tessera.Index, error) {
			at, err := future()
			at.Index = 11 - at.Index // 6 for 5, and 5 for 6, as they went in
			return at, err
		}
	}}
	mustAppend(t, l, events[5:7]...)
	l.tree = tree
	checkSame(t, "query before the index has it", contents(t, l, Filter{User: "alice"}), slices.Concat(events[:5], [][]byte{events[6], events[5]}))
	mustAppend(t, l, events...)
	checkSame(t, "query", contents(t, l, Filter{User: "alice"}), slices.Concat(events[:5], [][]byte{events[6], events[5]}, events[7:]))
	mustVerify(t, l, len(events))
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// scene is a log with events of several people and nodes, in which time does not
// always go forward.
func scene(t testing.TB, n int) (all []Event, lines [][]byte) {
	t.Helper()
	users := []names.UserName{"alice", "bob", "carol"}
	kinds := []Name{SessionStart, SessionEnd, Exec, UserLogin, NodeJoin, TunnelUp}
	for i := range n {
		e := Event{
			Name: kinds[i%len(kinds)], User: users[i%len(users)], Success: true,
			Time:     testTime.Add(time.Duration(i-i%50*60) * time.Second),
			ServerID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i%7), ServerHostname: fmt.Sprintf("web-%d", i%7),
			Login: names.Login([]string{"root", "deploy", ""}[i%3]), AddrRemote: fmt.Sprintf("10.%d.%d.7:%d", i%3, i%11, 50000+i%4),
			Fields: map[string]any{},
		}
		labels := map[string]string{"env": []string{"prod", "dev"}[i/6%2], "rack": fmt.Sprint(i % 13)}
		switch i % 100 {
		case 1:
			e.AddrRemote = "[2001:db8:0:1::7]:22"
		case 2:
			e.AddrRemote = ""
		case 3:
			e.Success, e.Error = false, "Zertifikat ÜBERFÄLLIG, \"K\u212a\" \\ back"
		}
		switch e.Name {
		case SessionStart, SessionEnd:
			e.SID = names.SessionID(uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i/6)).String())
			e.Fields["kind"], e.Fields["node_labels"] = "shell", labels
		case NodeJoin:
			e.Fields["labels"] = map[string]string{"env": "joined"}
			e.Fields["name"] = fmt.Sprintf("db-%d", i%5)
		case TunnelUp:
			e.Fields["node_name"] = fmt.Sprintf("db-%d", i%5)
		case Exec:
			e.Fields["command"], e.AddrRemote = `","user":"bob","sid":"x,"addr.remote":"10.9.9.9:1`, "" // F31: looks like another's
			e.Fields["exit_code"] = 4711 + i
		}
		line := encode(t, e)
		parsed, err := ParseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		all, lines = append(all, parsed), append(lines, line)
	}
	return all, lines
}

func TestQueryFilters(t *testing.T) {
	all, lines := scene(t, 2000)
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	mustAppend(t, l, lines...)
	at := func(i int) time.Time { return testTime.Add(time.Duration(i) * time.Second) }
	for name, f := range map[string]Filter{
		"all":               {},
		"user":              {User: "bob"},
		"nobody":            {User: "mallory"},
		"event":             {Event: "session.start"},
		"family":            {Event: "session.*"},
		"node name":         {Node: "web-3"},
		"node id":           {Node: "00000000-0000-4000-8000-000000000003"},
		"node meant":        {Node: "db-1"},
		"user as a node":    {Node: "alice"},
		"session":           {Session: all[600].SID},
		"no session":        {Session: names.NewSessionID()},
		"since":             {Since: at(1500)},
		"until":             {Until: at(-100)},
		"window":            {Since: at(500), Until: at(600)},
		"future":            {Since: at(1e6)},
		"past":              {Until: at(-1e6)},
		"login":             {Login: "deploy"},
		"failure":           {Outcome: Failure},
		"success":           {Outcome: Success, User: "bob"},
		"either":            {Outcome: Either, User: "bob"},
		"label":             {Labels: labelsOf(t, "env=prod", "rack=4")},
		"label of a key":    {Labels: labelsOf(t, "rack")},
		"label of a join":   {Labels: labelsOf(t, "env=joined")},
		"label of none":     {Labels: labelsOf(t, "env=pro")},
		"address":           {Address: addressOf(t, "10.1.4.7")},
		"address and port":  {Address: addressOf(t, "10.1.4.7:50002")},
		"address as mapped": {Address: addressOf(t, "::ffff:10.1.4.7")},
		"address of none":   {Address: addressOf(t, "10.9.9.9")},
		"network":           {Address: addressOf(t, "10.1.4.0/24")},
		"narrow network":    {Address: addressOf(t, "10.1.4.4/30")},
		"wide network":      {Address: addressOf(t, "10.0.0.0/11")},
		"every address":     {Address: addressOf(t, "0.0.0.0/0")},
		"IPv6":              {Address: addressOf(t, "2001:db8:0:1::7")},
		"IPv6 network":      {Address: addressOf(t, "2001:db8::/32")},
		"words":             {Words: wordsOf(t, "ALICE web-3")},
		"words, no match":   {Words: wordsOf(t, "alice mallory")},
		"word beyond ASCII": {Words: wordsOf(t, "überfällig")},
		"word of a sign":    {Words: wordsOf(t, "K\u212a")},
		"word with a quote": {Words: wordsOf(t, `"user":"bob`)},
		"backslash":         {Words: wordsOf(t, `\`)},
		"short word":        {Words: wordsOf(t, "b")},
		"number":            {Words: wordsOf(t, "4719")},
		"no field's name":   {Words: wordsOf(t, "exit_code")},
		"user and event":    {User: "alice", Event: "session.start"},
		"never together":    {User: "alice", Event: "session.end"},
		"everything at one": {User: all[606].User, Event: "session.*", Session: all[606].SID, Node: all[606].ServerHostname, Since: all[606].Time, Until: all[606].Time.Add(1)},
	} {
		var want [][]byte
		for i, e := range all {
			if f.matches(e) {
				want = append(want, lines[i])
			}
		}
		t.Run(name, func(t *testing.T) {
			checkSame(t, "Query", contents(t, l, f), want)
			checkSame(t, "Read", readAll(t, l, f), want)
			none := []string{"nobody", "no session", "user as a node", "future", "past", "never together", "label of none", "address of none", "words, no match", "no field's name"}
			if (len(want) == 0) != slices.Contains(none, name) {
				t.Errorf("%d events match", len(want))
			}
		})
	}
}

func labelsOf(t testing.TB, list ...string) []Label {
	t.Helper()
	labels, err := ParseLabels(list)
	if err != nil {
		t.Fatal(err)
	}
	return labels
}

func addressOf(t testing.TB, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wordsOf(t testing.TB, s string) Words {
	t.Helper()
	w, err := ParseWords(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// readAll returns all entries of the log that f selects, by [Log.Read].
func readAll(t testing.TB, l *Log, f Filter) [][]byte {
	t.Helper()
	var all [][]byte
	for page := (Page{More: true}); page.More; {
		var err error
		if page, err = l.Read(t.Context(), f, 100, page.After); err != nil {
			t.Fatalf("Read: %v", err)
		}
		all = append(all, page.Events...)
	}
	return all
}

// checkEntries holds the numbers of a page's events against what they are when
// nothing between them was left out.
func checkEntries(t *testing.T, page Page, first uint64) {
	t.Helper()
	if len(page.Entries) != len(page.Events) {
		t.Fatalf("%d numbers of %d events", len(page.Entries), len(page.Events))
	}
	for i, at := range page.Entries {
		if at != first+uint64(i) {
			t.Errorf("event %d is entry %d, want %d", i, at, first+uint64(i))
			return
		}
	}
}

func TestQueryPages(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 1000)
	mustAppend(t, l, events...)
	page, err := l.Query(t.Context(), Filter{}, 300, "")
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "first page", page.Events, events[700:])
	checkEntries(t, page, 700)
	if page.After != "1000" {
		t.Errorf("after %q, want the end of the log", page.After)
	}
	newest := page.After
	numbers := numbered(t, 1000, 50)
	mustAppend(t, l, numbers...) // what comes meanwhile moves no page
	for end := 700; end > 0; end = max(end-300, 0) {
		if page, err = l.Query(t.Context(), Filter{}, 300, page.Before); err != nil {
			t.Fatal(err)
		}
		checkSame(t, "page", page.Events, events[max(end-300, 0):end])
	}
	if page.Before != "" {
		t.Errorf("before = %q after the last page, want none", page.Before)
	}
	if page, err = l.Query(t.Context(), Filter{User: "alice", Until: testTime.Add(10 * time.Second)}, 10, ""); err != nil || page.Before != "" {
		t.Errorf("before = %q, %v though no older event matches", page.Before, err)
	}
	checkSame(t, "exact page", page.Events, events[:10])
	if page, err = l.Read(t.Context(), Filter{}, 20, newest); err != nil || !page.More || page.Before != "1000" {
		t.Errorf("Read: more %v, before %q, %v", page.More, page.Before, err)
	}
	checkSame(t, "newer", page.Events, numbers[:20])
	checkEntries(t, page, 1000)
	if page, err = l.Read(t.Context(), Filter{}, 30, page.After); err != nil || page.More || page.After != "1050" {
		t.Errorf("Read to the end: more %v, after %q, %v", page.More, page.After, err)
	}
	checkSame(t, "newest", page.Events, numbers[20:])
	for _, before := range []string{"x", "-1", "1051", "1e3", "18446744073709551616"} {
		if _, err := l.Query(t.Context(), Filter{}, 0, before); !fault.Is(err, fault.BadInput) {
			t.Errorf("before %q: %v, want bad input", before, err)
		}
		if _, err := l.Read(t.Context(), Filter{}, 0, before); !fault.Is(err, fault.BadInput) {
			t.Errorf("after %q: %v, want bad input", before, err)
		}
	}
	for _, limit := range []int{-1, maxLimit + 1} {
		if _, err := l.Query(t.Context(), Filter{}, limit, ""); !fault.Is(err, fault.BadInput) {
			t.Errorf("limit %d: %v, want bad input", limit, err)
		}
	}
	for _, f := range []Filter{{Event: "session.strat"}, {Event: "session"}, {Event: "*"}, {Event: ".*"}, {Since: testTime, Until: testTime.Add(-1)}} {
		if _, err := l.Query(t.Context(), f, 0, ""); !fault.Is(err, fault.BadInput) {
			t.Errorf("filter %+v: %v, want bad input", f, err)
		}
	}
}

// A page of long events stays small enough for one message.
func TestPagesAreBounded(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	var events [][]byte
	for range 100 {
		events = append(events, encode(t, Event{Name: Exec, Fields: map[string]any{"command": strings.Repeat("\x01", maxCommand)}}))
	}
	mustAppend(t, l, events...)
	page, err := l.Query(t.Context(), Filter{}, 0, "")
	size := 0
	for _, e := range page.Events {
		size += len(e)
	}
	if err != nil || page.Before == "" || size > pageBytes || len(page.Events) == 0 {
		t.Errorf("a page of %d events and %d bytes, before %q, %v", len(page.Events), size, page.Before, err)
	}
	checkSame(t, "all pages", contents(t, l, Filter{}), events)
	seen := 0
	for after, more := "", true; more; {
		page, err := l.Read(t.Context(), Filter{}, 0, after)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, e := range page.Events {
			size += len(e)
		}
		if size > pageBytes {
			t.Errorf("a page of %d bytes", size)
		}
		seen += len(page.Events)
		after, more = page.After, page.More
	}
	if seen != 100 {
		t.Errorf("read %d events, want 100", seen)
	}
}

// tail calls fn with the newest backlog events and then with those that come, as
// who follows the log does, until ctx ends.
func tail(ctx context.Context, l *Log, q tailed, fn func(events [][]byte) error) error {
	page, err := l.Query(ctx, q.f, q.backlog, "")
	for ; err == nil; page, err = l.Read(ctx, q.f, 0, page.After) {
		if len(page.Events) > 0 {
			if err := fn(page.Events); err != nil {
				return err
			}
		}
		if err := l.Grown(ctx, page.After); err != nil {
			return err
		}
	}
	return err
}

// tailed is what of a log is followed.
type tailed struct {
	f       Filter
	backlog int
}

// F03: a tail misses nothing and doubles nothing while others append.
func TestTail(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 1500)
	mustAppend(t, l, events[:500]...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	follow := func(f Filter, backlog int, want [][]byte) {
		wg.Go(func() {
			var got [][]byte
			err := tail(ctx, l, tailed{f, backlog}, func(batch [][]byte) error {
				got = append(got, batch...)
				if len(got) >= len(want) {
					return context.Canceled
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("tail = %v", err)
			}
			checkSame(t, fmt.Sprintf("backlog %d", backlog), got, want)
		})
	}
	half := Filter{Since: testTime.Add(250 * time.Second)}
	follow(Filter{}, 500, events)
	follow(Filter{}, 10, events[490:])
	follow(half, 1000, events[250:])
	follow(half, 7, events[493:])
	follow(Filter{User: "alice", Event: "exec"}, 1, events[499:])
	for i := 500; i < len(events); i += 10 {
		mustAppend(t, l, events[i:i+10]...)
	}
	wg.Wait()
	err := tail(ctx, l, tailed{Filter{}, 1}, func([][]byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("tail = %v after the end of its context", err)
	}
}

func TestTailEndsWhenTheLogCloses(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	mustAppend(t, l, numbered(t, 0, 1)...)
	began, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- tail(t.Context(), l, tailed{Filter{}, 1}, func([][]byte) error { close(began); return nil })
	}()
	<-began
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Errorf("tail = %v, want unavailable", err)
	}
	if _, err := l.Query(t.Context(), Filter{}, 0, ""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Query = %v, want unavailable", err)
	}
}

func TestLogRunEndsWithItsContext(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	mustAppend(t, l, numbered(t, 0, 10)...)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}
