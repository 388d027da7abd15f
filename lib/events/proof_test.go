//go:build unix

package events

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	stock "github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

func mustProve(t testing.TB, l *Log, event []byte) []byte {
	t.Helper()
	ev, err := ParseEvent(event)
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Prove(t.Context(), ev.UID)
	if err != nil {
		t.Fatalf("Prove: %v", err)
	}
	return p
}

// Each entry of a log can be proven while the log grows, and the proof of an
// event that came long ago is as good as that of the newest.
func TestProve(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	events := numbered(t, 0, specimenSize)
	done := 0
	for _, size := range []int{1, 2, 3, 255, 256, 257, 511, 512, specimenSize} {
		mustAppend(t, l, events[done:size]...)
		done = size
		for _, i := range []int{0, size / 2, size - 1} {
			p := mustProve(t, l, events[i])
			got, err := CheckProof(p, key.verifier)
			if err != nil || got.Entry != uint64(i) || !bytes.Equal(got.Event, events[i]) || got.Origin != "example.com/audit" || got.Size <= uint64(i) {
				t.Fatalf("proof of entry %d of %d = %+v, %v", i, size, got, err)
			}
		}
	}
}

// What is written is read by the library of those who wrote the format, and
// holds what it should.
func TestProofIsOfTheFormat(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	events := numbered(t, 0, 300)
	mustAppend(t, l, events...)
	data := mustProve(t, l, events[299])
	var p stock.TLogProof
	if err := p.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if p.Index != 299 || !bytes.Equal(p.ExtraData, events[299]) || !bytes.HasPrefix(p.Checkpoint, []byte("example.com/audit\n300\n")) {
		t.Errorf("the library reads %d, %q, %q", p.Index, p.ExtraData, p.Checkpoint)
	}
	if again := p.Marshal(); !bytes.Equal(again, data) {
		t.Errorf("the library writes\n%s\nwant\n%s", again, data)
	}
}

// The longest event has a proof, too, and the bound of a proof is not below it.
func TestProofOfTheLongestEvent(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	long := encode(t, Event{Name: Exec, User: "alice", Success: true, Time: testTime, Fields: map[string]any{
		"command": strings.Repeat("\x01", MaxEvent),
	}})
	mustAppend(t, l, long)
	data := mustProve(t, l, long)
	if got, err := CheckProof(data, key.verifier); err != nil || !bytes.Equal(got.Event, long) {
		t.Errorf("CheckProof of %d bytes: %v", len(data), err)
	}
}

func TestProveRefuses(t *testing.T) {
	key := newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	mustAppend(t, l, numbered(t, 0, 3)...)
	if _, err := l.Prove(t.Context(), "nothing"); fault.KindOf(err) != fault.BadInput {
		t.Errorf("Prove of no uid: %v", err)
	}
	if _, err := l.Prove(t.Context(), uuid.NewString()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Prove of an unknown uid: %v", err)
	}
}

// F28: whoever changes anything of a proof is told what does not hold.
func TestF28ProofTampering(t *testing.T) {
	key, other := newTestKey(t, "example.com/audit"), newTestKey(t, "example.com/audit")
	l := openTestLog(t, t.TempDir(), key)
	events := numbered(t, 0, 300)
	mustAppend(t, l, events[:200]...)
	old := mustProve(t, l, events[100])
	mustAppend(t, l, events[200:]...)
	good := mustProve(t, l, events[250])
	lines := strings.Split(string(good), "\n")
	extra := func(event string) string { return "extra " + base64.StdEncoding.EncodeToString([]byte(event)) }
	edit := func(i int, line string) string {
		edited := slices.Clone(lines)
		edited[i] = line
		return strings.Join(edited, "\n")
	}
	_, checkpoint, _ := strings.Cut(string(good), "\n\n")
	head := strings.TrimSuffix(string(good), checkpoint)
	oldHead, oldCheckpoint, _ := strings.Cut(string(old), "\n\n")
	signature := strings.Index(checkpoint, "— ")
	for _, c := range []struct {
		name, proof, key string
		kind             fault.Kind
		want             string
	}{
		{"the event", edit(1, extra(strings.Replace(string(events[250]), "alice", "mallo", 1))), key.verifier, fault.Conflict, "this event is not entry 250"},
		{"another event", edit(1, extra(string(events[249]))), key.verifier, fault.Conflict, "this event is not entry 250"},
		{"the number", edit(2, "index 251"), key.verifier, fault.Conflict, "this event is not entry 251"},
		{"a number behind the end", edit(2, "index 300"), key.verifier, fault.Conflict, "entry 300, but its checkpoint signs 300"},
		{"two hashes swapped", strings.Replace(strings.Replace(strings.Replace(string(good), lines[3], "x", 1), lines[4], lines[3], 1), "\nx\n", "\n"+lines[4]+"\n", 1), key.verifier, fault.Conflict, "not entry 250"},
		{"a hash left out", strings.Replace(string(good), lines[3]+"\n", "", 1), key.verifier, fault.Conflict, "hashes, which is not what entry 250 of 300 takes"},
		{"a hash too many", strings.Replace(string(good), lines[3], lines[3]+"\n"+lines[3], 1), key.verifier, fault.Conflict, "hashes, which is not what entry 250 of 300 takes"},
		{"the size", strings.Replace(string(good), "\n300\n", "\n301\n", 1), key.verifier, fault.Conflict, "it was changed after it was signed"},
		{"an older checkpoint", head + oldCheckpoint, key.verifier, fault.Conflict, "entry 250, but its checkpoint signs "},
		{"a newer checkpoint", oldHead + "\n\n" + checkpoint, key.verifier, fault.Conflict, "hashes, which is not what"},
		{"no signature", head + checkpoint[:signature], key.verifier, fault.Conflict, "not a signed note"},
		{"another's key", string(good), other.verifier, fault.Conflict, "it is signed by"},
		{"signed by another", head + string(sign(t, checkpoint[:signature-1], other)), key.verifier, fault.Conflict, "it is signed by"},
		{"another log of the same signer", head + string(sign(t, strings.Replace(checkpoint[:signature-1], "/audit\n", "/other\n", 1), key)), key.verifier, fault.Conflict, `it is of the log "example.com/other"`},
		{"no key", string(good), "nothing", fault.BadInput, "verifier key"},
		{"nothing", "", key.verifier, fault.BadInput, "not a proof: no empty line"},
		{"something else", "hello\n\nworld\n", key.verifier, fault.BadInput, `not a proof: its first line is "hello"`},
		{"another version", edit(0, "c2sp.org/tlog-proof@v2"), key.verifier, fault.BadInput, "not a proof: its first line"},
		{"no event", strings.Replace(string(good), lines[1]+"\n", "", 1), key.verifier, fault.BadInput, "its second line is not the event"},
		{"a number with zeros", edit(2, "index 0250"), key.verifier, fault.BadInput, "line 3 is"},
		{"a hash that is none", edit(4, "AAAA"), key.verifier, fault.BadInput, "line 5 is"},
		{"too many lines", strings.Replace(string(good), lines[3], strings.TrimSpace(strings.Repeat(lines[3]+"\n", 70)), 1), key.verifier, fault.BadInput, "want 3 to"},
		{"too long", string(good) + strings.Repeat("x", MaxProof), key.verifier, fault.BadInput, "want at most"},
		{"DOS line ends", strings.Replace(string(good), lines[1], lines[1]+"\r", 1), key.verifier, fault.BadInput, "not in canonical form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := CheckProof([]byte(c.proof), c.key)
			if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("CheckProof = %v (%v), want %v and %q", err, fault.KindOf(err), c.kind, c.want)
			}
		})
	}
}

func sign(t testing.TB, text string, key testKey) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: text}, key.signer)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Whatever is read is refused, or is written as it was read.
func FuzzProof(f *testing.F) {
	key := newTestKey(f, "example.com/audit")
	l := openTestLog(f, f.TempDir(), key)
	events := numbered(f, 0, 5)
	mustAppend(f, l, events...)
	f.Add(mustProve(f, l, events[0]))
	f.Add(mustProve(f, l, events[4]))
	f.Add(tlogProof{event: events[1], checkpoint: []byte("x")}.marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseProof(data)
		if err == nil && !bytes.Equal(p.marshal(), data) {
			t.Errorf("%q becomes %q", data, p.marshal())
		}
		if _, err := CheckProof(data, key.verifier); err == nil && !slices.ContainsFunc(events, func(e []byte) bool { return bytes.Equal(e, p.event) }) {
			t.Errorf("%q proves an event that is not in the log", data)
		}
	})
}
