package reversetunnel

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestHeaderRoundTrip(t *testing.T) {
	for _, addr := range []string{"203.0.113.7:1", "[2001:db8::1]:65535", "0.0.0.0:0"} {
		want := newHeader(netip.MustParseAddrPort(addr))
		r := bytes.NewReader(append(want.marshal(), "SSH-2.0-x"...))
		got, err := readHeader(r)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", addr, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "SSH-2.0-x" {
			t.Errorf("%s: %q is left behind the header", addr, rest)
		}
	}
}

func TestHeaderRefusals(t *testing.T) {
	good := headerWire{headerVersion, "203.0.113.7", 22, [idSize]byte{}}
	body := func(change func(*headerWire)) []byte {
		w := good
		change(&w)
		return ssh.Marshal(w)
	}
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	for name, b := range map[string][]byte{
		"empty":            nil,
		"no body":          {0, 0, 0, 1},
		"zero length":      {0, 0, 0, 0},
		"huge":             {0xff, 0xff, 0xff, 0xff},
		"one over":         sized(make([]byte, maxHeader+1)),
		"other version":    sized(body(func(w *headerWire) { w.Version = 2 })),
		"no address":       sized(body(func(w *headerWire) { w.OriginAddr = "" })),
		"a name":           sized(body(func(w *headerWire) { w.OriginAddr = "localhost" })),
		"a zone":           sized(body(func(w *headerWire) { w.OriginAddr = "fe80::1%eth0" })),
		"IPv4 as IPv6":     sized(body(func(w *headerWire) { w.OriginAddr = "::ffff:203.0.113.7" })),
		"another spelling": sized(body(func(w *headerWire) { w.OriginAddr = "2001:DB8::1" })),
		"port":             sized(body(func(w *headerWire) { w.OriginPort = 65536 })),
		"trailing byte":    sized(append(ssh.Marshal(good), 0)),
		"truncated":        sized(ssh.Marshal(good))[:20],
	} {
		if h, err := readHeader(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: got %+v, want a refusal", name, h)
		}
	}
}

// FuzzHeader: what is taken is what would be written.
func FuzzHeader(f *testing.F) {
	f.Add(newHeader(netip.MustParseAddrPort("203.0.113.7:1")).marshal())
	f.Add(newHeader(netip.MustParseAddrPort("[2001:db8::1]:65535")).marshal())
	f.Add([]byte{0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readHeader(r)
		if err != nil {
			return
		}
		if taken := b[:len(b)-r.Len()]; !bytes.Equal(h.marshal(), taken) {
			t.Errorf("%x was taken for %+v, which is %x", taken, h, h.marshal())
		}
	})
}
