//go:build unix

package events

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"

	"github.com/accessd/accessd/lib/fault"
)

// got collects the uids that a receiver was given.
type got struct {
	mu   sync.Mutex
	uids []string
	grew chan struct{}
}

func newGot() *got { return &got{grew: make(chan struct{}, 1)} }

func (g *got) add(uids ...string) {
	g.mu.Lock()
	g.uids = append(g.uids, uids...)
	g.mu.Unlock()
	select {
	case g.grew <- struct{}{}:
	default:
	}
}

// await waits until every one of events came, and checks that the first of each
// came in their order.
func (g *got) await(t testing.TB, events [][]byte) {
	t.Helper()
	var want []string
	for _, data := range events {
		want = append(want, uidOf(t, data))
	}
	late := time.After(30 * time.Second)
	for {
		g.mu.Lock()
		seen := map[string]bool{}
		var first []string
		for _, uid := range g.uids {
			if !seen[uid] {
				seen[uid], first = true, append(first, uid)
			}
		}
		g.mu.Unlock()
		if slices.Equal(first, want) {
			return
		}
		if len(first) >= len(want) {
			t.Fatalf("%d events came in another order, or others than the %d that were to", len(first), len(want))
		}
		select {
		case <-g.grew:
		case <-late:
			t.Fatalf("%d events came, want %d", len(first), len(want))
		}
	}
}

func uidOf(t testing.TB, data []byte) string {
	t.Helper()
	e, err := ParseEvent(data)
	if err != nil {
		t.Error(err)
	}
	return e.UID
}

// takeLines is a webhook.
func (g *got) takeLines(t testing.TB, r *http.Request) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("request of %q: %v", r.Header, err)
	}
	var uids []string
	for line := range bytes.Lines(body) {
		uids = append(uids, uidOf(t, bytes.TrimSuffix(line, []byte("\n"))))
	}
	g.add(uids...)
}

// runSinks delivers until the test ends or stop is called.
func runSinks(t testing.TB, l *Log, dir string, list ...SinkConfig) (r *prometheus.Registry, stop func()) {
	t.Helper()
	r = prometheus.NewRegistry()
	s, err := OpenSinks(SinksConfig{Log: l, Dir: dir, Sinks: list, Timeout: 500 * time.Millisecond, Pause: 5 * time.Millisecond, Registerer: r})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

// frames reads octet-counted messages.
func frames(t testing.TB, r io.Reader) (out []string) {
	t.Helper()
	b := bufio.NewReader(r)
	for {
		size, err := b.ReadString(' ')
		if errors.Is(err, io.EOF) && size == "" {
			return out
		}
		n, numErr := strconv.Atoi(strings.TrimSuffix(size, " "))
		if err != nil || numErr != nil {
			t.Errorf("frame %q: %v, %v", size, err, numErr)
			return out
		}
		message := make([]byte, n)
		if _, err := io.ReadFull(b, message); err != nil {
			t.Errorf("frame of %d: %v", n, err)
			return out
		}
		out = append(out, string(message))
	}
}

// syslogd takes messages on ln until it closes.
func syslogd(t testing.TB, ln net.Listener, g *got) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			for _, m := range frames(t, conn) {
				_, rest, _ := strings.Cut(m, ` uid="`)
				uid, _, _ := strings.Cut(rest, `"`)
				g.add(uid)
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// Every kind of receiver gets what was there and what comes, in the log's order,
// and goes on there after a restart.
func TestSinksDeliver(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, filepath.Join(dir, "log"), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 1500)
	events[1400] = encode(t, Event{Name: Exec, User: "alice", Fields: map[string]any{"command": "echo Overdue"}})
	mustAppend(t, l, events[:1200]...)
	hook, otlp, plain, sealed, some := newGot(), newGot(), newGot(), newGot(), newGot()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hook":
			hook.takeLines(t, r)
		case "/some":
			some.takeLines(t, r)
		case "/v1/logs":
			var m collectorpb.ExportLogsServiceRequest
			body, err := io.ReadAll(r.Body)
			if err = errors.Join(err, proto.Unmarshal(body, &m)); err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
				t.Errorf("OTLP of %q: %v", r.Header, err)
			}
			for _, res := range m.GetResourceLogs() {
				for _, record := range res.GetScopeLogs()[0].GetLogRecords() {
					for _, a := range record.GetAttributes() {
						if a.GetKey() == "uid" {
							otlp.add(a.GetValue().GetStringValue())
						}
					}
				}
			}
		default:
			t.Errorf("request for %s", r.URL)
		}
	}))
	t.Cleanup(server.Close)
	tcp := listen(t)
	syslogd(t, tcp, plain)
	server2 := httptest.NewUnstartedServer(nil) // for its certificate
	server2.StartTLS()
	t.Cleanup(server2.Close)
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server2.Certificate().Raw}))
	over := listen(t)
	syslogd(t, tls.NewListener(over, &tls.Config{Certificates: server2.TLS.Certificates, MinVersion: tls.VersionTLS12}), sealed)
	file := filepath.Join(dir, "events.jsonl")
	list := []SinkConfig{
		{Name: "hook", Type: "webhook", URL: server.URL + "/hook"},
		{Name: "some", Type: "webhook", URL: server.URL + "/some", Filter: FilterText{Text: "overdue"}},
		{Name: "otlp", Type: "otlp", URL: server.URL},
		{Name: "syslog", Type: "syslog", URL: "tcp://" + tcp.Addr().String()},
		{Name: "tls", Type: "syslog", URL: "tls://" + over.Addr().String() + "?ca=" + ca},
		{Name: "file", Type: "file", URL: "file://" + file},
	}
	check := func(end int) {
		t.Helper()
		for _, g := range []*got{hook, otlp, plain, sealed} {
			g.await(t, events[:end])
		}
		for {
			if data, err := os.ReadFile(file); err == nil && bytes.Count(data, []byte("\n")) >= end {
				checkSame(t, "file", bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")), events[:end])
				return
			}
			if t.Context().Err() != nil {
				t.Fatal("the file did not grow")
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // another program reads it
		}
	}
	_, stop := runSinks(t, l, filepath.Join(dir, "sinks"), list...)
	check(1200)
	mustAppend(t, l, events[1200:1300]...)
	check(1300)
	settled(t, filepath.Join(dir, "sinks"), "1300", "file", "hook", "otlp", "syslog", "tls")
	stop()
	mustAppend(t, l, events[1300:]...)
	r, _ := runSinks(t, l, filepath.Join(dir, "sinks"), list...)
	check(1500)
	some.await(t, events[1400:1401])
	settled(t, filepath.Join(dir, "sinks"), "1500", "file", "hook", "otlp", "syslog", "tls")
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP accessd_audit_sink_events_total Events that a sink's receiver confirmed.
# TYPE accessd_audit_sink_events_total counter
accessd_audit_sink_events_total{sink="file"} 200
accessd_audit_sink_events_total{sink="hook"} 200
accessd_audit_sink_events_total{sink="otlp"} 200
accessd_audit_sink_events_total{sink="some"} 1
accessd_audit_sink_events_total{sink="syslog"} 200
accessd_audit_sink_events_total{sink="tls"} 200
`), "accessd_audit_sink_events_total"); err != nil {
		t.Error(err)
	}
}

// A receiver may do what it likes: it gets the same events again until it
// confirms them, and the other sinks do not wait for it.
func TestSinkReceiverFails(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	events := numbered(t, 0, 700)
	mustAppend(t, l, events...)
	good, bad := newGot(), newGot()
	well := make(chan struct{})
	failures := []func(w http.ResponseWriter, r *http.Request){
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		func(_ http.ResponseWriter, r *http.Request) { // does not answer in time
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		func(w http.ResponseWriter, r *http.Request) { // dies in the middle
			_, _ = io.ReadFull(r.Body, make([]byte, 1000))
			panic(http.ErrAbortHandler)
		},
		func(w http.ResponseWriter, r *http.Request) { // has it all, and dies
			bad.takeLines(t, r)
			panic(http.ErrAbortHandler)
		},
		func(w http.ResponseWriter, r *http.Request) { // half an answer
			bad.takeLines(t, r)
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte("12345"))
		},
	}
	var mu sync.Mutex
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/good" {
			good.takeLines(t, r)
			return
		}
		mu.Lock()
		i := calls
		calls++
		mu.Unlock()
		switch {
		case i < len(failures):
			failures[i](w, r)
		case i == len(failures):
			<-well
			fallthrough
		default:
			bad.takeLines(t, r)
		}
	}))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = nil
	dir := filepath.Join(t.TempDir(), "sinks")
	r, stop := runSinks(t, l, dir,
		SinkConfig{Name: "bad", Type: "webhook", URL: server.URL + "/bad"}, SinkConfig{Name: "good", Type: "webhook", URL: server.URL + "/good"})
	good.await(t, events)
	for {
		mu.Lock()
		n := calls
		mu.Unlock()
		if n > len(failures) {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the sink gave up")
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // until the other side called
	}
	want := fmt.Sprintf("accessd_audit_sink_failures_total{sink=\"bad\"} %d\n", len(failures))
	if err := testutil.GatherAndCompare(r, strings.NewReader("# HELP accessd_audit_sink_failures_total Deliveries to a sink that failed, and are tried again.\n"+
		"# TYPE accessd_audit_sink_failures_total counter\n"+want), "accessd_audit_sink_failures_total"); err != nil {
		t.Error(err)
	}
	close(well)
	bad.await(t, events)
	settled(t, dir, "700", "good", "bad")
	stop()
	if err := testutil.GatherAndCompare(r, strings.NewReader("# HELP accessd_audit_sink_failing 1 while the last delivery to a sink failed.\n"+
		"# TYPE accessd_audit_sink_failing gauge\naccessd_audit_sink_failing{sink=\"bad\"} 0\naccessd_audit_sink_failing{sink=\"good\"} 0\n"),
		"accessd_audit_sink_failing"); err != nil {
		t.Error(err)
	}
}

// What an OTLP receiver will never take is not sent again, and is counted; a warning
// beside what it took is no failure; what is no OTLP confirms nothing.
func TestSinkPartialSuccess(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	mustAppend(t, l, numbered(t, 0, 30)...)
	var mu sync.Mutex // guards what follows
	calls, seen := 0, map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer := &collectorpb.ExportLogsPartialSuccess{}
		calls++
		switch calls {
		case 1:
			_, _ = w.Write([]byte("<html>"))
			return
		case 2:
			answer.RejectedLogRecords, answer.ErrorMessage = 3, "too \x1b[31mlong"
		default:
			answer.ErrorMessage = "please send more at once"
		}
		var m collectorpb.ExportLogsServiceRequest
		body, err := io.ReadAll(r.Body)
		if err = errors.Join(err, proto.Unmarshal(body, &m)); err != nil {
			t.Error(err)
		}
		for _, res := range m.GetResourceLogs() {
			for _, record := range res.GetScopeLogs()[0].GetLogRecords() {
				seen[record.String()]++
			}
		}
		body, err = proto.Marshal(&collectorpb.ExportLogsServiceResponse{PartialSuccess: answer})
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(server.Close)
	dir := filepath.Join(t.TempDir(), "sinks")
	r, stop := runSinks(t, l, dir, SinkConfig{Name: "otlp", Type: "otlp", URL: server.URL})
	settled(t, dir, "30", "otlp")
	mustAppend(t, l, numbered(t, 30, 10)...)
	settled(t, dir, "40", "otlp")
	stop()
	mu.Lock()
	defer mu.Unlock()
	if calls != 3 || len(seen) != 40 {
		t.Errorf("%d requests with %d events, want 3 with 40", calls, len(seen))
	}
	for record, n := range seen {
		if n != 1 {
			t.Errorf("sent %d times: %s", n, record)
		}
	}
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP accessd_audit_sink_events_total Events that a sink's receiver confirmed.
# TYPE accessd_audit_sink_events_total counter
accessd_audit_sink_events_total{sink="otlp"} 37
# HELP accessd_audit_sink_failures_total Deliveries to a sink that failed, and are tried again.
# TYPE accessd_audit_sink_failures_total counter
accessd_audit_sink_failures_total{sink="otlp"} 1
# HELP accessd_audit_sink_refused_events_total Events that a sink's receiver will never take; it has those around them.
# TYPE accessd_audit_sink_refused_events_total counter
accessd_audit_sink_refused_events_total{sink="otlp"} 3
`), "accessd_audit_sink_events_total", "accessd_audit_sink_failures_total", "accessd_audit_sink_refused_events_total"); err != nil {
		t.Error(err)
	}
}

// settled waits until the sinks kept that place.
func settled(t testing.TB, dir, place string, sinks ...string) {
	t.Helper()
	for _, name := range sinks {
		for {
			got, err := os.ReadFile(filepath.Join(dir, "place", name))
			if err == nil && string(got) == place+"\n" {
				break
			}
			if t.Context().Err() != nil {
				t.Fatalf("sink %s is at %q, %v", name, got, err)
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // another goroutine writes it
		}
	}
}

// Killed after the receiver took events and before the place was kept, a sink
// gives them again, and skips none.
func TestSinkCrash(t *testing.T) {
	dir := t.TempDir()
	secret, public, err := NewAuditKey("example.com/audit")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "skey"), []byte(secret))
	write(t, filepath.Join(dir, "vkey"), []byte(public))
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	l := openTestLog(t, filepath.Join(dir, "log"), testKey{signer, public})
	events := numbered(t, 0, 4*sinkBatch)
	mustAppend(t, l, events...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	all := newGot()
	var mu sync.Mutex
	var victim *os.Process
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		all.takeLines(t, r)
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%2 == 0 && victim != nil { // every second batch is the last of its sender
			_ = victim.Kill()
			victim = nil
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	write(t, filepath.Join(dir, "url"), []byte(server.URL))
	for range 3 {
		mu.Lock()
		cmd, _ := startChild(t, "sink", dir)
		victim = cmd.Process
		mu.Unlock()
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}
	}
	l = openTestLog(t, filepath.Join(dir, "log"), testKey{signer, public})
	runSinks(t, l, filepath.Join(dir, "sinks"), SinkConfig{Name: "hook", Type: "webhook", URL: server.URL})
	all.await(t, events)
	if len(all.uids) <= len(events) {
		t.Errorf("%d events came of %d: nobody was killed in between", len(all.uids), len(events))
	}
}

// sinkChild delivers until it is killed.
func sinkChild(dir string) error {
	var text [3]string
	for i, name := range []string{"skey", "vkey", "url"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		text[i] = string(raw)
	}
	signer, err := note.NewSigner(text[0])
	if err != nil {
		return err
	}
	l, err := OpenLog(context.Background(), LogConfig{Dir: filepath.Join(dir, "log"), Signer: signer, VerifierKey: text[1]})
	if err != nil {
		return err
	}
	s, err := OpenSinks(SinksConfig{Log: l, Dir: filepath.Join(dir, "sinks"), Sinks: []SinkConfig{{Name: "hook", Type: "webhook", URL: text[2]}}})
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}

// A secret comes from a file, may be replaced there, and is in no log.
func TestSinkHeaders(t *testing.T) {
	dir := t.TempDir()
	headers := filepath.Join(dir, "headers")
	write(t, headers, []byte("# who we are\nAuthorization: Bearer s3cret-1\n\nX-Team: audit\n"))
	seen := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer s3cret-1" {
			write(t, headers, []byte("Authorization: Bearer s3cret-2\n"))
			w.WriteHeader(http.StatusForbidden)
		}
		seen <- r.Header.Get("Authorization") + r.Header.Get("X-Team")
	}))
	t.Cleanup(server.Close)
	l := openTestLog(t, filepath.Join(dir, "log"), newTestKey(t, "example.com/audit"))
	core, logged := observer.New(zap.DebugLevel)
	l.cfg.Log = zap.New(core)
	mustAppend(t, l, numbered(t, 0, 1)...)
	runSinks(t, l, filepath.Join(dir, "sinks"), SinkConfig{Name: "hook", Type: "webhook", URL: server.URL, HeadersFile: headers})
	for _, want := range []string{"Bearer s3cret-1audit", "Bearer s3cret-2"} {
		if got := <-seen; got != want {
			t.Errorf("header %q, want %q", got, want)
		}
	}
	if text := fmt.Sprint(logged.All()); strings.Contains(text, "s3cret") || !strings.Contains(text, "403") {
		t.Errorf("logged %s", text)
	}
}

// What a crash left of a line in a file is written again, whole.
func TestSinkFileIsWhole(t *testing.T) {
	dir := t.TempDir()
	events := numbered(t, 0, 3)
	path := filepath.Join(dir, "events.jsonl")
	write(t, path, append(slices.Concat(events[0], []byte("\n")), events[1][:20]...))
	r := fileReceiver{path}
	if err := r.deliver(t.Context(), events[1:]); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, path), append(bytes.Join(events, []byte("\n")), '\n'); !bytes.Equal(got, want) {
		t.Errorf("file is\n%s\nwant\n%s", got, want)
	}
	if err := os.Symlink(path, path+"-link"); err != nil {
		t.Fatal(err)
	}
	if err := (fileReceiver{path + "-link"}).deliver(t.Context(), events); err == nil {
		t.Error("a link was followed")
	}
}

func TestOpenSinksRefuses(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	for name, c := range map[string]SinkConfig{
		"no name":             {Type: "webhook", URL: "https://example.com"},
		"a path as name":      {Name: "../x", Type: "webhook", URL: "https://example.com"},
		"no type":             {Name: "x", URL: "https://example.com"},
		"no host":             {Name: "x", Type: "webhook", URL: "https://"},
		"another scheme":      {Name: "x", Type: "webhook", URL: "ftp://example.com"},
		"a password":          {Name: "x", Type: "webhook", URL: "https://u:p@example.com"},
		"secrets in clear":    {Name: "x", Type: "webhook", URL: "http://example.com", HeadersFile: "/x"},
		"OTLP over gRPC":      {Name: "x", Type: "otlp", URL: "grpc://example.com:4317"},
		"syslog without port": {Name: "x", Type: "syslog", URL: "tcp://example.com"},
		"syslog over UDP":     {Name: "x", Type: "syslog", URL: "udp://example.com:514"},
		"a relative file":     {Name: "x", Type: "file", URL: "file:x"},
		"a file elsewhere":    {Name: "x", Type: "file", URL: "file://host/x"},
		"filter":              {Name: "x", Type: "file", URL: "file:///x", Filter: FilterText{Event: "nothing"}},
		"outcome":             {Name: "x", Type: "file", URL: "file:///x", Filter: FilterText{Outcome: "maybe"}},
	} {
		if _, err := OpenSinks(SinksConfig{Log: l, Dir: t.TempDir(), Sinks: []SinkConfig{c}}); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
}
