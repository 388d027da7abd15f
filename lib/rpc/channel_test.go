package rpc_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
)

// tcpPair returns both ends of a connection: SSH begins with both ends writing,
// which a pipe without a buffer does not bear.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// channelPair returns both ends of a channel as connections.
func channelPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	_, key := sshca.Generate()
	near, far := tcpPair(t)
	serverSide := make(chan net.Conn, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cfg := &ssh.ServerConfig{NoClientAuth: true}
		cfg.AddHostKey(key)
		_, chans, reqs, err := ssh.NewServerConn(far, cfg)
		if err != nil {
			t.Error(err)
			return
		}
		go ssh.DiscardRequests(reqs)
		for nc := range chans {
			ch, reqs, err := nc.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			go ssh.DiscardRequests(reqs)
			serverSide <- rpc.ChannelConn(ch, far.LocalAddr(), far.RemoteAddr())
		}
	}()
	conn, chans, reqs, err := ssh.NewClientConn(near, "", &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(key.PublicKey())})
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	go func() {
		for nc := range chans {
			_ = nc.Reject(ssh.Prohibited, "")
		}
	}()
	ch, creqs, err := conn.OpenChannel("accessd-api", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(creqs)
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return rpc.ChannelConn(ch, near.LocalAddr(), near.RemoteAddr()), <-serverSide
}

func TestChannelConnCarriesCalls(t *testing.T) {
	near, far := channelPair(t)
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewAuditServiceHandler(&service{}, rpc.ServerOptions(nil)...))
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(t.Context(), far, rpc.Peer{}, mux) }()
	hc := rpc.Client(func(context.Context) (net.Conn, error) { return near, nil })
	c := accessdv1connect.NewAuditServiceClient(hc, rpc.BaseURL, rpc.ClientOptions()...)
	for range 3 {
		if _, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{Before: "x"})); err != nil {
			t.Fatal(err)
		}
	}
	hc.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil after the channel was closed", err)
	}
}

func TestChannelConnDeadline(t *testing.T) {
	past, future := time.Unix(1, 0), time.Now().Add(time.Hour)
	cases := map[string]struct {
		set  func(net.Conn) error
		want error
	}{
		"read, passed":    {func(c net.Conn) error { return c.SetReadDeadline(past) }, os.ErrDeadlineExceeded},
		"both, passed":    {func(c net.Conn) error { return c.SetDeadline(past) }, os.ErrDeadlineExceeded},
		"write, passed":   {func(c net.Conn) error { return c.SetWriteDeadline(past) }, os.ErrDeadlineExceeded},
		"read, to come":   {func(c net.Conn) error { return c.SetReadDeadline(future) }, nil},
		"set and cleared": {func(c net.Conn) error { return errors.Join(c.SetDeadline(future), c.SetDeadline(time.Time{})) }, nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			near, far := channelPair(t)
			if err := tc.set(near); err != nil {
				t.Fatal(err)
			}
			if tc.want == nil {
				go far.Write([]byte("x"))
			} else {
				go far.Read(make([]byte, 1)) // an end that answers a close
			}
			if _, err := near.Read(make([]byte, 1)); !errors.Is(err, tc.want) {
				t.Errorf("Read = %v, want %v", err, tc.want)
			}
			if err := near.Close(); tc.want == nil && err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}
