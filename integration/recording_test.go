package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/names"
)

// recorded is what is kept of one session.
type recorded struct {
	sid   string
	end   harness.Event // its session.end
	parts []string      // files of the store, in order
}

// kept waits until a session has ended and all of its parts are in the store of
// the authority, and holds them against the digest that the log vouches for.
func kept(t *testing.T, c *harness.Cluster, sid string) recorded {
	t.Helper()
	r := recorded{sid: sid}
	r.end = c.WaitEvent("session.end of "+sid, func(harness.Event) bool { return true }, "--event", "session.end", "--session", sid)
	if n := len(c.Events("--event", "session.end", "--session", sid)); n != 1 {
		t.Errorf("%d session.end events of one session, want exactly 1", n)
	}
	want := r.end.Str("recording_parts")
	harness.Eventually(t, fmt.Sprintf("the store has %s parts of %s", want, sid), func() bool {
		r.parts = stored(t, c, sid)
		return fmt.Sprint(len(r.parts)) == want
	})
	root, size := chain(t, r.parts)
	if said, _ := r.end["recording_bytes"].(float64); root != r.end.Str("recording_root") || size != int(said) {
		t.Errorf("the parts have %d bytes and root %s, but session.end says %.0f and %s", size, root, said, r.end.Str("recording_root"))
	}
	return r
}

// stored returns the files of a recording's parts in the authority's folder.
func stored(t *testing.T, c *harness.Cluster, sid string) (parts []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(c.Dir, "recordings"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".part") && filepath.Base(filepath.Dir(path)) == sid {
			parts = append(parts, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(parts)
	return parts
}

// chain returns the last digest of the chain over parts as they are stored, and
// their size: d0 is 32 zero bytes, dn = SHA-256(dn-1 || SHA-256(part n)).
func chain(t *testing.T, parts []string) (root string, size int) {
	t.Helper()
	var d [sha256.Size]byte
	for i, path := range parts {
		if want := fmt.Sprintf("%06d.part", i+1); filepath.Base(path) != want {
			t.Errorf("part %d is %s, want %s", i+1, filepath.Base(path), want)
		}
		body := []byte(read(t, path))
		one := sha256.Sum256(body)
		d, size = sha256.Sum256(slices.Concat(d[:], one[:])), size+len(body)
	}
	return hex.EncodeToString(d[:]), size
}

// filter runs a stock tool over input.
func filter(t *testing.T, input []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v %s", cmd.Args, err, stderr.String())
	}
	return out
}

// frames decodes the parts with stock tools; identity opens sealed ones.
func (r recorded) frames(t *testing.T, identity string) (all []*accessdv1.Frame) {
	t.Helper()
	var at uint64
	for _, path := range r.parts {
		body := []byte(read(t, path))
		if identity != "" {
			body = filter(t, body, "age", "-d", "-i", identity)
		}
		in := bytes.NewReader(filter(t, body, "zstd", "-dc"))
		for {
			frame := &accessdv1.Frame{}
			if err := protodelim.UnmarshalFrom(in, frame); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", filepath.Base(path), err)
			}
			if frame.GetAtUs() < at {
				t.Errorf("%s: a frame at %d µs after one at %d", filepath.Base(path), frame.GetAtUs(), at)
			}
			at = frame.GetAtUs()
			all = append(all, frame)
		}
	}
	if len(all) == 0 || all[0].GetStart() == nil || all[len(all)-1].GetEnd() == nil {
		t.Fatalf("%d frames, want a start first and an end last: %v", len(all), all)
	}
	return all
}

// stream returns all that frames have of one stream.
func stream(frames []*accessdv1.Frame, of accessdv1.Stream) string {
	var b strings.Builder
	for _, f := range frames {
		if p := f.GetPrint(); p.GetStream() == of {
			b.Write(p.GetData())
		}
	}
	return b.String()
}

const (
	stdout = accessdv1.Stream_STREAM_STDOUT
	stderr = accessdv1.Stream_STREAM_STDERR
	stdin  = accessdv1.Stream_STREAM_STDIN
)

// started returns the id of the session that began with a command; "" is a shell.
func started(t *testing.T, c *harness.Cluster, user, node, command string) string {
	t.Helper()
	fields := map[string]string{"user": user, "node_name": node, "kind": "exec", "command": command}
	if command == "" {
		fields = map[string]string{"user": user, "node_name": node, "kind": "shell"}
	}
	return wantEvent(t, c, fields, "--event", "session.start", "--user", user).Str("sid")
}

// also adds a person with a role of their own, and returns the way to x as them.
func (x target) also(t *testing.T, user, options string) target {
	t.Helper()
	role := "kind: role\nname: " + user + "\nallow:\n  - {nodes: {\"*\": \"*\"}, logins: [\"{{user.logins}}\"], actions: [\"*\"]}\noptions: {" + options + "}\n"
	x.Admin("roles", "apply", "-f", x.File(user+".yaml", role))
	x.Admin("users", "add", user, "--roles", user, "--logins", login)
	p, f := x.Sign(user, "1h"), *x.fleet
	f.config = x.File(user+"-config", strings.NewReplacer(x.alice.Key, p.Key, "User alice\n", "User "+user+"\n").Replace(read(t, x.config)))
	x.fleet = &f
	return x
}

// recordingKinds are where sessions are recorded: at an accessd node by itself, at
// a plain one by the proxy.
var recordingKinds = []string{"accessd", "sshd"}

// Shells and commands are recorded on both kinds of node, each stream apart, what
// people type only where their role says so; the log vouches for each part.
func TestRecordings(t *testing.T) {
	t.Parallel()
	f := newFleet(t, recordingKinds...)
	typist := f.jump("accessd").also(t, "typist", "record_input: true")
	for _, kind := range recordingKinds {
		x := f.jump(kind)
		t.Run(kind+" shell", func(t *testing.T) { recordedShell(t, x) })
		t.Run(kind+" exec", func(t *testing.T) { recordedExec(t, x, "alice", "") })
		t.Run(kind+" exec with input", func(t *testing.T) {
			y := typist
			y.kind, y.node = x.kind, x.node
			recordedExec(t, y, "typist", "typed\n")
		})
		t.Run(kind+" off", func(t *testing.T) {
			y := x.also(t, "off-"+x.node, "record: off")
			must(t, y.ssh(t, nil, "echo nobody keeps this"))
			sid := started(t, f.Cluster, "off-"+x.node, x.node, "echo nobody keeps this")
			end := wantEvent(t, f.Cluster, map[string]string{"sid": sid}, "--event", "session.end")
			start := wantEvent(t, f.Cluster, map[string]string{"sid": sid}, "--event", "session.start")
			if start.Str("record") != "off" || end.Str("recording_root") != "" || len(stored(t, f.Cluster, sid)) != 0 {
				t.Errorf("record %q, root %q and %d parts of a session that is not recorded", start.Str("record"), end.Str("recording_root"), len(stored(t, f.Cluster, sid)))
			}
		})
	}
	t.Run("nothing is left behind", func(t *testing.T) {
		for _, dir := range []string{f.Dir, f.Nodes["n1"].DataDir()} {
			harness.Eventually(t, "the spool is empty", func() bool { return len(waiting(dir)) == 0 })
		}
	})
	f.Verify()
}

// waiting returns the files of recordings that were not uploaded yet.
func waiting(dir string) (files []string) {
	_ = filepath.WalkDir(filepath.Join(dir, "recordings-spool"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" && d.Name() != "reserve" {
			files = append(files, path)
		}
		return nil
	})
	return files
}

func recordedShell(t *testing.T, x target) {
	k := harness.Sit(t, x.command([]string{"-tt"}))
	k.Expect(`\$ `)
	k.Send("PS1='ready> '; echo out-$((40+2))")
	k.Expect(`out-42`)
	// What a person sees as one line, though it comes in other pieces.
	k.Send(`printf '\033[5;10Hbelow\033[5;1Hdrawn\n\n'; echo drawn-$((1+1))`)
	k.Expect(`drawn-2`)
	k.Resize(100, 30)
	k.Send("until test \"$(stty size)\" = '30 100'; do :; done; echo resized-$((1+1)); exit 3")
	k.Expect(`resized-2`)
	if r := k.Wait(); r.Code != 3 {
		t.Errorf("exit %d, want 3", r.Code)
	}
	r := kept(t, x.Cluster, started(t, x.Cluster, "alice", x.node, ""))
	if record := wantEvent(t, x.Cluster, map[string]string{"sid": r.sid}, "--event", "session.start").Str("record"); record != "strict" {
		t.Errorf("session.start says record %q, want strict", record)
	}
	frames := r.frames(t, "")
	s := frames[0].GetStart()
	if s.GetSession() != r.sid || s.GetUser() != "alice" || s.GetLogin() != login || s.GetNodeName() != x.node || s.GetKind() != "shell" || !s.GetTerminal() || s.GetColumns() != 80 || s.GetRows() != 24 {
		t.Errorf("the recording begins with %v", s)
	}
	if out := stream(frames, stdout); !strings.Contains(out, "out-42\r\n") || !strings.Contains(out, "resized-2\r\n") {
		t.Errorf("output %q", out)
	}
	if in := stream(frames, stdin); in != "" {
		t.Errorf("what was typed is recorded: %q", in)
	}
	if !slices.ContainsFunc(frames, func(f *accessdv1.Frame) bool {
		return f.GetResize().GetColumns() == 100 && f.GetResize().GetRows() == 30
	}) {
		t.Error("the new size of the terminal is not recorded")
	}
	watched(t, x.Cluster, r, "resized-2")
	harness.Eventually(t, "what was drawn is found", func() bool {
		found := x.Admin("recordings", "search", "drawn below", "--node", x.node)
		return strings.Contains(found, r.sid) && strings.Contains(found, "drawn    below")
	})
	row := listed(t, x.Cluster, r.sid)
	if of := row.Of; of.User != "alice" || of.Login != login || of.NodeName != x.node || of.Kind != "shell" || !of.Terminal || row.Root != r.end.Str("recording_root") {
		t.Errorf("recordings ls shows %+v", row)
	}
}

// watched plays and exports a recording in every form.
func watched(t *testing.T, c *harness.Cluster, r recorded, word string) {
	t.Helper()
	plays(t, c, r, word)
	if lines := c.Admin("recordings", "play", r.sid, "--format", "json"); !strings.Contains(lines, r.sid) || !json.Valid([]byte(strings.SplitN(lines, "\n", 2)[0])) {
		t.Errorf("play --format json: %.300q", lines)
	}
	cast := c.Admin("recordings", "export", r.sid, "--format", "asciicast")
	var header struct{ Version, Width, Height int }
	if err := json.Unmarshal([]byte(strings.SplitN(cast, "\n", 2)[0]), &header); err != nil || header.Version != 2 || header.Width != 80 || header.Height != 24 {
		t.Errorf("the asciicast begins with %.200q: %v", cast, err)
	}
	file := c.File(r.sid+".cast", cast)
	k := harness.Sit(t, exec.Command("asciinema", "play", "--speed", "1000", "--idle-time-limit", "0.01", file))
	k.Expect(word)
	if got := k.Wait(); got.Code != 0 {
		t.Errorf("asciinema play: exit %d", got.Code)
	}
}

// plays wants a recording's text to have word, and nothing that drives a terminal.
func plays(t *testing.T, c *harness.Cluster, r recorded, word string, flags ...string) {
	t.Helper()
	text := c.Admin(append([]string{"recordings", "play", r.sid, "--format", "text"}, flags...)...)
	if !strings.Contains(text, word) || strings.Contains(text, "\x1b") {
		t.Errorf("play --format text %q: %.500q, want %q and no escape sequences", flags, text, word)
	}
}

// listing is a recording as "recordings ls --format json" shows it.
type listing struct {
	Session, Ended, Root string

	Of struct {
		User, Login, Kind, Command string

		NodeName string `json:"node_name"`
		Terminal bool
	}
}

// listed returns a recording that is complete as the list shows it.
func listed(t *testing.T, c *harness.Cluster, sid string) (row listing) {
	t.Helper()
	harness.Eventually(t, "recordings ls shows "+sid, func() bool {
		var rows []listing
		if err := json.Unmarshal([]byte(c.Admin("recordings", "ls", "--format", "json", "--in-progress=false")), &rows); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rows, func(r listing) bool { return r.Session == sid })
		if i >= 0 {
			row = rows[i]
		}
		return i >= 0
	})
	return row
}

// recordedExec runs a command without a terminal; input is what is recorded of
// its input.
func recordedExec(t *testing.T, x target, user, input string) {
	command := "cat >/dev/null; echo to-out-" + user + "; echo to-err >&2; exit 7"
	same(t, x.feed(t, strings.NewReader("typed\n"), nil, command), 7, "to-out-"+user+"\n", "to-err\n")
	r := kept(t, x.Cluster, started(t, x.Cluster, user, x.node, command))
	frames := r.frames(t, "")
	if s := frames[0].GetStart(); s.GetCommand() != command || s.GetKind() != "exec" || s.GetTerminal() {
		t.Errorf("the recording begins with %v", s)
	}
	for of, want := range map[accessdv1.Stream]string{stdout: "to-out-" + user + "\n", stderr: "to-err\n", stdin: input} {
		if got := stream(frames, of); got != want {
			t.Errorf("%v is %q, want %q", of, got, want)
		}
	}
	plays(t, x.Cluster, r, "to-out-"+user)
}

// With recipients no file of any machine has what was on the screen, and each
// recipient opens each part with stock tools; the server cannot.
func TestSealedRecordings(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	identities := map[string]string{"X25519": keys + "/age", "ed25519": keys + "/ed25519", "rsa": keys + "/rsa"}
	must(t, harness.Run(t, nil, "age-keygen", "-o", identities["X25519"]))
	must(t, harness.Run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "auditor", "-f", identities["ed25519"]))
	must(t, harness.Run(t, nil, "ssh-keygen", "-q", "-t", "rsa", "-b", "3072", "-N", "", "-C", "", "-f", identities["rsa"]))
	stranger := keys + "/stranger"
	must(t, harness.Run(t, nil, "age-keygen", "-o", stranger))
	config := fmt.Sprintf("recordings:\n  recipients:\n    - %s\n    - %s\n    - %s\n", strings.TrimSpace(must(t, harness.Run(t, nil, "age-keygen", "-y", identities["X25519"]))),
		strings.TrimSpace(read(t, identities["ed25519"]+".pub")), strings.TrimSpace(read(t, identities["rsa"]+".pub")))
	file := filepath.Join(keys, "accessd.yaml")
	harness.WriteFile(t, file, "limits: {no_penalties: true}\nauth: {argon2: {time: 1, memory_kib: 8192, threads: 1}}\n"+config)
	f := newFleetWith(t, file, recordingKinds...)
	for _, kind := range recordingKinds {
		t.Run(kind, func(t *testing.T) {
			x := f.jump(kind)
			marker := "marker-" + x.node + "-" + "seen-on-the-screen"
			command := "printf 'marker-%s-seen-%s\\n' " + x.node + " on-the-screen; seq 1000000"
			if out := must(t, x.ssh(t, nil, command)); !strings.Contains(out, marker) {
				t.Fatalf("the command printed %.100q", out)
			}
			r := kept(t, f.Cluster, started(t, f.Cluster, "alice", x.node, command))
			if r.end.Str("recording_sealed") != "true" || len(r.parts) < 2 {
				t.Errorf("%d parts, session.end says sealed %q", len(r.parts), r.end.Str("recording_sealed"))
			}
			for name, identity := range identities {
				if out := stream(r.frames(t, identity), stdout); !strings.HasPrefix(out, marker+"\n1\n2\n") || !strings.HasSuffix(out, "\n999999\n1000000\n") {
					t.Errorf("opened with %s: %.100q", name, out)
				}
				plays(t, f.Cluster, r, marker, "--identity", identity)
			}
			for name, args := range map[string][]string{"without an identity": nil, "with a stranger's": {"--identity", stranger}} {
				if r := f.Try(append([]string{"recordings", "play", r.sid, "--format", "text"}, args...)...); r.Code == 0 || strings.Contains(r.Stdout, marker) || !strings.Contains(r.Stderr, "--identity") && !strings.Contains(r.Stderr, "identit") {
					t.Errorf("play %s: exit %d %.100q %q", name, r.Code, r.Stdout, r.Stderr)
				}
			}
			for _, dir := range []string{f.Dir, f.Nodes["n1"].DataDir()} {
				harness.Eventually(t, "the spool is empty", func() bool { return len(waiting(dir)) == 0 })
				contains(t, dir, marker)
			}
		})
	}
}

// contains fails where a file of a directory has text, as it is or compressed.
func contains(t *testing.T, dir, text string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // gone meanwhile
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		n++
		if out, err := exec.Command("zstd", "-dcq", path).Output(); err == nil {
			body = append(body, out...)
		}
		if bytes.Contains(body, []byte(text)) {
			t.Errorf("%s has what was on the screen", path)
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("%d files in %s: %v", n, dir, err)
	}
}

// counting is a command whose output tells at any place what came before it.
const counting = `i=0; while :; do i=$((i+1)); echo "tick $i"; done # `

// kill -9 of who records, early and late, with parts uploaded or not: the next
// start closes the recording, and all that the person saw is in it.
func TestKillMidRecording(t *testing.T) {
	t.Parallel()
	for _, kind := range recordingKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, kind)
			for i, seen := range []int{1, 100_000, 1_500_000} {
				command := counting + fmt.Sprint("round ", i)
				out := crash(t, f.jump(kind), command, seen, func() {
					if kind == "sshd" {
						f.Main.Kill()
						f.StartMain()
						return
					}
					f.Nodes["n1"].Kill()
					f.Nodes["n1"] = f.Nodes["n1"].Again()
				})
				r := kept(t, f.Cluster, started(t, f.Cluster, "alice", kinds[kind], command))
				if r.end.Str("recovered") != "true" {
					t.Errorf("session.end = %v, want it marked recovered", r.end)
				}
				frames := r.frames(t, "")
				if !frames[len(frames)-1].GetEnd().GetRecovered() {
					t.Errorf("the recording ends with %v, want it marked recovered", frames[len(frames)-1])
				}
				ticks(t, stream(frames, stdout), out)
				plays(t, f.Cluster, r, "tick 1\n")
			}
			f.Verify()
		})
	}
	// Where the node records and the proxy is gone, the node goes on until its
	// session has ended, and uploads when there is a proxy again.
	t.Run("the proxy before an accessd node", func(t *testing.T) {
		t.Parallel()
		copies := filepath.Join(t.TempDir(), "bucket")
		config := filepath.Join(t.TempDir(), "accessd.yaml")
		harness.WriteFile(t, config, "limits: {no_penalties: true}\nauth: {argon2: {time: 1, memory_kib: 8192, threads: 1}}\nrecordings: {mirror: \"file://"+copies+"\"}\n")
		f := newFleetWith(t, config, "accessd")
		command := counting + "behind"
		out := crash(t, f.jump("accessd"), command, 600_000, func() { f.Main.Kill(); f.StartMain() })
		f.WaitOnline("n1")
		r := kept(t, f.Cluster, started(t, f.Cluster, "alice", "n1", command))
		ticks(t, stream(r.frames(t, ""), stdout), out)
		f.Verify()
		mirrored(t, f.Cluster, r, copies)
	})
}

// mirrored waits until a mirror has a recording, and opens it there without the
// cluster; a copy that was changed is found.
func mirrored(t *testing.T, c *harness.Cluster, r recorded, dir string) {
	t.Helper()
	key := c.File("audit.pub", c.Admin("ca", "export", "--type", "audit"))
	run := func(args ...string) harness.Result {
		return harness.Run(t, nil, harness.Binary(t), append([]string{"recordings"}, args...)...)
	}
	harness.Eventually(t, "the mirror has the recording", func() bool { return run("verify", "--copy", dir, "--key", key, r.sid).Code == 0 })
	c.Main.Kill()
	if text := must(t, run("play", r.sid, "--copy", dir, "--key", key, "--format", "text")); text != stream(r.frames(t, ""), stdout) {
		t.Errorf("the copy plays as %.100q…", text)
	}
	of := filepath.Join(dir, "recordings", r.sid)
	must(t, harness.Run(t, nil, "sh", "-c", `cd "$0" && sha256sum --quiet -c SHA256SUMS`, of))
	must(t, harness.Run(t, nil, harness.Binary(t), "audit", "check", filepath.Join(of, "recording.proof"), "--key", key))
	harness.WriteFile(t, filepath.Join(of, "000001.part"), "nothing happened")
	for _, r := range []harness.Result{run("verify", "--copy", dir, "--key", key), run("play", r.sid, "--copy", dir, "--key", key, "--format", "text")} {
		if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "is not the") {
			t.Errorf("a copy that was changed: exit %d %.100q %q", r.Code, r.Stdout, r.Stderr)
		}
	}
}

// crash runs a counting command until its person has seen so many bytes, has kill
// end and start again what is in the way, and returns all that they saw.
func crash(t *testing.T, x target, command string, seen int, kill func()) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := x.command(nil, command)
	cmd.Stdout = out
	b := x.background(t, cmd)
	b.eventually(t, fmt.Sprint(seen, " bytes are seen"), func() bool { fi, err := out.Stat(); return err == nil && fi.Size() >= int64(seen) })
	kill()
	if r := b.wait(t); r.Code != 255 {
		t.Errorf("the client exited %d, want 255: %s", r.Code, r.Stderr)
	}
	return read(t, out.Name())
}

// ticks fails unless got is what counting prints, and begins with seen.
func ticks(t *testing.T, got, seen string) {
	t.Helper()
	if !strings.HasPrefix(got, seen) {
		t.Errorf("the recording has %d bytes, the person saw %d, and the one does not begin with the other", len(got), len(seen))
	}
	lines := strings.Split(got, "\n")
	for i, line := range lines[:len(lines)-1] {
		if want := fmt.Sprint("tick ", i+1); line != want {
			t.Errorf("line %d of the recording is %q, want %q", i+1, line, want)
			return
		}
	}
}

// A node that was away brings recordings of long ago. When it is decided that they
// are kept for an hour those that are older go, and the log says why; what is held
// stays.
func TestRecordingsPastTheirTime(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, "recordings: {quota: 100000000}\n")
	c := harness.New(t, "--config", config)
	dir := t.TempDir()
	node := c.NodeArgs("n1", dir)
	harness.Start(t, node...).Kill()

	began := time.Now().Add(-3 * time.Hour)
	r, err := recording.New(recording.Config{Dir: filepath.Join(dir, "recordings-spool", "node"), Now: func() time.Time { return began }})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, command := range []string{"held", "old"} {
		id := names.NewSessionID()
		w, err := r.Begin(recording.Header{Session: id, User: "alice", Login: "root", NodeName: "n1", Kind: "exec", Command: command})
		if err == nil {
			err = w.Print(stdout, []byte(command+"\n"))
		}
		if err == nil {
			_, err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, string(id))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	held, old := ids[0], ids[1]
	harness.Start(t, node...)
	listed(t, c, held)
	listed(t, c, old)
	c.Admin("recordings", "hold", held, "--reason", "a case in court")

	harness.WriteFile(t, config, "recordings: {quota: 100000000, retain: 1h}\n")
	if code := c.Main.Stop(); code != 0 {
		t.Fatalf("stop = %d", code)
	}
	c.StartMain()
	e := wantEvent(t, c, map[string]string{"sid": old}, "--event", "recording.delete")
	if reason := e.Str("reason"); reason != "older than 1h0m0s" || e.Str("recording_root") == "" {
		t.Errorf("recording.delete is %v, want the reason and the root", e)
	}
	harness.Eventually(t, "the files are gone", func() bool { return len(stored(t, c, old)) == 0 })
	if text := c.Admin("recordings", "play", held, "--format", "text"); text != "held\n" {
		t.Errorf("what is held plays as %q", text)
	}
	if n := len(c.Events("--event", "recording.delete")); n != 1 {
		t.Errorf("%d recordings were removed, want 1", n)
	}
	c.Verify()
}

// A full disk under the node's recordings: where they must be, nobody begins a
// session and who is in one is told why it ends; where best effort is enough it
// goes on and the log says what is missing. Both go by themselves.
func TestRecordingDiskFull(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	dir := t.TempDir()
	spool := filepath.Join(dir, "recordings-spool")
	f.host.Must("sh", "-c", `mkdir -m 700 "$0" && mount -t tmpfs -o size=6m,mode=700 tmpfs "$0"`, spool)
	f.host.Start(f.NodeArgs("small", dir)...)
	f.WaitOnline("small")
	f.addHost(t, "small")
	x := target{fleet: f, kind: named, node: "small-jump"}
	relaxed := x.also(t, "relaxed", "record: best_effort")

	shell := func(x target) *harness.Terminal {
		k := harness.Sit(t, x.command([]string{"-tt"}))
		k.Expect(`\$ `)
		k.Send("PS1='ready> '; echo in$((1+1))")
		k.Expect(`in2`)
		return k
	}
	strict, lax := shell(x), shell(relaxed)
	full := func() {
		f.host.Must("sh", "-c", `dd if=/dev/zero of="$(mktemp "$0/fillerXXXXXX")" bs=4k status=none 2>/dev/null; true`, spool)
	}
	full()
	strict.Send("while :; do echo filling the disk; done")
	strict.Expect(`(?i)record`)
	if r := strict.Wait(); r.Code == 0 {
		t.Error("a session that must be recorded and cannot be ended well")
	}
	if end := wantEvent(t, f.Cluster, map[string]string{"user": "alice", "node_name": "small"}, "--event", "session.end"); !strings.Contains(end.Str("reason"), "record") {
		t.Errorf("session.end gives the reason %q", end.Str("reason"))
	}
	// What was kept back for the end of recordings is free now, and is filled, too.
	var r harness.Result
	harness.Eventually(t, "a new session is refused", func() bool {
		full()
		r = x.ssh(t, nil, "echo in")
		return r.Code != 0
	})
	if r.Stdout != "" || !strings.Contains(r.Stderr, "record") || !strings.Contains(r.Stderr, "no space left on device") {
		t.Errorf("a new session: exit %d %q %q; want a refusal that names the cause", r.Code, r.Stdout, r.Stderr)
	}
	full()
	lax.Send("seq 20000; echo goes-$((1+1))") // more than there is room for in the journal's last page
	lax.Expect(`goes-2`)
	wantEvent(t, f.Cluster, map[string]string{"sid": started(t, f.Cluster, "relaxed", "small", "")}, "--event", "recording.gap")
	same(t, relaxed.ssh(t, nil, "echo unrecorded"), 0, "unrecorded\n", "")

	f.host.Must("sh", "-c", `rm -f "$0"/filler*`, spool)
	harness.Eventually(t, "sessions are recorded again", func() bool { return x.ssh(t, nil, "echo again").Code == 0 })
	kept(t, f.Cluster, started(t, f.Cluster, "alice", "small", "echo again"))
	kept(t, f.Cluster, started(t, f.Cluster, "alice", "small", ""))
	lax.Send("echo after-$((1+1)); exit")
	lax.Expect(`after-2`)
	lax.Wait()
	frames := kept(t, f.Cluster, started(t, f.Cluster, "relaxed", "small", "")).frames(t, "")
	if !slices.ContainsFunc(frames, func(f *accessdv1.Frame) bool { return f.GetGap() != nil }) || !strings.Contains(stream(frames, stdout), "after-2") {
		t.Errorf("the recording marks no gap, or has nothing after it: %q", stream(frames, stdout))
	}
	f.Verify()
}

// The authority is away while parts close: the session goes on and ends, and all
// of it arrives when the authority is back.
func TestRecordingWithoutAuthority(t *testing.T) {
	t.Parallel()
	c := newSplit(t)
	alice := c.User("alice", "access").Configure()
	cmd := exec.Command("ssh", "-F", alice.Config, "-o", "BatchMode=yes", "n1", "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill() })
	timer := time.AfterFunc(long, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	body := noise(1_200_000)
	through := func(p []byte) {
		t.Helper()
		go func() { _, _ = in.Write(p) }()
		got := make([]byte, len(p))
		if _, err := io.ReadFull(out, got); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("through the session: %v", err)
		}
	}
	through(body[:400_000])
	sid := started(t, c.Cluster, "alice", "n1", "cat")
	harness.Eventually(t, "the first part is in the store", func() bool { return len(stored(t, c.Cluster, sid)) > 0 })
	c.Main.Kill()
	through(body[400_000:])
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("without the authority the session ended with %v", err)
	}
	c.StartMain()
	c.WaitOnline("n1")
	r := kept(t, c.Cluster, sid)
	if got := stream(r.frames(t, ""), stdout); got != string(body) {
		t.Errorf("the recording has %d bytes, want the %d of the session", len(got), len(body))
	}
	c.Verify()
}

// hostileOutput is what a terminal must not be made to do by somebody's command.
const hostileOutput = "\x1b]52;c;aGk=\x07\x1b]0;title\x07\x1b[2J\x1bP+q544e\x1b\\\u202egnp\x9b31m\xff\x07"

// Names, commands and output that drive a terminal reach the auditor's only as
// something to read.
func TestHostileRecordings(t *testing.T) {
	t.Parallel()
	f := newFleet(t, recordingKinds...)
	for _, kind := range recordingKinds {
		t.Run(kind, func(t *testing.T) {
			x := f.jump(kind)
			command := "printf '%s\\n' '" + hostileOutput + "' # " + kind + "\n: accepted for root"
			must(t, x.ssh(t, nil, command))
			var sid string
			harness.Eventually(t, "the session began", func() bool {
				for _, e := range f.Events("--event", "session.start", "--node", x.node) {
					if strings.Contains(e.Str("command"), "# "+kind+"\n") {
						sid = e.Str("sid")
					}
				}
				return sid != ""
			})
			r := kept(t, f.Cluster, sid)
			if out := stream(r.frames(t, ""), stdout); out != hostileOutput+"\n" {
				t.Errorf("recorded %q, want the bytes as they were", out)
			}
			plain := func(what, text string, lines bool) {
				t.Helper()
				for _, c := range text {
					if c < ' ' && c != '\n' && c != '\t' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == '\u202e' || c == '\ufffd' && !lines {
						t.Errorf("%s has the character %U: %q", what, c, text)
						return
					}
				}
				if lines && strings.Contains(text, "\n: accepted for root") {
					t.Errorf("%s: a command made a line of its own: %q", what, text)
				}
			}
			plain("recordings ls", f.Admin("recordings", "ls"), true)
			plain("audit ls", f.Admin("audit", "ls", "--session", sid), true)
			plain("play --format text", f.Admin("recordings", "play", sid, "--format", "text"), false)
			k := harness.Sit(t, exec.Command(harness.Binary(t), "--data-dir", f.Dir, "recordings", "play", sid))
			for _, sequence := range []string{"\x1b]52", "\x1b]0;", "\x1bP", "\x9b31m"} {
				if screen := k.Wait().Stderr; strings.Contains(screen, sequence) {
					t.Errorf("play sends %q to the auditor's terminal: %q", sequence, screen)
				}
			}
			if row := listed(t, f.Cluster, sid); !strings.Contains(row.Of.Command, "\x1b]52") {
				t.Errorf("as JSON the command is %q", row.Of.Command)
			}
		})
	}
}

// A part that was changed, or is gone, does not play, and the one who plays is
// told which it is.
func TestTamperedRecording(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "accessd")
	x := f.jump("accessd")
	must(t, x.ssh(t, nil, "seq 1000000"))
	r := kept(t, f.Cluster, started(t, f.Cluster, "alice", "n1", "seq 1000000"))
	if len(r.parts) < 3 {
		t.Fatalf("%d parts, want several", len(r.parts))
	}
	body := read(t, r.parts[1])
	other := read(t, r.parts[2])
	for name, edit := range map[string]func(){
		"a byte is changed": func() {
			harness.WriteFile(t, r.parts[1], body[:len(body)/2]+string(body[len(body)/2]^1)+body[len(body)/2+1:])
		},
		"its end is cut": func() { harness.WriteFile(t, r.parts[1], body[:len(body)-10]) },
		"it is gone":     func() { _ = os.Remove(r.parts[1]) },
		"it is another":  func() { harness.WriteFile(t, r.parts[1], other) },
	} {
		t.Run(name, func(t *testing.T) {
			edit()
			got := f.Try("recordings", "play", r.sid, "--format", "text")
			if got.Code == 0 || !strings.Contains(got.Stderr, "part 2") {
				t.Errorf("play: exit %d, %q; want a failure that names part 2", got.Code, got.Stderr)
			}
			harness.WriteFile(t, r.parts[1], body)
			if got := f.Try("recordings", "play", r.sid, "--format", "text"); got.Code != 0 || !strings.HasSuffix(strings.TrimSpace(got.Stdout), "1000000") {
				t.Errorf("as it was it does not play: exit %d %q", got.Code, got.Stderr)
			}
		})
	}
}
