package integration

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/integration/harness"
)

// ledger is the log of a cluster that has done enough for two full bundles and
// more: a directory that an auditor has a copy of, and the key from the authority.
type ledger struct {
	*fleet

	log, key, older string // older is a checkpoint of a while ago
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	l := &ledger{fleet: newFleet(t, "accessd")}
	l.log = filepath.Join(l.Dir, "audit")
	l.key = l.File("audit.pub", l.Admin("ca", "export", "--type", "audit"))
	x := l.jump("accessd")
	dir := x.scratch(t)
	var batch strings.Builder
	for i := range 600 {
		fmt.Fprintf(&batch, "mkdir %s/%d\n", dir, i)
	}
	l.older = l.File("older", "")
	must(t, l.verify(l.log, "--save", l.older))
	must(t, x.sftp(t, batch.String()))
	wantEvent(t, l.Cluster, map[string]string{"action": "mkdir", "path": dir + "/599"}, "--event", "sftp")
	return l
}

// verify has an auditor check a log, who has nothing but it and the key.
func (l *ledger) verify(dir string, more ...string) harness.Result {
	l.T.Helper()
	return harness.Run(l.T, nil, harness.Binary(l.T), append([]string{"audit", "verify", "--log", dir, "--key", l.key}, more...)...)
}

// copied returns a copy of the log.
func (l *ledger) copied(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	must(t, harness.Run(t, nil, "cp", "-a", l.log, dir))
	return dir
}

// bundle returns the entries of a bundle of the log, each behind its length.
func bundle(t *testing.T, path string) (entries []string) {
	t.Helper()
	for text := read(t, path); text != ""; {
		n := 2 + int(binary.BigEndian.Uint16([]byte(text)))
		entries, text = append(entries, text[:n]), text[n:]
	}
	return entries
}

// tampering is one thing that somebody does to a log, and what the verifier has
// to say of it.
type tampering struct {
	name string
	do   func(t *testing.T, dir string)
	want []string
}

const (
	first  = "/tile/entries/000"
	second = "/tile/entries/001"
)

// edit writes a file anew.
func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	was := read(t, path)
	if now := change(was); now != was {
		harness.WriteFile(t, path, now)
		return
	}
	t.Fatalf("%s is as it was", path)
}

// inBundle edits the entries of a bundle.
func inBundle(t *testing.T, path string, change func([]string) []string) {
	t.Helper()
	edit(t, path, func(string) string { return strings.Join(change(bundle(t, path)), "") })
}

// other is an entry with another person in it, as long as it was.
func other(entry string) string { return strings.ReplaceAll(entry, `"alice"`, `"malec"`) }

// tamperings are what somebody does who can write to the log but not sign.
func (l *ledger) tamperings() []tampering {
	swapped := func(e []string) []string { e[9], e[10] = e[10], e[9]; return e }
	return []tampering{
		{name: "an entry edited", want: []string{"entry 266", "tile/entries/001"}, do: func(t *testing.T, dir string) {
			inBundle(t, dir+second, func(e []string) []string { e[10] = other(e[10]); return e })
		}},
		{name: "an entry edited and its hash", want: []string{"tile/1/000"}, do: func(t *testing.T, dir string) {
			var hash []byte
			inBundle(t, dir+second, func(e []string) []string {
				e[10] = other(e[10])
				hash = rfc6962.DefaultHasher.HashLeaf([]byte(e[10][2:]))
				return e
			})
			edit(t, dir+"/tile/0/001", func(s string) string { return s[:320] + string(hash) + s[352:] })
		}},
		{name: "an entry dropped", want: []string{"tile/entries/001"}, do: func(t *testing.T, dir string) {
			inBundle(t, dir+second, func(e []string) []string { return slices.Delete(e, 10, 11) })
		}},
		{name: "an entry put in", want: []string{"tile/entries/001"}, do: func(t *testing.T, dir string) {
			inBundle(t, dir+second, func(e []string) []string { return slices.Insert(e, 10, e[20]) })
		}},
		{name: "two entries swapped", want: []string{"entry 265", "tile/entries/001"}, do: func(t *testing.T, dir string) {
			inBundle(t, dir+second, swapped)
		}},
		{name: "two files swapped", want: []string{"tile/entries/000"}, do: func(t *testing.T, dir string) {
			a, b := read(t, dir+first), read(t, dir+second)
			harness.WriteFile(t, dir+first, b)
			harness.WriteFile(t, dir+second, a)
		}},
		{name: "a file dropped", want: []string{"tile/entries/001", "missing"}, do: func(t *testing.T, dir string) {
			if err := os.Remove(dir + second); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a file cut", want: []string{"tile/entries/001"}, do: func(t *testing.T, dir string) {
			edit(t, dir+second, func(s string) string { return s[:len(s)-5] })
		}},
		{name: "a hash changed", want: []string{"tile/0/000"}, do: func(t *testing.T, dir string) {
			edit(t, dir+"/tile/0/000", func(s string) string { return s[:40] + string([]byte{s[40] ^ 1}) + s[41:] })
		}},
		{name: "the checkpoint replaced by an older one", want: []string{"checkpoint"}, do: func(t *testing.T, dir string) {
			harness.WriteFile(t, dir+"/checkpoint", read(t, l.older))
		}},
		{name: "the checkpoint signed with another key", want: []string{"checkpoint"}, do: func(t *testing.T, dir string) {
			edit(t, dir+"/checkpoint", func(s string) string { return resigned(t, s) })
		}},
		{name: "the checkpoint edited", want: []string{"checkpoint"}, do: func(t *testing.T, dir string) {
			edit(t, dir+"/checkpoint", func(s string) string { lines := strings.SplitN(s, "\n", 3); return lines[0] + "\n300\n" + lines[2] })
		}},
		{name: "the checkpoint gone", want: []string{"checkpoint"}, do: func(t *testing.T, dir string) {
			if err := os.Remove(dir + "/checkpoint"); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// resigned returns a signed note with the signature of another key of the same
// name.
func resigned(t *testing.T, text string) string {
	t.Helper()
	body, _, _ := strings.Cut(text, "\n\n")
	origin, _, _ := strings.Cut(body, "\n")
	key, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: body + "\n"}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return string(signed)
}

// An auditor with a copy of the log and its key finds out whatever was done to
// it, and is told where; also of the authority itself.
func TestTamperedLog(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	if code := l.Main.Stop(); code != 0 {
		t.Fatalf("stop = %d", code)
	}
	whole := l.copied(t)
	if r := l.verify(whole); r.Code != 0 || !strings.HasPrefix(r.Stdout, "verified ") {
		t.Fatalf("a log as it was: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	must(t, l.verify(whole, "--since", l.older))
	if n := len(bundle(t, whole+second)); n != 256 {
		t.Fatalf("the second bundle has %d entries", n)
	}
	for _, x := range l.tamperings() {
		t.Run(x.name, func(t *testing.T) {
			dir := l.copied(t)
			x.do(t, dir)
			found(t, l.verify(dir), x.want...)
		})
	}
	t.Run("touched, which changes nothing", func(t *testing.T) {
		dir := l.copied(t)
		must(t, harness.Run(t, nil, "touch", "-d", "2020-01-01", dir+first, dir+"/checkpoint"))
		must(t, l.verify(dir))
	})
	t.Run("another log's key", func(t *testing.T) {
		_, key, err := note.GenerateKey(rand.Reader, strings.SplitN(read(t, whole+"/checkpoint"), "\n", 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "key")
		harness.WriteFile(t, file, key+"\n")
		found(t, harness.Run(t, nil, harness.Binary(t), "audit", "verify", "--log", whole, "--key", file), "checkpoint")
	})
	t.Run("rolled back as a whole", func(t *testing.T) {
		rolledBack(t, l, whole)
	})
}

// found wants a verifier's refusal that says all of words.
func found(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	if r.Code == 0 || r.Code > 125 || r.Code < 0 {
		t.Errorf("exit %d, want a fault: %q", r.Code, r.Stdout)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%q does not say %q", r.Stderr, w)
		}
	}
}

// rolledBack goes on with the log, and then has the directory of before in its
// place: that agrees with itself, and not with the checkpoint an auditor keeps.
func rolledBack(t *testing.T, l *ledger, before string) {
	l.StartMain()
	l.Admin("tokens", "add")
	saved := filepath.Join(t.TempDir(), "saved")
	harness.Eventually(t, "the log is longer", func() bool {
		must(t, l.verify(l.log, "--save", saved))
		return read(t, saved) != read(t, before+"/checkpoint")
	})
	must(t, l.verify(before))
	found(t, l.verify(before, "--since", saved), "cut back")
	must(t, l.Try("audit", "verify", "--since", saved))

	t.Run("what the authority says of its own", func(t *testing.T) {
		was := read(t, l.log+second)
		inBundle(t, l.log+second, func(e []string) []string { e[10] = other(e[10]); return e })
		found(t, l.Try("audit", "verify"), "entry 266", "tile/entries/001")
		harness.WriteFile(t, l.log+second, was)
		must(t, l.Try("audit", "verify"))
	})
}

// A proof of one event convinces somebody who has only it and the key; anything
// else does not.
func TestProofOfAnEvent(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	x := f.jump("accessd")
	must(t, x.ssh(t, nil, "echo proven"))
	e := wantEvent(t, f.Cluster, map[string]string{"command": "echo proven"}, "--event", "session.start")
	key := f.File("audit.pub", f.Admin("ca", "export", "--type", "audit"))
	proof := filepath.Join(f.Home, "proof")
	f.Admin("audit", "prove", e.Str("uid"), "--out", proof)
	check := func(file, key string) harness.Result {
		return harness.Run(t, nil, harness.Binary(t), "audit", "check", file, "--key", key)
	}
	if r := check(proof, key); r.Code != 0 || !strings.Contains(r.Stdout, e.Str("uid")) || !strings.Contains(r.Stdout, "echo proven") {
		t.Errorf("check: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	if r := f.Try("audit", "prove", "00000000-0000-4000-8000-000000000000"); r.Code != 4 {
		t.Errorf("a proof of what is not there: exit %d %q", r.Code, r.Stderr)
	}
	another := filepath.Join(f.Home, "another")
	f.Admin("audit", "prove", f.Events("--event", "node.join")[0].Str("uid"), "--out", another)
	text, head := read(t, proof), func(s string) string { return strings.Join(strings.SplitN(s, "\n", 3)[:2], "\n") }
	_, vkey, err := note.GenerateKey(rand.Reader, "another/audit")
	if err != nil {
		t.Fatal(err)
	}
	for name, forged := range map[string]string{
		"another event":          strings.Replace(text, head(text), head(read(t, another)), 1),
		"another place":          strings.Replace(text, "\nindex ", "\nindex 1", 1),
		"another signature":      text[:strings.LastIndex(text, "\n\n")] + "\n\n" + strings.SplitN(resigned(t, text[strings.Index(text, "\n\n")+2:]), "\n\n", 2)[1],
		"cut":                    text[:len(text)-4],
		"nothing":                "",
		"a line that is no hash": strings.Replace(text, "\n\n", "\nAAAA\n\n", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if forged == text {
				t.Fatal("it is not forged")
			}
			file := filepath.Join(t.TempDir(), "forged")
			harness.WriteFile(t, file, forged)
			if r := check(file, key); r.Code == 0 || r.Stdout != "" || r.Stderr == "" {
				t.Errorf("exit %d %q %q", r.Code, r.Stdout, r.Stderr)
			}
		})
	}
	if r := check(proof, f.File("other.pub", vkey+"\n")); r.Code == 0 {
		t.Errorf("with another key: exit %d %q", r.Code, r.Stdout)
	}
}

// Each filter of "audit ls" selects what the whole list says it should, pages are
// the list in pieces, and words are escaped.
func TestAuditFilters(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd", "sshd")
	for _, kind := range f.kinds {
		must(t, f.jump(kind).ssh(t, nil, "echo Needle-in-"+kinds[kind]))
	}
	f.Admin("users", "add", "bob", "--roles", "access", "--logins", "root")
	harness.Run(t, nil, "ssh", "-F", f.config, "-l", "root", "n1-jump", "true")
	for _, kind := range f.kinds {
		wantEvent(t, f.Cluster, map[string]string{"node_name": kinds[kind]}, "--event", "session.end")
	}
	wantEvent(t, f.Cluster, map[string]string{"success": "false", "login": "root"})
	all := f.Events("--limit", "10000")
	middle := all[len(all)/2].Str("time")
	sid := f.Events("--event", "session.start")[0].Str("sid")
	field := func(key, value string) func(harness.Event) bool {
		return func(e harness.Event) bool { return e.Str(key) == value }
	}
	on := func(node string) func(harness.Event) bool {
		return func(e harness.Event) bool { return e.Str("node_name") == node || e.Str("server_hostname") == node }
	}
	for _, x := range []struct {
		flags []string
		want  func(harness.Event) bool
	}{
		{[]string{"--user", "alice"}, field("user", "alice")},
		{[]string{"--login", login}, field("login", login)},
		{[]string{"--node", "n2"}, on("n2")},
		{[]string{"--event", "session.end"}, field("event", "session.end")},
		{[]string{"--event", "session.*"}, func(e harness.Event) bool { return strings.HasPrefix(e.Str("event"), "session.") }},
		{[]string{"--session", sid}, field("sid", sid)},
		{[]string{"--label", "kind=sshd"}, func(e harness.Event) bool {
			return strings.Contains(e.Str("node_labels")+e.Str("labels"), "kind:sshd")
		}},
		{[]string{"--address", "127.0.0.0/8"}, func(e harness.Event) bool { return strings.HasPrefix(e.Str("addr.remote"), "127.") }},
		{[]string{"--success"}, field("success", "true")},
		{[]string{"--failed"}, field("success", "false")},
		{[]string{"--text", "needle N2"}, func(e harness.Event) bool {
			b := strings.ToLower(fmt.Sprint(maps.Collect(maps.All(e))))
			return strings.Contains(b, "needle") && strings.Contains(b, "n2")
		}},
		{[]string{"--since", middle}, func(e harness.Event) bool { return e.Str("time") >= middle }},
		{[]string{"--until", middle}, func(e harness.Event) bool { return e.Str("time") < middle }},
		{[]string{"--user", "alice", "--event", "session.start", "--node", "n1"}, func(e harness.Event) bool {
			return e.Str("user") == "alice" && e.Str("event") == "session.start" && on("n1")(e)
		}},
	} {
		t.Run(strings.Join(x.flags, " "), func(t *testing.T) {
			uids := func(list []harness.Event, keep func(harness.Event) bool) (uids []string) {
				for _, e := range list {
					if keep(e) && slices.ContainsFunc(all, field("uid", e.Str("uid"))) {
						uids = append(uids, e.Str("uid"))
					}
				}
				return uids
			}
			want := uids(all, x.want)
			got := uids(f.Events(append(x.flags, "--limit", "10000")...), func(harness.Event) bool { return true })
			if len(want) == 0 || !slices.Equal(got, want) {
				t.Errorf("%d events, want %d of %d:\n%q\n%q", len(got), len(want), len(all), got, want)
			}
		})
	}
	if got := f.Events("--address", "10.0.0.0/8"); len(got) != 0 {
		t.Errorf("%d events from 10.0.0.0/8", len(got))
	}
	times := func(list []harness.Event) (times []string) {
		for _, e := range list {
			times = append(times, e.Str("time"))
		}
		return times
	}
	if got := times(f.Events("--limit", "10000")); !slices.IsSorted(got) {
		t.Errorf("the list is not in order: %q", got)
	}
	f.Verify()
}

// The events go out of the log as lines that others read, from any place in it.
func TestAuditExport(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	must(t, f.jump("accessd").ssh(t, nil, "echo exported"))
	wantEvent(t, f.Cluster, map[string]string{"user": "alice"}, "--event", "session.end")
	until := f.Events("--event", "session.end")[0].Str("time")
	want := f.Events("--limit", "10000", "--until", until)
	export := func(format string) string { return f.Admin("audit", "export", "--format", format, "--until", until) }

	var uids []string
	for line := range strings.Lines(export("jsonl")) {
		var e harness.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		uids = append(uids, e.Str("uid"))
	}
	slices.Sort(uids)
	if !slices.Equal(uids, sortedUIDs(want)) {
		t.Errorf("%d events as JSON lines, want the %d of the list", len(uids), len(want))
	}
	rows, err := csv.NewReader(strings.NewReader(export("csv"))).ReadAll()
	if err != nil || len(rows) != len(want)+1 || !slices.Contains(rows[0], "uid") {
		t.Errorf("%d rows of CSV, want %d and a head: %v", len(rows), len(want), err)
	}
	text := export("syslog")
	if n := len(regexp.MustCompile(`<\d{1,3}>1 \d{4}-\d\d-\d\dT\S+ \S+ accessd `).FindAllString(text, -1)); n != len(want) || !strings.Contains(text, "echo exported") {
		t.Errorf("%d messages of RFC 5424, want %d: %.300q", n, len(want), text)
	}
	for line := range strings.Lines(export("otlp")) {
		if !json.Valid([]byte(line)) || !strings.Contains(line, "resourceLogs") {
			t.Errorf("no OTLP: %.300q", line)
		}
	}
}

func sortedUIDs(list []harness.Event) (uids []string) {
	for _, e := range list {
		uids = append(uids, e.Str("uid"))
	}
	slices.Sort(uids)
	return uids
}

// What the log says of a recording goes on to be proven when the recording is
// gone: the oldest go by size, what is held stays.
func TestRetention(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, file, "limits: {no_penalties: true}\nauth: {argon2: {time: 1, memory_kib: 8192, threads: 1}}\nrecordings: {max_size: 1500000}\n")
	f := newFleetWith(t, file, "accessd")
	x := f.jump("accessd")
	harness.WriteFile(t, filepath.Join(f.dir, "noise"), string(noise(700_000)))
	must(t, harness.Run(t, nil, "chmod", "644", filepath.Join(f.dir, "noise")))
	record := func(name string) recorded {
		command := "cat " + f.dir + "/noise; : " + name
		must(t, x.ssh(t, nil, command))
		return kept(t, f.Cluster, started(t, f.Cluster, "alice", "n1", command))
	}
	held := record("held")
	f.Admin("recordings", "hold", held.sid, "--reason", "a case in court")
	gone := record("gone")
	last := record("last")
	wantEvent(t, f.Cluster, map[string]string{"sid": gone.sid}, "--event", "recording.delete")
	harness.Eventually(t, "the files are gone", func() bool { return len(stored(t, f.Cluster, gone.sid)) == 0 })
	for _, r := range []recorded{held, last} {
		if n := len(stored(t, f.Cluster, r.sid)); n != len(r.parts) {
			t.Errorf("%d of %d parts are left of one that stays", n, len(r.parts))
		}
	}
	if r := f.Try("recordings", "play", gone.sid, "--format", "text"); r.Code == 0 {
		t.Errorf("what is gone plays: %.100q", r.Stdout)
	}
	key := f.File("audit.pub", f.Admin("ca", "export", "--type", "audit"))
	proof := filepath.Join(f.Home, "proof")
	f.Admin("audit", "prove", gone.end.Str("uid"), "--out", proof)
	if text := must(t, harness.Run(t, nil, harness.Binary(t), "audit", "check", proof, "--key", key)); !strings.Contains(text, gone.end.Str("recording_root")) {
		t.Errorf("the proof does not name the root: %s", text)
	}
	if f.Try("recordings", "rm", held.sid, "--reason", "space").Code == 0 {
		t.Error("a recording that is held was removed")
	}
	f.Verify()
}

// A copy of the log in a bucket is a log by itself: an auditor verifies it with
// the key alone, and it outlives what is done to the authority's own.
func TestMirroredLog(t *testing.T) {
	t.Parallel()
	bucket := filepath.Join(t.TempDir(), "bucket")
	if err := os.Mkdir(bucket, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, "audit: {mirror: \"file://"+bucket+"\"}\n")
	c := harness.New(t, "--config", config)
	c.Admin("tokens", "add")
	key := c.File("audit.pub", c.Admin("ca", "export", "--type", "audit"))
	saved := filepath.Join(c.Home, "saved")
	must(t, c.Try("audit", "verify", "--save", saved))
	verify := func(dir string) harness.Result {
		return harness.Run(t, nil, harness.Binary(t), "audit", "verify", "--log", dir, "--key", key, "--since", saved)
	}
	var mirror string
	harness.Eventually(t, "the bucket has the log as far as it was saved", func() bool {
		dirs, err := filepath.Glob(filepath.Join(bucket, "audit", "*"))
		if err != nil || len(dirs) != 1 {
			return false
		}
		mirror = dirs[0]
		return verify(mirror).Code == 0
	})
	if code := c.Main.Stop(); code != 0 {
		t.Fatalf("stop = %d", code)
	}
	own := filepath.Join(c.Dir, "audit")
	must(t, verify(own))
	edit(t, filepath.Join(own, "checkpoint"), func(s string) string { return resigned(t, s) })
	found(t, verify(own), "checkpoint")
	must(t, verify(mirror))
}

// A log in periods is one log to who reads and verifies it, with the key that the
// auditor has had from the beginning; each closed period can be moved away, which
// is said, and nothing else can be done to it unnoticed.
func TestLogInPeriods(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	x := f.jump("accessd")
	l := &ledger{fleet: f, log: filepath.Join(f.Dir, "audit"), key: f.File("audit.pub", f.Admin("ca", "export", "--type", "audit"))}
	kept, proof := f.File("kept", ""), f.File("proof", "")
	must(t, x.ssh(t, nil, "echo in the first"))
	old := wantEvent(t, f.Cluster, map[string]string{"command": "echo in the first"}, "--event", "session.start")
	must(t, l.verify(l.log, "--save", kept))
	f.Admin("tokens", "add") // an event more
	key := strings.TrimSpace(f.Admin("audit", "rotate", "--reason", "the year is over"))
	origin, _, _ := strings.Cut(key, "+")
	period := filepath.Base(origin)
	if !strings.Contains(f.Admin("ca", "export", "--type", "audit"), key) {
		t.Errorf("ca export does not print %s", key)
	}
	f.Main.Kill()
	f.StartMain()
	f.WaitOnline("n1")
	must(t, x.ssh(t, nil, "echo in the second"))
	wantEvent(t, f.Cluster, map[string]string{"command": "echo in the second"}, "--event", "session.start")
	wantEvent(t, f.Cluster, map[string]string{"period": period, "by": fmt.Sprintf("local:%d", os.Getuid()), "reason": "the year is over"}, "--event", "audit.rotate")
	if got := f.Events("--event", "session.start"); len(got) != 2 {
		t.Errorf("%d sessions in both periods, want 2", len(got))
	}
	for _, r := range []harness.Result{l.verify(l.log, "--since", kept), f.Try("audit", "verify", "--since", kept)} {
		if r.Code != 0 || strings.Count(r.Stdout, "verified ") != 2 || !strings.Contains(r.Stdout, origin+",") {
			t.Errorf("verify of two periods: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
	}
	f.Admin("audit", "prove", old.Str("uid"), "--out", proof)
	if r := harness.Run(t, nil, harness.Binary(t), "audit", "check", proof, "--key", l.key); r.Code != 0 || !strings.Contains(r.Stdout, "in the first") {
		t.Errorf("a proof from the closed period: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	harness.WriteFile(t, kept+".first", read(t, filepath.Join(l.log, "checkpoint")))
	newest := "/" + period + "/tile/entries/000.p"
	for _, tt := range []tampering{
		{name: "the period's first entry edited", want: []string{"entry 0", period + "/tile/entries"}, do: func(t *testing.T, dir string) {
			parts, err := filepath.Glob(dir + newest + "/*")
			if err != nil || len(parts) == 0 {
				t.Fatalf("%q, %v", parts, err)
			}
			for _, part := range parts {
				inBundle(t, part, func(e []string) []string { e[0] = strings.Replace(e[0], "is over", "is 0ver", 1); return e })
			}
		}},
		{name: "the first period cut short", want: []string{"cut short"}, do: func(t *testing.T, dir string) {
			harness.WriteFile(t, dir+"/checkpoint", read(t, kept))
		}},
		{name: "the newest period removed", want: []string{"cut back"}, do: func(t *testing.T, dir string) {
			harness.WriteFile(t, kept+".newest", read(t, filepath.Join(dir, period, "checkpoint")))
			if err := os.RemoveAll(filepath.Join(dir, period)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the first period removed", want: []string{"the first period", "not here"}, do: removeFirst},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := l.copied(t)
			tt.do(t, dir)
			var more []string
			if strings.HasPrefix(tt.name, "the newest") {
				more = []string{"--since", kept + ".newest"}
			}
			found(t, l.verify(dir, more...), tt.want...)
		})
	}
	t.Run("archived on purpose", func(t *testing.T) {
		archive := filepath.Join(t.TempDir(), "archive")
		if r := f.Try("audit", "archive", "first", "--to", archive); r.Code == 0 || !strings.Contains(r.Stderr, "ended 0 days ago") {
			t.Errorf("archive of a period that ended a moment ago: exit %d %q", r.Code, r.Stderr)
		}
		said := f.Admin("audit", "archive", "first", "--to", archive, "--young", "--reason", "the year is over")
		first := strings.TrimSuffix(origin, "/"+period)
		wantEvent(t, f.Cluster, map[string]string{"period": "first", "to": "file://" + archive, "reason": "the year is over", "checkpoint": read(t, kept+".first")}, "--event", "audit.archive")
		must(t, l.verify(filepath.Join(archive, "audit", filepath.Base(first)), "--since", kept))
		if !strings.Contains(said, "origin "+first+",") {
			t.Errorf("archive says %q", said)
		}
		if r := f.Try("audit", "verify", "--archived"); r.Code != 0 || !strings.Contains(r.Stdout, "not here: origin "+strings.TrimSuffix(origin, "/"+period)+",") {
			t.Errorf("verify: exit %d %q %q", r.Code, r.Stdout, r.Stderr)
		}
		found(t, f.Try("audit", "verify"), "not here")
		if got := f.Events("--event", "session.start"); len(got) != 1 {
			t.Errorf("%d sessions, want that of the period that is left", len(got))
		}
		found(t, f.Try("audit", "prove", old.Str("uid")), "not here")
		must(t, x.ssh(t, nil, "echo goes on"))
		wantEvent(t, f.Cluster, map[string]string{"command": "echo goes on"}, "--event", "session.start")
	})
}

// removeFirst moves the first period of a log away.
func removeFirst(t *testing.T, dir string) {
	t.Helper()
	archive := t.TempDir()
	for _, name := range []string{"tile", "checkpoint", ".state"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(archive, name)); err != nil {
			t.Fatal(err)
		}
	}
}
