package sshwire_test

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshwire"
)

type message interface{ Marshal() []byte }

// parser gives every Parse function one form.
type parser func(b []byte) (message, error)

func parserOf[T message](parse func([]byte) (T, error)) parser {
	return func(b []byte) (message, error) { return parse(b) }
}

// good has one message of every kind, with its parser.
var good = []struct {
	name  string
	parse parser
	value message
}{
	{"direct-tcpip", parserOf(sshwire.ParseDirectTCPIP), sshwire.DirectTCPIP{Host: "n1", Port: 22, OriginAddr: "127.0.0.1", OriginPort: 65535}},
	{"tcpip-forward", parserOf(sshwire.ParseTCPIPForward), sshwire.TCPIPForward{Addr: "localhost", Port: 0}},
	{"tcpip-forward reply", parserOf(sshwire.ParseTCPIPForwardReply), sshwire.TCPIPForwardReply{Port: 20001}},
	{"forwarded-tcpip", parserOf(sshwire.ParseForwardedTCPIP), sshwire.ForwardedTCPIP{Addr: "", Port: 22, OriginAddr: "2001:db8::1", OriginPort: 1}},
	{"accessd-authority", parserOf(sshwire.ParseAuthorityOpen), sshwire.AuthorityOpen{OriginAddr: "192.0.2.1", OriginPort: 1022}},
	{"pty-req", parserOf(sshwire.ParsePtyRequest), sshwire.PtyRequest{Term: "xterm-256color", Columns: 80, Rows: 24, Modes: []byte{53, 0, 0, 0, 1, 0}}},
	{"window-change", parserOf(sshwire.ParseWindowChange), sshwire.WindowChange{Columns: 1, Rows: 2, Width: 3, Height: 4}},
	{"env", parserOf(sshwire.ParseEnv), sshwire.Env{Name: "LANG", Value: "de_DE.UTF-8"}},
	{"exec", parserOf(sshwire.ParseExec), sshwire.Exec{Command: "echo 'ü\n'"}},
	{"subsystem", parserOf(sshwire.ParseSubsystem), sshwire.Subsystem{Name: "sftp"}},
	{"signal", parserOf(sshwire.ParseSignal), sshwire.Signal{Name: "TERM"}},
	{"exit-status", parserOf(sshwire.ParseExitStatus), sshwire.ExitStatus{Code: 255}},
	{"exit-signal", parserOf(sshwire.ParseExitSignal), sshwire.ExitSignal{Name: "SEGV", CoreDumped: true, Message: "core dumped", Lang: "en"}},
}

// TestRoundTrip: what Marshal writes, Parse reads, and no shorter or longer
// form of it.
func TestRoundTrip(t *testing.T) {
	for _, c := range good {
		t.Run(c.name, func(t *testing.T) {
			b := c.value.Marshal()
			got, err := c.parse(b)
			if err != nil || !reflect.DeepEqual(got, c.value) {
				t.Fatalf("parse = %+v, %v, want %+v", got, err, c.value)
			}
			for n := range b {
				refuse(t, c.parse, b[:n])
			}
			refuse(t, c.parse, append(bytes.Clone(b), 0))
		})
	}
}

func refuse(t *testing.T, parse parser, b []byte) {
	t.Helper()
	if got, err := parse(b); !fault.Is(err, fault.BadInput) || !reflect.ValueOf(got).IsZero() {
		t.Errorf("parse(%.60q…) = %+v, %v, want bad input", b, got, err)
	}
}

// TestExitStatusOfHostileNode: THREATS 1.2, an exit-status of 0, 3 or 5 bytes.
func TestExitStatusOfHostileNode(t *testing.T) {
	for _, n := range []int{0, 3, 5} {
		if _, err := sshwire.ParseExitStatus(make([]byte, n)); !fault.Is(err, fault.BadInput) {
			t.Errorf("ParseExitStatus of %d bytes = %v, want bad input", n, err)
		}
	}
}

func TestBounds(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	cases := []struct {
		name  string
		parse parser
		value message
		ok    bool
	}{
		{"port 65535", good[0].parse, sshwire.DirectTCPIP{Host: "n1", Port: 65535}, true},
		{"port 65536", good[0].parse, sshwire.DirectTCPIP{Host: "n1", Port: 65536}, false},
		{"port 2^32-1", good[0].parse, sshwire.DirectTCPIP{Host: "n1", Port: 1<<32 - 1}, false},
		{"port 0", good[0].parse, sshwire.DirectTCPIP{Host: "n1"}, false},
		{"no host", good[0].parse, sshwire.DirectTCPIP{Port: 22}, false},
		{"host NUL", good[0].parse, sshwire.DirectTCPIP{Host: "n1\x00", Port: 22}, false},
		{"host 255", good[0].parse, sshwire.DirectTCPIP{Host: long(255), Port: 22}, true},
		{"host 256", good[0].parse, sshwire.DirectTCPIP{Host: long(256), Port: 22}, false},
		{"origin port", good[0].parse, sshwire.DirectTCPIP{Host: "n1", Port: 22, OriginPort: 65536}, false},
		{"forward port", good[1].parse, sshwire.TCPIPForward{Port: 65536}, false},
		{"forward address", good[1].parse, sshwire.TCPIPForward{Addr: long(256)}, false},
		{"reply port", good[2].parse, sshwire.TCPIPForwardReply{Port: 65536}, false},
		{"forwarded origin", good[3].parse, sshwire.ForwardedTCPIP{OriginAddr: long(256)}, false},
		{"authority origin", good[4].parse, sshwire.AuthorityOpen{OriginPort: 65536}, false},
		{"term 129", good[5].parse, sshwire.PtyRequest{Term: long(129)}, false},
		{"term NUL", good[5].parse, sshwire.PtyRequest{Term: "xterm\x00"}, false},
		{"modes 2049", good[5].parse, sshwire.PtyRequest{Modes: make([]byte, 2049)}, false},
		{"env name empty", good[7].parse, sshwire.Env{Value: "x"}, false},
		{"env name with =", good[7].parse, sshwire.Env{Name: "LD_PRELOAD=x"}, false},
		{"env name long", good[7].parse, sshwire.Env{Name: long(257)}, false},
		{"env value NUL", good[7].parse, sshwire.Env{Name: "A", Value: "a\x00B=c"}, false},
		{"env value long", good[7].parse, sshwire.Env{Name: "A", Value: long(32<<10 + 1)}, false},
		{"command 128 KiB", good[8].parse, sshwire.Exec{Command: long(128 << 10)}, true},
		{"command 256 KiB and one", good[8].parse, sshwire.Exec{Command: long(256<<10 + 1)}, false},
		{"command NUL", good[8].parse, sshwire.Exec{Command: "a\x00b"}, false},
		{"subsystem long", good[9].parse, sshwire.Subsystem{Name: long(257)}, false},
		{"signal long", good[10].parse, sshwire.Signal{Name: long(65)}, false},
		{"exit-signal message", good[12].parse, sshwire.ExitSignal{Name: "KILL", Message: long(4097)}, false},
		{"exit-signal language", good[12].parse, sshwire.ExitSignal{Name: "KILL", Lang: long(65)}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := c.parse(c.value.Marshal()); (err == nil) != c.ok {
				t.Errorf("parse = %v, want ok = %v", err, c.ok)
			} else if err != nil && !fault.Is(err, fault.BadInput) {
				t.Errorf("parse = %v, want bad input", err)
			}
		})
	}
}

// TestErrorsAreOneLine: what a peer reads names the message and does not repeat
// its bytes.
func TestErrorsAreOneLine(t *testing.T) {
	_, err := sshwire.ParseEnv(sshwire.Env{Name: "A\n", Value: "\x1b\x00"}.Marshal())
	if got, want := fault.Public(err), "env: value holds a NUL byte"; got != want {
		t.Errorf("Public = %q, want %q", got, want)
	}
}

func TestParseModes(t *testing.T) {
	cases := []struct {
		name string
		in   []byte
		want []sshwire.Mode
		ok   bool
	}{
		{"nothing", nil, nil, true},
		{"end only", []byte{0}, nil, true},
		{"echo off", []byte{53, 0, 0, 0, 0, 0}, []sshwire.Mode{{Opcode: 53}}, true},
		{"speeds", []byte{128, 0, 0, 0x96, 0, 129, 0, 0, 0x96, 0, 0}, []sshwire.Mode{{Opcode: 128, Value: 38400}, {Opcode: 129, Value: 38400}}, true},
		{"no end", []byte{1, 0, 0, 0, 3}, []sshwire.Mode{{Opcode: 1, Value: 3}}, true},
		{"behind the end", []byte{0, 1, 2, 3}, nil, true},
		{"unknown opcode ends", []byte{1, 0, 0, 0, 3, 160, 9}, []sshwire.Mode{{Opcode: 1, Value: 3}}, true},
		{"cut", []byte{1, 0, 0, 0}, nil, false},
		{"too long", make([]byte, 2049), nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := sshwire.ParseModes(c.in)
			if !reflect.DeepEqual(got, c.want) || (err == nil) != c.ok {
				t.Errorf("ParseModes = %v, %v, want %v, ok = %v", got, err, c.want, c.ok)
			}
		})
	}
}

func TestParseOrigin(t *testing.T) {
	cases := []struct {
		addr string
		port uint32
		want string
	}{
		{"192.0.2.1", 22, "192.0.2.1:22"},
		{"::ffff:192.0.2.1", 0, "192.0.2.1:0"},
		{"2001:db8::1", 65535, "[2001:db8::1]:65535"},
		{"UNKNOWN", 22, ""},
		{"", 0, ""},
		{"192.0.2.1", 65536, ""},
		{"fe80::1%eth0", 22, ""},
		{"localhost", 22, ""},
	}
	for _, c := range cases {
		var want netip.AddrPort
		if c.want != "" {
			want = netip.MustParseAddrPort(c.want)
		}
		if got := sshwire.ParseOrigin(c.addr, c.port); got != want {
			t.Errorf("ParseOrigin(%q, %d) = %v, want %v", c.addr, c.port, got, want)
		}
	}
}

// FuzzParse: every decoder refuses, or its value marshals to the same bytes.
// The one exception is a true of an exit-signal that is not written as 1, which
// RFC 4251, section 5, has readers take.
func FuzzParse(f *testing.F) {
	for i, c := range good {
		f.Add(uint8(i), c.value.Marshal())
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		c := good[int(kind)%len(good)]
		got, err := c.parse(b)
		if err != nil {
			if !fault.Is(err, fault.BadInput) || !reflect.ValueOf(got).IsZero() {
				t.Errorf("%s: parse(%q) = %+v, %v", c.name, b, got, err)
			}
			return
		}
		again := got.Marshal()
		if s, ok := got.(sshwire.ExitSignal); ok && s.CoreDumped && len(again) == len(b) {
			b = bytes.Clone(b)
			b[4+len(s.Name)] = 1
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%s: %q marshals to %q", c.name, b, again)
		}
	})
}

// FuzzParseModes: every mode read was there, in order.
func FuzzParseModes(f *testing.F) {
	f.Add([]byte{53, 0, 0, 0, 0, 128, 0, 0, 0x96, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		modes, err := sshwire.ParseModes(b)
		if err != nil && modes != nil {
			t.Errorf("ParseModes(%q) = %v and %v", b, modes, err)
		}
		var again []byte
		for _, m := range modes {
			again = append(again, m.Opcode, byte(m.Value>>24), byte(m.Value>>16), byte(m.Value>>8), byte(m.Value))
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("ParseModes(%q) = %v", b, modes)
		}
	})
}
