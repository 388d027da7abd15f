package sftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// packet returns a packet of kind with a body of these fields: a uint32, a
// uint64 or a string.
func packet(kind byte, body ...any) []byte {
	b := []byte{0, 0, 0, 0, kind}
	for _, x := range body {
		switch x := x.(type) {
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(x))
		case uint64:
			b = binary.BigEndian.AppendUint64(b, x)
		case string:
			b = appendString(b, x)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func initPacket() []byte    { return packet(typeInit, version) }
func versionPacket() []byte { return packet(typeVersion, version) }

// sink is a writer that keeps what it is given.
type sink struct {
	bytes.Buffer
	closed bool
}

func (s *sink) Close() error { s.closed = true; return nil }

// talk is a filter whose two sides the test speaks for.
type talk struct {
	desk
	f                    *Filter
	client, server       io.WriteCloser // what each sends
	toClient, toServer   sink
	fromClient, fromServ chan error
}

// newTalk starts a talk in a bubble, after the greetings.
func newTalk(t *testing.T) *talk {
	t.Helper()
	w := &talk{}
	w.start(t, w.report)
	w.server.Write(versionPacket())
	w.client.Write(initPacket())
	synctest.Wait()
	w.toClient.Reset()
	w.toServer.Reset()
	return w
}

func (w *talk) start(t *testing.T, report func(context.Context, Operation) error) {
	t.Helper()
	w.f = New(Config{Allow: w.allow, Report: report}, &w.toClient, &w.toServer)
	cr, cw := io.Pipe()
	sr, sw := io.Pipe()
	w.client, w.server = cw, sw
	w.fromClient = async(func() error { return w.f.FromClient(t.Context(), cr) })
	w.fromServ = async(func() error {
		err := w.f.FromServer(t.Context(), sr)
		sr.CloseWithError(io.ErrClosedPipe)
		return err
	})
}

// end ends both sides and returns what the pumps say.
func (w *talk) end() error {
	w.client.Close()
	w.server.Close()
	return errors.Join(<-w.fromClient, <-w.fromServ)
}

func TestRefusedNeverReachesServer(t *testing.T) {
	for _, x := range []struct {
		name   string
		packet []byte
		status uint32
	}{
		{"unknown extension", packet(typeExtended, 7, "evil@example.org", "x"), statusUnsupported},
		{"unknown type", packet(99, 7, "x"), statusUnsupported},
		{"guessed handle", packet(typeWrite, 7, "\x00\x00\x00\x00", uint64(0), "evil"), statusFailure},
		{"path too long", packet(typeRemove, 7, strings.Repeat("./", 2049)+"x"), statusBadMessage},
		{"NUL in a path", packet(typeRemove, 7, "a\x00b"), statusBadMessage},
		{"cut short", packet(typeRename, 7, "a"), statusBadMessage},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newTalk(t)
			w.client.Write(x.packet)
			synctest.Wait()
			got := w.toClient.Bytes()
			if len(got) < 13 || got[4] != typeStatus || binary.BigEndian.Uint32(got[5:]) != 7 || binary.BigEndian.Uint32(got[9:]) != x.status {
				t.Errorf("%s: client has %q, want STATUS %d", x.name, got, x.status)
			}
			if w.toServer.Len() != 0 {
				t.Errorf("%s: server has %q", x.name, w.toServer.Bytes())
			}
			if err := w.end(); err != nil {
				t.Errorf("%s: %v", x.name, err)
			}
		})
	}
}

func TestFlagsTakeRights(t *testing.T) {
	for flags, want := range map[uint32]need{
		0: needRead, flagRead: needRead, flagExcl: needRead,
		flagWrite: needWrite, flagWrite | flagAppend: needWrite, flagWrite | flagCreate | flagTrunc: needWrite,
		flagRead | flagWrite: needBoth, flagCreate: needBoth, flagTrunc: needBoth, flagRead | flagTrunc: needBoth, flagAppend: needBoth,
	} {
		if got := openNeeds(flags); got != want {
			t.Errorf("openNeeds(%#x) = %d, want %d", flags, got, want)
		}
	}
}

func TestRepeatedIDEndsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalk(t)
		w.client.Write(packet(typeStat, 7, "a"))
		w.client.Write(packet(typeStat, 7, "b"))
		synctest.Wait()
		if err := w.end(); err == nil || !strings.Contains(err.Error(), "request id 7") {
			t.Errorf("end = %v, want one about the id", err)
		}
	})
}

func TestLengthsAreBounded(t *testing.T) {
	for _, n := range []uint32{0, maxPacket + 1, 1 << 31} {
		synctest.Test(t, func(t *testing.T) {
			w := newTalk(t)
			w.client.Write(binary.BigEndian.AppendUint32(nil, n))
			if err := w.end(); err == nil || !strings.Contains(err.Error(), "packet 2 of the client") {
				t.Errorf("length %d: %v, want one that names the packet", n, err)
			}
		})
	}
}

func TestUnknownExtensionsAreNotOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &talk{}
		w.start(t, w.report)
		w.server.Write(packet(typeVersion, version, extFsync, "1", "evil@example.org", "1", extStatvfs, "3"))
		synctest.Wait()
		if want := packet(typeVersion, version, extFsync, "1"); !bytes.Equal(w.toClient.Bytes(), want) {
			t.Errorf("client has %q, want %q", w.toClient.Bytes(), want)
		}
		w.end()
	})
}

func TestAnswersKeepOrderBehindReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gates := map[string]chan struct{}{"a": make(chan struct{}), "b": make(chan struct{})}
		w := &talk{}
		w.start(t, func(_ context.Context, op Operation) error { <-gates[op.Path]; return nil })
		w.server.Write(versionPacket())
		synctest.Wait()
		w.client.Write(slices.Concat(initPacket(), packet(typeRemove, 1, "a"), packet(typeRemove, 2, "b"), packet(typeStat, 3, "c")))
		synctest.Wait()
		w.toClient.Reset()
		answers := [][]byte{statusPacket(1, statusOK, ""), statusPacket(2, statusOK, ""), packet(typeAttrs, 3, 0)}
		w.server.Write(slices.Concat(answers...))
		synctest.Wait()
		close(gates["b"])
		synctest.Wait()
		if w.toClient.Len() != 0 {
			t.Errorf("client has %q before the first was reported", w.toClient.Bytes())
		}
		close(gates["a"])
		synctest.Wait()
		if want := slices.Concat(answers...); !bytes.Equal(w.toClient.Bytes(), want) {
			t.Errorf("client has %q, want %q", w.toClient.Bytes(), want)
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestFailedReportEndsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalk(t)
		w.failReport = errors.New("disk full")
		w.client.Write(packet(typeRemove, 1, "a"))
		synctest.Wait()
		w.server.Write(statusPacket(1, statusOK, ""))
		synctest.Wait()
		if w.toClient.Len() != 0 || !w.toServer.closed {
			t.Errorf("client has %q, server closed: %v; want nothing, and the end", w.toClient.Bytes(), w.toServer.closed)
		}
		if err := w.end(); !errors.Is(err, w.failReport) {
			t.Errorf("end = %v, want %v", err, w.failReport)
		}
	})
}

func TestEndReportsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalk(t)
		w.client.Write(packet(typeOpen, 1, "f", flagWrite|flagCreate, 0))
		synctest.Wait()
		w.server.Write(packet(typeHandle, 1, "h"))
		synctest.Wait()
		w.client.Write(packet(typeWrite, 2, "h", uint64(0), "abc"))
		synctest.Wait()
		w.server.Write(statusPacket(2, statusOK, ""))
		synctest.Wait()
		w.client.Write(packet(typeRemove, 3, "never answered"))
		synctest.Wait()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		if op := w.one(t, "close", "f"); op.Error != ended || op.BytesWritten != 3 || op.SHA256 != sum([]byte("abc")) {
			t.Errorf("close = %+v", op)
		}
		if op := w.one(t, "remove", "never answered"); op.Error != ended || op.Status == 0 {
			t.Errorf("remove = %+v", op)
		}
	})
}

func TestRightIsAskedForEachWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTalk(t)
		w.client.Write(packet(typeOpen, 1, "f", flagWrite|flagCreate, 0))
		synctest.Wait()
		w.server.Write(packet(typeHandle, 1, "h"))
		synctest.Wait()
		w.toServer.Reset()
		w.mu.Lock()
		w.denyWrite = errors.New("locked")
		w.mu.Unlock()
		for id := range 3 {
			w.client.Write(packet(typeWrite, 10+id, "h", uint64(0), "abc"))
		}
		synctest.Wait()
		if w.toServer.Len() != 0 {
			t.Errorf("server has %q", w.toServer.Bytes())
		}
		w.one(t, "write", "f") // and not three
		w.end()
	})
}

// TestUnsolicitedAnswers has a server that says what nobody asked for.
func TestUnsolicitedAnswers(t *testing.T) {
	for _, p := range [][]byte{
		statusPacket(9, statusOK, ""),
		packet(typeHandle, 1, "h"),
		packet(typeData, 1, "xxxx"),
		packet(typeVersion, version),
		packet(typeOpen, 1, "x", 0, 0),
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newTalk(t)
			w.client.Write(packet(typeStat, 1, "a"))
			w.server.Write(p)
			if err := w.end(); err == nil {
				t.Errorf("%q passes", p)
			}
			if w.toClient.Len() != 0 {
				t.Errorf("client has %q", w.toClient.Bytes())
			}
		})
	}
}

func TestContentOutOfOrder(t *testing.T) {
	var d Filter
	c := content{held: &d.held}
	c.add(3, []byte("def"))
	c.add(6, []byte("g"))
	c.add(0, []byte("abc"))
	if got, ok := c.sha256(7); !ok || got != sum([]byte("abcdefg")) {
		t.Errorf("sha256 = %s, %v", got, ok)
	}
	if d.held.Load() != 0 {
		t.Errorf("%d bytes are held, want none", d.held.Load())
	}
	for i := range 100 {
		c.add(uint64(1000+i*maxHeld/50), make([]byte, maxHeld/50))
	}
	if got := d.held.Load(); got != 0 || !c.spoilt {
		t.Errorf("%d bytes are held, spoilt %v; want it given up", got, c.spoilt)
	}
}

// FuzzFilter gives both pumps any bytes: they neither panic nor hang, and what is
// passed on without rights in the way is what was read, without what was refused.
func FuzzFilter(f *testing.F) {
	f.Add(slices.Concat(initPacket(), packet(typeOpen, 1, "f", flagWrite, 0), packet(typeClose, 2, "h")),
		slices.Concat(versionPacket(), packet(typeHandle, 1, "h"), statusPacket(2, 0, "")))
	f.Add(slices.Concat(initPacket(), packet(typeExtended, 1, extCopyData, "a", uint64(0), uint64(0), "b", uint64(0))), versionPacket())
	f.Add([]byte{0, 0, 0, 5, 1, 0, 0, 0, 9}, []byte{0, 4, 0, 1})
	f.Fuzz(func(t *testing.T, requests, replies []byte) {
		var d desk
		var toClient, toServer sink
		flt := New(Config{Allow: d.allow, Report: d.report}, &toClient, &toServer)
		_ = flt.FromClient(t.Context(), bytes.NewReader(requests))
		_ = flt.FromServer(t.Context(), bytes.NewReader(replies))
		if flt.held.Load() > maxHeld || len(flt.outstanding) > maxOutstanding || len(flt.handles) > maxHandles {
			t.Errorf("%d held, %d outstanding, %d handles", flt.held.Load(), len(flt.outstanding), len(flt.handles))
		}
		if n := len(initPacket()); toServer.Len() > n &&
			!subsequence(toServer.Bytes()[n:], requests[n:]) {
			t.Errorf("server has %q of %q", toServer.Bytes(), requests)
		}
	})
}

// subsequence reports whether a is what is left of b when bytes are taken out.
func subsequence(a, b []byte) bool {
	for _, x := range a {
		i := bytes.IndexByte(b, x)
		if i < 0 {
			return false
		}
		b = b[i+1:]
	}
	return true
}

func BenchmarkWrite(b *testing.B) {
	for _, x := range []struct {
		name  string
		start uint64 // a file that does not begin at 0 is not hashed
	}{{"hashed", 0}, {"unhashed", 1}} {
		b.Run(x.name, func(b *testing.B) {
			var d desk
			f := New(Config{Allow: d.allow, Report: d.report}, io.Discard, &sink{})
			f.handles["h"] = newFile(&request{path: "f", flags: flagWrite}, &f.held)
			f.server = discard{}
			r := &writes{next: initPacket(), offset: x.start, left: b.N, done: func(id uint32) {
				f.mu.Lock()
				delete(f.outstanding, id)
				f.mu.Unlock()
			}}
			b.SetBytes(32 << 10)
			b.ResetTimer()
			if err := f.FromClient(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

// writes is a client that writes 32 KiB again and again.
type writes struct {
	next   []byte
	offset uint64
	left   int
	id     uint32
	done   func(id uint32)
	block  []byte
}

func (w *writes) Read(p []byte) (int, error) {
	if len(w.next) == 0 {
		if w.left == 0 {
			return 0, io.EOF
		}
		w.left--
		if w.id > 100 {
			w.done(w.id - 100)
		}
		w.id++
		if w.block == nil {
			w.block = packet(typeWrite, 0, "h", uint64(0), strings.Repeat("x", 32<<10))
		}
		binary.BigEndian.PutUint32(w.block[5:], w.id)
		binary.BigEndian.PutUint64(w.block[14:], w.offset)
		w.offset += 32 << 10
		w.next = w.block
	}
	n := copy(p, w.next)
	w.next = w.next[n:]
	return n, nil
}
