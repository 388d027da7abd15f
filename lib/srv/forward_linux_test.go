package srv

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// echo serves one connection at a time on loopback and returns its port.
func echo(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}

func TestLocalDial(t *testing.T) {
	l := localOf(t, nil)
	port := echo(t)
	deny := errors.New("not there")
	tests := []struct {
		name, host string
		port       uint16
		refuse     bool
		want       string // public text of the error
	}{
		{"address", "127.0.0.1", port, false, ""},
		{"name", "localhost", port, false, ""},
		{"odd form", "127.1", port, false, ""},
		{"refused", "127.0.0.1", port, true, "not there"},
		{"nobody there", "127.0.0.1", 1, false, "connect failed: Connection refused"},
		{"no such name", "no.such.name.invalid", port, false, `this node does not know the host "no.such.name.invalid"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var asked []netip.Addr
			conn, err := l.Dial(t.Context(), Account{Login: "me"}, Endpoint{Host: test.host, Port: test.port}, func(a netip.Addr) error {
				asked = append(asked, a)
				if test.refuse {
					return deny
				}
				return nil
			})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if last := asked[len(asked)-1]; conn.RemoteAddr().String() != netip.AddrPortFrom(last, test.port).String() {
					t.Errorf("asked about %v, connected to %v", asked, conn.RemoteAddr())
				}
				exchangeSelf(t, conn)
				return
			}
			if got := fault.Public(err); err == nil || got != test.want && !errors.Is(err, deny) {
				t.Errorf("Dial = %v (%q), want %q", err, got, test.want)
			}
		})
	}
}

// exchangeSelf checks that what goes out on c comes back.
func exchangeSelf(t *testing.T, c io.ReadWriter) {
	t.Helper()
	var got [5]byte
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// What listens for a client listens on loopback, on both families, whatever the
// client asks for.
func TestLocalListen(t *testing.T) {
	l, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "", "*", "0.0.0.0", "192.0.2.1"} {
		ln, err := l.Listen(t.Context(), Account{Login: names.Login(me(t))}, Endpoint{Host: host})
		if err != nil {
			t.Fatalf("Listen on %q: %v", host, err)
		}
		at := netip.MustParseAddrPort(ln.Addr().String())
		if !at.Addr().IsLoopback() || at.Port() == 0 {
			t.Errorf("%q listens at %v", host, at)
		}
		for _, family := range []string{"127.0.0.1", "::1"} {
			near, err := net.Dial("tcp", net.JoinHostPort(family, strconv.Itoa(int(at.Port()))))
			if err != nil {
				t.Fatalf("dial: %v", err)
			}
			far, err := ln.Accept()
			if err != nil || far.RemoteAddr().String() != near.LocalAddr().String() {
				t.Fatalf("Accept = %v, %v, want %v", far, err, near.LocalAddr())
			}
			near.Close()
			far.Close()
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := ln.Accept(); err == nil {
			t.Error("Accept after Close went well")
		}
	}
}

func TestLocalListenPrivileged(t *testing.T) {
	l := localOf(t, map[string]string{"etc/passwd": "me:x:20001:20001::/:/bin/sh\n", "etc/group": "", "etc/shadow": ""})
	l.root = true
	if _, err := l.Listen(context.Background(), Account{Login: "me"}, Endpoint{Port: 80}); fault.Public(err) != "only root may listen on port 80" {
		t.Errorf("Listen = %v", err)
	}
}
