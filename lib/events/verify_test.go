//go:build unix

package events

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

// specimen is a closed log on disk, and what somebody else kept of it.
type specimen struct {
	dir    string
	key    testKey
	older  string // a copy of dir from when it held olderSize entries
	events [][]byte
}

const (
	specimenSize = 700 // two full bundles and a partial one
	olderSize    = 300
)

func newSpecimen(t *testing.T) specimen {
	t.Helper()
	s := specimen{dir: t.TempDir(), key: newTestKey(t, "example.com/audit"), events: numbered(t, 0, specimenSize)}
	l := openTestLog(t, s.dir, s.key)
	mustAppend(t, l, s.events[:olderSize]...)
	mustVerify(t, l, olderSize) // waits until it is signed
	s.older = s.copy(t)
	mustAppend(t, l, s.events[olderSize:]...)
	mustVerify(t, l, specimenSize)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s specimen) copy(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// entriesOf splits a bundle; joined puts it together again.
func entriesOf(t *testing.T, bundle []byte) (out [][]byte) {
	t.Helper()
	for len(bundle) > 0 {
		n := 2 + int(binary.BigEndian.Uint16(bundle))
		out = append(out, bundle[:n:n])
		bundle = bundle[n:]
	}
	return out
}

func joined(entries [][]byte) []byte { return bytes.Join(entries, nil) }

func replace(t *testing.T, path, old, with string) {
	t.Helper()
	data := read(t, path)
	if bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("%q is in %s %d times", old, path, bytes.Count(data, []byte(old)))
	}
	write(t, path, bytes.Replace(data, []byte(old), []byte(with), 1))
}

func remove(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	bundle0   = "tile/entries/000"
	bundle1   = "tile/entries/001"
	bundle2   = "tile/entries/002.p/188"
	tile0     = "tile/0/000"
	tile2     = "tile/0/002.p/188"
	upperTile = "tile/1/000.p/2"
)

// F28: each kind of tampering is found, and the first wrong file and entry named.
func TestF28TamperingIsFound(t *testing.T) {
	s := newSpecimen(t)
	for _, tt := range []struct {
		name  string
		harm  func(t *testing.T, at func(string) string)
		file  string
		entry int64
	}{
		{"edit an entry", func(t *testing.T, at func(string) string) {
			replace(t, at(bundle1), `"command":"300"`, `"command":"301"`)
		}, bundle1, 300},
		{"edit the last entry", func(t *testing.T, at func(string) string) {
			replace(t, at(bundle2), `"command":"699"`, `"command":"698"`)
		}, bundle2, 699},
		{"edit an entry and its hash", func(t *testing.T, at func(string) string) {
			editWithHash(t, at(bundle0), at(tile0), 17)
		}, upperTile, -1},
		{"edit an entry of the last block and its hash", func(t *testing.T, at func(string) string) {
			editWithHash(t, at(bundle2), at(tile2), 17)
		}, "checkpoint", -1},
		{"replace the whole tree", func(t *testing.T, at func(string) string) {
			other := t.TempDir()
			l := openTestLog(t, other, s.key)
			mustAppend(t, l, numbered(t, 10_000, specimenSize)...)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			remove(t, at("tile"))
			if err := os.CopyFS(at("tile"), os.DirFS(filepath.Join(other, "tile"))); err != nil {
				t.Fatal(err)
			}
		}, "checkpoint", -1},
		{"drop an entry", func(t *testing.T, at func(string) string) {
			e := entriesOf(t, read(t, at(bundle0)))
			write(t, at(bundle0), joined(slices.Delete(e, 5, 6)))
		}, bundle0, 0},
		{"insert an entry", func(t *testing.T, at func(string) string) {
			e := entriesOf(t, read(t, at(bundle0)))
			write(t, at(bundle0), joined(slices.Insert(e, 5, e[9])))
		}, bundle0, 0},
		{"add an entry to the last bundle", func(t *testing.T, at func(string) string) {
			e := entriesOf(t, read(t, at(bundle2)))
			write(t, at(bundle2), joined(append(e, e[0])))
		}, bundle2, 512},
		{"replace an entry by another", func(t *testing.T, at func(string) string) {
			e := entriesOf(t, read(t, at(bundle0)))
			e[7] = e[8]
			write(t, at(bundle0), joined(e))
		}, bundle0, 7},
		{"reorder entries", func(t *testing.T, at func(string) string) {
			e := entriesOf(t, read(t, at(bundle0)))
			e[100], e[200] = e[200], e[100]
			write(t, at(bundle0), joined(e))
		}, bundle0, 100},
		{"swap two bundles", func(t *testing.T, at func(string) string) {
			swapFiles(t, at(bundle0), at(bundle1))
		}, bundle0, 0},
		{"swap two bundles and their tiles", func(t *testing.T, at func(string) string) {
			swapFiles(t, at(bundle0), at(bundle1))
			swapFiles(t, at(tile0), at("tile/0/001"))
		}, upperTile, -1},
		{"truncate a bundle", func(t *testing.T, at func(string) string) {
			data := read(t, at(bundle1))
			write(t, at(bundle1), data[:len(data)-1])
		}, bundle1, 256},
		{"empty a bundle", func(t *testing.T, at func(string) string) { write(t, at(bundle1), nil) }, bundle1, 256},
		{"drop a bundle", func(t *testing.T, at func(string) string) { remove(t, at(bundle1)) }, bundle1, 256},
		{"drop the last bundle", func(t *testing.T, at func(string) string) { remove(t, at(bundle2)) }, bundle2, 512},
		{"drop a tile", func(t *testing.T, at func(string) string) { remove(t, at("tile/0/001")) }, "tile/0/001", 256},
		{"truncate a tile", func(t *testing.T, at func(string) string) {
			write(t, at(tile0), read(t, at(tile0))[:32*200])
		}, tile0, 0},
		{"edit a tile", func(t *testing.T, at func(string) string) {
			data := read(t, at(tile0))
			data[32*9] ^= 1
			write(t, at(tile0), data)
		}, bundle0, 9},
		{"edit an upper tile", func(t *testing.T, at func(string) string) {
			data := read(t, at(upperTile))
			data[40] ^= 1
			write(t, at(upperTile), data)
		}, upperTile, -1},
		{"drop an upper tile", func(t *testing.T, at func(string) string) { remove(t, at(upperTile)) }, upperTile, -1},
		{"a link in place of a bundle", func(t *testing.T, at func(string) string) {
			remove(t, at(bundle1))
			if err := os.Symlink("/etc/passwd", at(bundle1)); err != nil {
				t.Fatal(err)
			}
		}, bundle1, 256},
		{"a huge bundle", func(t *testing.T, at func(string) string) {
			if err := os.Truncate(at(bundle1), maxBundle+1); err != nil {
				t.Fatal(err)
			}
		}, bundle1, 256},
		{"an older checkpoint", func(t *testing.T, at func(string) string) {
			write(t, at("checkpoint"), read(t, s.older, "checkpoint"))
		}, "checkpoint", olderSize},
		{"an older checkpoint, and no state", func(t *testing.T, at func(string) string) {
			write(t, at("checkpoint"), read(t, s.older, "checkpoint"))
			remove(t, at(".state"))
		}, "checkpoint", olderSize},
		{"sign again with another key", func(t *testing.T, at func(string) string) {
			resign(t, at("checkpoint"), newTestKey(t, "example.com/audit"), func(text string) string { return text })
		}, "checkpoint", -1},
		{"a checkpoint of another log of the same owner", func(t *testing.T, at func(string) string) {
			resign(t, at("checkpoint"), s.key, func(text string) string { return strings.Replace(text, "/audit", "/other", 1) })
		}, "checkpoint", -1},
		{"a checkpoint that claims more", func(t *testing.T, at func(string) string) {
			replace(t, at("checkpoint"), "\n700\n", "\n701\n")
		}, "checkpoint", -1},
		{"an unsigned checkpoint", func(t *testing.T, at func(string) string) {
			text, _, _ := bytes.Cut(read(t, at("checkpoint")), []byte("\n\n"))
			write(t, at("checkpoint"), append(text, '\n'))
		}, "checkpoint", -1},
		{"an empty checkpoint", func(t *testing.T, at func(string) string) { write(t, at("checkpoint"), nil) }, "checkpoint", -1},
		{"no checkpoint", func(t *testing.T, at func(string) string) { remove(t, at("checkpoint")) }, "checkpoint", -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := s.copy(t)
			tt.harm(t, func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) })
			_, err := Verify(t.Context(), dir, s.key.verifier)
			wrong, ok := errors.AsType[*TamperedError](err)
			if !ok || err == nil {
				t.Fatalf("Verify = %v, want it found", err)
			}
			if wrong.File != tt.file || wrong.Entry != tt.entry {
				t.Errorf("Verify blames %s, entry %d (%v); want %s, entry %d", wrong.File, wrong.Entry, err, tt.file, tt.entry)
			}
			if fault.Public(err) == "internal error" || fault.Hint(err) == "" {
				t.Errorf("a person reads %q, hint %q", fault.Public(err), fault.Hint(err))
			}
		})
	}
}

func editWithHash(t *testing.T, bundle, tile string, i int) {
	t.Helper()
	e := entriesOf(t, read(t, bundle))
	e[i] = bytes.Replace(e[i], []byte("alice"), []byte("mallo"), 1)
	write(t, bundle, joined(e))
	hashes := read(t, tile)
	copy(hashes[32*i:], rfc6962.DefaultHasher.HashLeaf(e[i][2:]))
	write(t, tile, hashes)
}

func swapFiles(t *testing.T, a, b string) {
	t.Helper()
	x, y := read(t, a), read(t, b)
	write(t, a, y)
	write(t, b, x)
}

// resign signs the checkpoint at path with key after edit.
func resign(t *testing.T, path string, key testKey, edit func(string) string) {
	t.Helper()
	text, _, _ := strings.Cut(string(read(t, path)), "\n\n")
	signed, err := note.Sign(&note.Note{Text: edit(text + "\n")}, key.signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, signed)
}

// F28: what leaves the content alone is no fault.
func TestVerifyTakesACopy(t *testing.T) {
	s := newSpecimen(t)
	dir := s.copy(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	long := time.Unix(1, 0)
	for _, name := range []string{bundle0, "checkpoint", tile0} { // another mtime
		if err := os.Chtimes(at(name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("tile/entries/0001234567"), []byte("left by a crash"))
	remove(t, at(indexName), at("lock"))
	want, err := Verify(t.Context(), s.dir, s.key.verifier)
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []bool{true, false} {
		if !state {
			remove(t, at(".state"))
		}
		got, err := Verify(t.Context(), dir, s.key.verifier, read(t, s.older, "checkpoint"), read(t, s.dir, "checkpoint"))
		if err != nil || !reflect.DeepEqual(got, want) || got.Size != specimenSize || got.Origin != "example.com/audit" {
			t.Errorf("Verify = %+v, %v; want %+v", got, err, want)
		}
	}
}

// F28: a log that was cut back or replaced as a whole agrees with itself; a
// checkpoint held elsewhere finds it.
func TestF28RollbackNeedsAnEarlierCheckpoint(t *testing.T) {
	s := newSpecimen(t)
	kept := read(t, s.dir, "checkpoint")
	if _, err := Verify(t.Context(), s.older, s.key.verifier); err != nil {
		t.Errorf("an honest old copy: Verify = %v", err)
	}
	_, err := Verify(t.Context(), s.older, s.key.verifier, kept)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.Entry != olderSize || wrong.File != "checkpoint" {
		t.Errorf("rolled back: Verify = %v", err)
	}

	fork := t.TempDir() // the owner's own second history
	l := openTestLog(t, fork, s.key)
	mustAppend(t, l, s.events[:100]...)
	mustAppend(t, l, numbered(t, 5000, 900)...)
	mustVerify(t, l, 1000)
	_, err = l.Verify(t.Context(), kept)
	if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != "checkpoint" {
		t.Errorf("forked: Verify = %v", err)
	}
	stranger := newTestKey(t, "example.com/audit")
	resign(t, filepath.Join(s.older, "checkpoint"), stranger, func(s string) string { return s })
	if _, err = Verify(t.Context(), s.dir, s.key.verifier, read(t, s.older, "checkpoint")); err == nil {
		t.Error("an earlier checkpoint of another key was taken")
	}
}

func TestVerifyRefuses(t *testing.T) {
	s := newSpecimen(t)
	for _, key := range []string{"", "x", "example.com+1234+xx", newTestKey(t, "example.com/audit").verifier, newTestKey(t, "other").verifier} {
		if _, err := Verify(t.Context(), s.dir, key); err == nil {
			t.Errorf("Verify with key %q passed", key)
		}
	}
	if _, err := Verify(t.Context(), filepath.Join(s.dir, "none"), s.key.verifier); !fault.Is(err, fault.NotFound) {
		t.Errorf("Verify of no directory = %v, want not found", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, s.dir, s.key.verifier); !fault.Is(err, fault.Unavailable) {
		t.Errorf("stopped Verify = %v, want unavailable", err)
	}
}

func TestVerifyOfALiveLog(t *testing.T) {
	l := openTestLog(t, t.TempDir(), newTestKey(t, "example.com/audit"))
	mustVerify(t, l, 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i += 50 {
			select {
			case <-stop:
				return
			default:
				mustAppend(t, l, numbered(t, i, 50)...)
			}
		}
	}()
	for range 5 {
		if _, err := l.Verify(t.Context()); err != nil {
			t.Errorf("Verify = %v", err)
		}
	}
	close(stop)
	<-done
	mustVerify(t, l, int(l.Size()))
}

// The tree has a third level from 65536 entries on.
func TestVerifyOfADeepLog(t *testing.T) {
	dir, key := t.TempDir(), newTestKey(t, "example.com/audit")
	l := openTestLog(t, dir, key)
	const n = 66_000
	for first := 0; first < n; first += 1000 { // into the tree alone: the index has no part in this
		entries := make([]entry, 1000)
		for i := range entries {
			entries[i].data = fmt.Append(nil, first+i)
		}
		if _, err := l.grow(t.Context(), entries); err != nil {
			t.Fatal(err)
		}
	}
	mustVerify(t, l, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		file string
		at   int
	}{{"tile/2/000.p/1", 5}, {"tile/1/000", 32 * 200}, {"tile/1/001.p/1", 0}} {
		path := filepath.Join(dir, tt.file)
		data := read(t, path)
		data[tt.at] ^= 1
		write(t, path, data)
		_, err := Verify(t.Context(), dir, key.verifier)
		if wrong, ok := errors.AsType[*TamperedError](err); !ok || wrong.File != tt.file {
			t.Errorf("%s edited: Verify = %v", tt.file, err)
		}
		data[tt.at] ^= 1
		write(t, path, data)
	}
}

// An authority does not go on signing a history that is not the one it signed.
func TestOpenLogRefusesAnotherHistory(t *testing.T) {
	s := newSpecimen(t)
	for _, tt := range []struct {
		name string
		harm func(at func(string) string)
	}{
		{"no checkpoint", func(at func(string) string) { remove(t, at("checkpoint")) }},
		{"another's checkpoint", func(at func(string) string) {
			resign(t, at("checkpoint"), newTestKey(t, "example.com/audit"), func(s string) string { return s })
		}},
		{"no state", func(at func(string) string) { remove(t, at(".state")) }},
		{"older state", func(at func(string) string) { write(t, at(treeState), read(t, s.older, treeState)) }},
		{"another root", func(at func(string) string) {
			write(t, at(treeState), bytes.Replace(read(t, at(treeState)), []byte(`"root":"`), []byte(`"root":"AAAA`), 1))
		}},
		{"garbage in the state", func(at func(string) string) { write(t, at(treeState), []byte("{")) }},
		{"edited right edge", func(at func(string) string) {
			data := read(t, at(tile2))
			data[0] ^= 1
			write(t, at(tile2), data)
		}},
		{"no tiles", func(at func(string) string) { remove(t, at("tile")) }},
		{"rolled back behind the index", func(at func(string) string) {
			for _, name := range []string{"tile", ".state", "checkpoint"} {
				remove(t, at(name))
			}
			for _, name := range []string{"tile", ".state"} {
				if err := os.CopyFS(at(name), os.DirFS(filepath.Join(s.older, name))); err != nil {
					t.Fatal(err)
				}
			}
			write(t, at("checkpoint"), read(t, s.older, "checkpoint"))
		}},
		{"replaced by a longer one", func(at func(string) string) {
			index := read(t, at(indexName))
			remove(t, at(""))
			l := openTestLog(t, at(""), s.key)
			mustAppend(t, l, numbered(t, 5000, 900)...)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			write(t, at(indexName), index)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := s.copy(t)
			tt.harm(func(name string) string { return filepath.Join(dir, name) })
			l, err := OpenLog(t.Context(), LogConfig{Dir: dir, Signer: s.key.signer, VerifierKey: s.key.verifier})
			if err == nil {
				l.Close()
			}
			if err == nil || fault.KindOf(err) != fault.Internal || fault.Hint(err) == "" {
				t.Errorf("OpenLog = %v, want an internal error with a hint", err)
			}
		})
	}
	l := openTestLog(t, s.copy(t), s.key) // an honest copy opens
	checkSame(t, "query", contents(t, l, Filter{}), s.events)
}

// The golden log: files that a past version wrote stay readable, and the same
// events under the same key still give the same files.
func TestGoldenLog(t *testing.T) {
	dir := filepath.Join("testdata", "log")
	if *update {
		remove(t, dir)
		secret, verifier, err := NewAuditKey("golden.example/audit")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, dir+".skey", []byte(secret))
		write(t, dir+".vkey", []byte(verifier))
	}
	signer, err := note.NewSigner(string(read(t, dir+".skey")))
	if err != nil {
		t.Fatal(err)
	}
	key := testKey{signer, string(read(t, dir+".vkey"))}
	fresh := t.TempDir()
	l := openTestLog(t, fresh, key)
	var events [][]byte
	lines := bytes.Split(bytes.TrimSpace(read(t, dir+".jsonl")), []byte("\n")) // what a past version's table had
	for i, line := range slices.Repeat(lines, 10)[:260] {
		e, err := ParseEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		e.UID = fmt.Sprintf("0195510c-9a40-7bb2-8c51-%012d", i)
		events = append(events, e.appendTo(nil))
	}
	mustAppend(t, l, events...)
	mustVerify(t, l, len(events))
	golden(t, "log.tlog-proof", mustProve(t, l, events[257]))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files := []string{"checkpoint", "tile/entries/000", "tile/entries/001.p/4", "tile/0/000", "tile/0/001.p/4", "tile/1/000.p/1"}
	for _, name := range files {
		if *update {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		golden(t, filepath.Join("log", name), read(t, fresh, name))
	}
	r, err := Verify(t.Context(), dir, key.verifier)
	if err != nil || r.Size != 260 {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	p, err := CheckProof(read(t, dir+".tlog-proof"), key.verifier)
	if err != nil || p.Entry != 257 || p.Size != 260 {
		t.Errorf("CheckProof = %+v, %v", p, err)
	}
}

func TestCheckHistoryOfNothing(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := checkHistory(t.Context(), tiles{root: root}, nil); err != nil {
		t.Errorf("checkHistory of an empty directory = %v", err)
	}
	if _, err := root.Stat("checkpoint"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
