//go:build unix

package events

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/accessd/accessd/lib/names"
)

// month is a log of 30 days: entry bundles and the index, without the hashes
// that no query reads, so that one of any size is made in a bearable time.
type month struct {
	*Log
	events  int
	made    time.Duration
	started time.Time
}

// newMonth makes a log with that many events of 200 people on 500 nodes.
func newMonth(t testing.TB, n int) month {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	x, err := openIndex(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.db.Close() })
	m, schema := month{events: n, started: testTime}, newSchema()
	began := time.Now()
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < n; {
		a, err := x.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 64 { // bundles in a transaction
			var bundle []byte
			block := uint64(i / blockSize)
			for range min(blockSize, n-i) {
				data, err := schema.encode(m.event(random, i), MaxEvent)
				if err != nil {
					t.Fatal(err)
				}
				e, err := parseEntry(data)
				if err != nil {
					t.Fatal(err)
				}
				if fresh, err := a.add(t.Context(), e); err != nil || !fresh {
					t.Fatalf("add: %v, fresh %v", err, fresh)
				}
				bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(data))), data...)
				i++
			}
			path := filepath.Join(dir, layout.EntriesPath(block, layout.PartialTileSize(0, block, uint64(n))))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, path, bundle)
			if i == n {
				break
			}
		}
		if err := a.commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m.made = time.Since(began)
	m.Log = &Log{trees: []period{{tiles: tiles{root: root}}}, index: x, size: uint64(n), indexed: x.size, grown: make(chan struct{})}
	return m
}

// at returns the time of an entry.
func (m month) at(i int) time.Time {
	return m.started.Add(time.Duration(float64(i) / float64(m.events) * float64(30*24*time.Hour)))
}

// event is what happens as the i-th thing. Members ship up to a minute late.
func (m month) event(random *rand.Rand, i int) Event {
	node := random.IntN(500)
	e := Event{
		UID: uuid.Must(uuid.NewRandomFromReader(randomReader{random})).String(), Time: m.at(i).Add(-time.Duration(random.IntN(60)) * time.Second),
		ClusterName: "example", User: names.UserName(fmt.Sprintf("user-%03d", random.IntN(200))), Login: names.Login([]string{"root", "deploy", "www"}[i%3]),
		SID: names.SessionID(uuid.NewSHA1(uuid.Nil, strconv.AppendInt(nil, int64(i/8), 10)).String()), Proto: "ssh", Success: i%50 != 0,
		ServerID: fmt.Sprintf("b1946ac9-2492-4d23-94c6-%012x", node), ServerHostname: fmt.Sprintf("web-%03d", node),
		AddrRemote: fmt.Sprintf("10.%d.%d.%d:%d", random.IntN(4), random.IntN(250), random.IntN(250), 30000+random.IntN(30000)),
		Fields: map[string]any{
			"node_labels": map[string]string{"env": []string{"prod", "dev", "test"}[node%3], "team": fmt.Sprintf("team-%d", node%20)},
		},
	}
	switch i % 4 {
	case 0:
		e.Name, e.Fields["kind"], e.Fields["term"], e.Fields["rule"] = SessionStart, "shell", "xterm-256color", "access.allow[0]"
	case 1:
		e.Name, e.Fields["command"] = Exec, fmt.Sprintf("rsync -a --delete /srv/data/%d/ backup-%d:/var/backup/%x", random.IntN(1000), random.IntN(50), random.Uint64())
		delete(e.Fields, "node_labels")
	case 2:
		e.Name, e.Fields["rule"], e.Fields["action"] = AccessDecision, "access.allow[0]", "session:shell"
	case 3:
		e.Name, e.Fields["exit_code"], e.Fields["kind"] = SessionEnd, random.IntN(3), "shell"
	}
	return e
}

// randomReader reads what a seeded source gives.
type randomReader struct{ *rand.Rand }

func (r randomReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return len(p), nil
}

// questions are what an auditor asks of a day in the middle of the month, one for
// each filter, and for each one whose answer is that there is nothing.
func (m month) questions(t testing.TB) map[string]Filter {
	t.Helper()
	day := func(f Filter) Filter {
		f.Since, f.Until = m.at(m.events/2), m.at(m.events/2).Add(24*time.Hour)
		return f
	}
	inside := names.SessionID(uuid.NewSHA1(uuid.Nil, strconv.AppendInt(nil, int64(m.events*51/100/8), 10)).String())
	return map[string]Filter{
		"all":              day(Filter{}),
		"user":             day(Filter{User: "user-007"}),
		"login":            day(Filter{Login: "www"}),
		"node":             day(Filter{Node: "web-123"}),
		"event":            day(Filter{Event: "exec"}),
		"family":           day(Filter{Event: "session.*"}),
		"session":          day(Filter{Session: inside}),
		"label":            day(Filter{Labels: labelsOf(t, "env=prod", "team=team-3")}),
		"address":          day(Filter{Address: addressOf(t, "10.1.2.3")}),
		"network":          day(Filter{Address: addressOf(t, "10.1.2.0/24")}),
		"wide network":     day(Filter{Address: addressOf(t, "10.0.0.0/8")}),
		"failed":           day(Filter{Outcome: Failure}),
		"words":            day(Filter{Words: wordsOf(t, "RSYNC backup-17")}),
		"rare word":        day(Filter{Words: wordsOf(t, "user-007 team-19 web-499")}),
		"none: user":       day(Filter{User: "mallory"}),
		"none: login":      day(Filter{Login: "mallory"}),
		"none: node":       day(Filter{Node: "web-999"}),
		"none: event":      day(Filter{Event: "token.delete"}),
		"none: session":    day(Filter{Session: names.NewSessionID()}),
		"none: label":      day(Filter{Labels: labelsOf(t, "env=staging")}),
		"none: address":    day(Filter{Address: addressOf(t, "192.0.2.1")}),
		"none: network":    day(Filter{Address: addressOf(t, "192.0.0.0/8")}),
		"none: words":      day(Filter{Words: wordsOf(t, "mallory")}),
		"none: common":     day(Filter{Words: wordsOf(t, "rsync exit session xterm")}),
		"none: short word": day(Filter{Words: wordsOf(t, "~~")}),
		"none: together":   day(Filter{Login: "root", Event: "exec", Outcome: Failure, Node: "web-001", User: "user-001", Words: wordsOf(t, "user-002")}),
		"whole log":        {User: "user-007", Words: wordsOf(t, "mallory")},
	}
}

// Within a day of ten million events every answer takes less than a second.
// ACCESSD_BENCH_EVENTS=10000000 makes that log, which takes minutes and 5 GB;
// without it there are 200,000.
func BenchmarkQueryDay(b *testing.B) {
	n := 200_000
	if s := os.Getenv("ACCESSD_BENCH_EVENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	m := newMonth(b, n)
	var size int64
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(filepath.Join(m.trees[0].tiles.root.Name(), indexName+suffix)); err == nil {
			size += info.Size()
		}
	}
	b.Logf("%d events made in %v; the index has %d bytes an event", n, m.made.Round(time.Second), size/int64(n))
	for name, f := range m.questions(b) {
		b.Run(name, func(b *testing.B) {
			found := 0
			for b.Loop() {
				page, err := m.Query(b.Context(), f, 1000, "")
				if err != nil {
					b.Fatal(err)
				}
				found = len(page.Events)
			}
			b.ReportMetric(float64(found), "found")
		})
	}
}

// What a query costs is the bundles it reads. A day's are found by time, and of
// these the ones by terms and text that may hold an answer.
func TestQueryReadsLittle(t *testing.T) {
	m := newMonth(t, 30_000)
	days := m.indexed / blockSize / 30
	for name, most := range map[string]uint64{
		"all": days + 2, "user": days + 2, "session": 2, "address": 1, "network": days, "none: user": 1, "none: login": 1, "none: node": 1, "none: event": 1,
		"none: session": 1, "none: label": 1, "none: address": 1, "none: network": days + 2, "none: words": 1, "whole log": 2,
	} {
		sel := newSelector(m.questions(t)[name])
		s, err := m.index.window(t.Context(), sel.Filter, span{0, m.indexed / blockSize})
		if err != nil {
			t.Fatal(err)
		}
		blocks, _, err := m.index.find(t.Context(), walk{sel, s, true})
		if err != nil || uint64(len(blocks)) > most {
			t.Errorf("%s: %d blocks, %v; want at most %d", name, len(blocks), err, most)
		}
	}
}
