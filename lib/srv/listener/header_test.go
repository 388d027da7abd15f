package listener

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const sigV2 = "\r\n\r\n\x00\r\nQUIT\n"

// v2 returns a version 2 header with an IPv4 client, 203.0.113.9:4711.
func v2(command byte, tlv int) string {
	var b bytes.Buffer
	b.WriteString(sigV2)
	b.Write([]byte{command, 0x11})
	binary.Write(&b, binary.BigEndian, uint16(12+tlv))
	b.Write([]byte{203, 0, 113, 9, 192, 0, 2, 1})
	binary.Write(&b, binary.BigEndian, []uint16{4711, 3022})
	if tlv >= 3 { // one TLV of type NOOP, spec 2.2.5
		b.WriteByte(0x04)
		binary.Write(&b, binary.BigEndian, uint16(tlv-3))
		b.Write(make([]byte, tlv-3))
	}
	return b.String()
}

// TestProxyHeader: F17 and THREATS 1.2 (CVE-2024-35175, CVE-2021-23409).
func TestProxyHeader(t *testing.T) {
	const balancer, client = "10.0.0.1:9999", "203.0.113.9:4711"
	const line = "PROXY TCP4 203.0.113.9 192.0.2.1 4711 3022\r\n"
	ssh := "SSH-2.0-x\r\n"
	for name, row := range map[string]struct {
		peer, send string
		remote     string // "" is refused
		relay      string
	}{
		"v1":                         {balancer, line + ssh, client, balancer},
		"v1 IPv6":                    {balancer, "PROXY TCP6 2001:db8::9 2001:db8::1 4711 3022\r\n" + ssh, "[2001:db8::9]:4711", balancer},
		"v1 IPv4 in IPv6":            {balancer, "PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 4711 3022\r\n" + ssh, client, balancer},
		"v1 unknown":                 {balancer, "PROXY UNKNOWN\r\n" + ssh, balancer, ""},
		"v2":                         {balancer, v2(0x21, 0) + ssh, client, balancer},
		"v2 with TLV":                {balancer, v2(0x21, 100) + ssh, client, balancer},
		"v2 LOCAL":                   {balancer, v2(0x20, 0) + ssh, balancer, ""},
		"v2 then silence":            {balancer, v2(0x21, 0), client, balancer},
		"from anyone v1":             {client, line + ssh, "", ""},
		"from anyone v2":             {client, v2(0x21, 0) + ssh, "", ""},
		"from anyone LOCAL":          {client, v2(0x20, 0) + ssh, "", ""},
		"absent where required":      {balancer, ssh, "", ""},
		"silent where required":      {balancer, "", "", ""},
		"second header v1":           {balancer, line + line + ssh, "", ""},
		"second header v2":           {balancer, v2(0x21, 0) + v2(0x21, 0) + ssh, "", ""},
		"v1 after v2":                {balancer, v2(0x21, 0) + line + ssh, "", ""},
		"v1 truncated":               {balancer, line[:20], "", ""},
		"v2 truncated":               {balancer, v2(0x21, 0)[:20], "", ""},
		"v1 too long":                {balancer, "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n", "", ""},
		"v1 spoofs a name":           {balancer, "PROXY TCP4 localhost 192.0.2.1 4711 3022\r\n" + ssh, "", ""},
		"v1 without CR":              {balancer, "PROXY TCP4 203.0.113.9 192.0.2.1 4711 3022\n" + ssh, "", ""},
		"v1 port":                    {balancer, "PROXY TCP4 203.0.113.9 192.0.2.1 99999 3022\r\n" + ssh, "", ""},
		"v1 zone":                    {balancer, "PROXY TCP6 fe80::1%eth0 2001:db8::1 4711 3022\r\n" + ssh, "", ""},
		"v1 unspecified":             {balancer, "PROXY TCP4 0.0.0.0 192.0.2.1 4711 3022\r\n" + ssh, "", ""},
		"v1 multicast":               {balancer, "PROXY TCP4 224.0.0.1 192.0.2.1 4711 3022\r\n" + ssh, "", ""},
		"v2 64 kB TLV":               {balancer, v2(0x21, 65000) + ssh, "", ""},
		"v2 UDP":                     {balancer, strings.Replace(v2(0x21, 0), "\x21\x11", "\x21\x12", 1) + ssh, "", ""},
		"v2 unknown command":         {balancer, v2(0x2f, 0) + ssh, "", ""},
		"v2 version 3":               {balancer, v2(0x31, 0) + ssh, "", ""},
		"v2 length 0":                {balancer, sigV2 + "\x21\x11\x00\x00" + ssh, "", ""},
		"v2 unix socket":             {balancer, sigV2 + "\x21\x31\x00\xd8" + strings.Repeat("a", 216) + ssh, "", ""},
		"garbage from the balancer":  {balancer, "GET / HTTP/1.1\r\n\r\n", "", ""},
		"v1 line of an honest SSH-2": {balancer, "PROXY\r\n" + ssh, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := run(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
				defer b.stop()
				start := time.Now()
				c := b.dial(row.peer)
				go io.WriteString(c, row.send)
				if row.remote == "" {
					closed(t, c)
					if got := time.Since(start); got > headerTimeout {
						t.Errorf("refused after %v, want at most %v", got, headerTimeout)
					}
					c.Close()
					return
				}
				g := <-b.got
				defer g.c.Close()
				defer c.Close()
				if g.p != ProtocolSSH || g.c.RemoteAddr().String() != row.remote {
					t.Errorf("got %q from %v, want ssh from %v", g.p, g.c.RemoteAddr(), row.remote)
				}
				relay := ""
				if g.c.Relay().IsValid() {
					relay = g.c.Relay().String()
				}
				if relay != row.relay {
					t.Errorf("Relay = %q, want %q", relay, row.relay)
				}
				if strings.HasSuffix(row.send, ssh) {
					got := make([]byte, len(ssh))
					if _, err := io.ReadFull(g.c, got); err != nil || string(got) != ssh {
						t.Errorf("read %q, %v, want %q", got, err, ssh)
					}
				}
			})
		})
	}
}

// TestPenaltyByAttestedAddress: THREATS 1.1, who fails behind a load balancer is
// penalised, not the balancer.
func TestPenaltyByAttestedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
		defer b.stop()
		via := func(client string) *Conn {
			c := b.dial("10.0.0.1:9999")
			go func() {
				io.WriteString(c, "PROXY TCP4 "+client+" 192.0.2.1 4711 3022\r\nSSH-")
				io.Copy(io.Discard, c)
				c.Close()
			}()
			synctest.Wait()
			select {
			case g := <-b.got:
				return g.c
			default:
				return nil
			}
		}
		bad := via("203.0.113.9")
		for range 4 {
			bad.Penalize(OffenceAuthFailed)
		}
		bad.Close()
		if c := via("203.0.113.9"); c != nil {
			t.Error("the penalised client was let in")
			c.Close()
		}
		good := via("203.0.113.10")
		if good == nil {
			t.Fatal("another client of the same balancer was refused")
		}
		good.Close()
		if n := b.count("refused_total", string(refusedPenalty)); n != 1 {
			t.Errorf("%v refused, want 1", n)
		}
	})
}

// FuzzReadHeader: whatever comes, the header is refused or names a client's
// address, and what follows it is left alone.
func FuzzReadHeader(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 203.0.113.9 192.0.2.1 4711 3022\r\nSSH-", "PROXY TCP6 2001:db8::9 ::1 1 2\r\n", "PROXY UNKNOWN\r\n",
		v2(0x21, 0) + "SSH-", v2(0x20, 50), v2(0x21, 65000), sigV2, "SSH-2.0-x\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), sniffBuffer)
		client, err := readHeader(r)
		if err != nil {
			if client.IsValid() {
				t.Errorf("readHeader = %v, %v: an address beside an error", client, err)
			}
			return
		}
		if client.IsValid() && (client.Addr().Is4In6() || client.Addr().Zone() != "" || client.Addr().IsUnspecified()) {
			t.Errorf("readHeader = %v", client)
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.HasSuffix(b, rest) {
			t.Errorf("%q is left of %q, %v", rest, b, err)
		}
	})
}
