package sshserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
)

// writes records each write.
type writes struct {
	sizes []int
	all   bytes.Buffer
	err   error
}

func (w *writes) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.sizes = append(w.sizes, len(p))
	return w.all.Write(p)
}

// packet is n bytes on the wire as AES-GCM makes them.
func packet(n int) []byte {
	p := bytes.Repeat([]byte{0xa5}, n)
	binary.BigEndian.PutUint32(p, uint32(n-gcmOverhead))
	return p
}

func TestWriterJoinsPackets(t *testing.T) {
	for name, row := range map[string]struct {
		gcm   bool
		parts [][]byte
		want  []int
	}{
		"small":                 {true, [][]byte{packet(36), packet(52)}, []int{36, 52}},
		"large":                 {true, [][]byte{packet(32804)[:4096], packet(32804)[4096:]}, []int{32804}},
		"larger than a buffer":  {true, [][]byte{packet(100_004)[:4096], packet(100_004)[4096:]}, []int{100_004}},
		"just a buffer":         {true, [][]byte{packet(4084), packet(4100)[:4096], packet(4100)[4096:], packet(36)}, []int{4084, 4100, 36}},
		"another cipher":        {false, [][]byte{packet(32804)[:4096], packet(32804)[4096:]}, []int{4096, 28708}},
		"no length of a packet": {true, [][]byte{bytes.Repeat([]byte{0xff}, 4096), packet(36)}, []int{4096, 36}},
		"no multiple of 16":     {true, [][]byte{packet(5000)[:4096], packet(36)}, []int{4096, 36}},
	} {
		t.Run(name, func(t *testing.T) {
			var out writes
			var w writer
			w.gcm.Store(row.gcm)
			var sent []byte
			for _, p := range row.parts {
				p = bytes.Clone(p)
				n, err := w.write(&out, p)
				if n != len(p) || err != nil {
					t.Errorf("write = %d, %v, want %d", n, err, len(p))
				}
				sent = append(sent, p...)
				clear(p) // x/crypto uses its buffer again
			}
			if len(out.sizes) != len(row.want) || !bytes.Equal(out.all.Bytes(), sent) {
				t.Fatalf("writes of %d, want %d", out.sizes, row.want)
			}
			for i, n := range out.sizes {
				if n != row.want[i] {
					t.Errorf("writes of %d, want %d", out.sizes, row.want)
				}
			}
			if w.buf != nil {
				t.Error("a buffer is kept")
			}
		})
	}
	var w writer
	w.gcm.Store(true)
	failed := errors.New("failed")
	broken := &writes{err: failed}
	w.write(broken, packet(32804)[:4096])
	if _, err := w.write(broken, packet(32804)[4096:]); !errors.Is(err, failed) {
		t.Errorf("write = %v, want %v", err, failed)
	}
}

// reads gives out what it has in the sizes asked for or set.
type reads struct {
	data  []byte
	sizes []int // of each read; 0 is as much as fits
	asked []int
}

func (r *reads) Read(p []byte) (int, error) {
	r.asked = append(r.asked, len(p))
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if len(r.sizes) > 0 {
		if r.sizes[0] > 0 {
			n = min(n, r.sizes[0])
		}
		r.sizes = r.sizes[1:]
	}
	n = copy(p[:n], r.data)
	r.data = r.data[n:]
	return n, nil
}

func TestReaderReadsAhead(t *testing.T) {
	data := make([]byte, 200<<10)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	in := &reads{data: data, sizes: []int{36, 36, 0, 0, 0, 0, 0, 100, 36, 0, 0, 36}}
	var b reader
	var got []byte
	total := 0
	for p := make([]byte, cryptoBuffer); ; {
		n, fresh, err := b.read(in, p)
		got = append(got, p[:n]...)
		total += fresh
		if err != nil {
			break
		}
		if last := in.asked[len(in.asked)-1]; len(b.ahead) == 0 && b.last < cryptoBuffer && b.buf != nil && last == bulkBuffer {
			t.Error("a buffer is kept though little came")
		}
	}
	if !bytes.Equal(got, data) || total != len(data) {
		t.Errorf("read %d bytes, %d of them fresh, want %d", len(got), total, len(data))
	}
	want := []int{4096, 4096, 4096, bulkBuffer, bulkBuffer, bulkBuffer, bulkBuffer, bulkBuffer, 4096, 4096, bulkBuffer, bulkBuffer, 4096}
	for i, n := range want {
		if i < len(in.asked) && in.asked[i] != n {
			t.Fatalf("asked for %d, want to begin with %d", in.asked, want)
		}
	}
}

// countedConn counts system calls, nearly.
type countedConn struct {
	net.Conn
	reads, writes atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	c.reads.Add(1)
	return c.Conn.Read(p)
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestOneWritePerPacket: BUDGETS 3 to 5, a large packet is one write, of one TLS
// record more than it needs at most, in both directions.
func TestOneWritePerPacket(t *testing.T) {
	const size = 8 << 20
	w := newWorld(t, quiet)
	var counted *countedConn
	c, err := w.dial(w.serveWrapped(func(nc net.Conn) net.Conn {
		counted = &countedConn{Conn: nc}
		return counted
	}), w.clientConfig("alice", w.alice))
	if err != nil {
		t.Fatal(err)
	}
	ch, reqs, err := c.OpenChannel("echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	go func() {
		ch.Write(make([]byte, size))
		ch.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, ch); n != size || err != nil {
		t.Fatalf("%d bytes came back, %v", n, err)
	}
	// io.Copy takes 32 KiB at a time, which makes as many packets, and as many
	// window adjustments.
	if packets, n := int64(size/(32<<10)), counted.writes.Load(); n > 3*packets {
		t.Errorf("%d writes for %d packets", n, packets)
	}
	t.Logf("%d reads, %d writes for %d packets", counted.reads.Load(), counted.writes.Load(), size/(32<<10))
}
