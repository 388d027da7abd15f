package sshserver

import (
	"io"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// loopback returns both ends of a TCP connection.
func loopback(b *testing.B) (client, server net.Conn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		b.Fatal(err)
	}
	return client, server
}

// bareServer is x/crypto alone, for comparison.
func bareServer(b *testing.B, host ssh.Signer, nc net.Conn, channels map[string]func(*Conn, ssh.NewChannel)) {
	b.Helper()
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(host)
	_, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err != nil {
		b.Error(err)
		return
	}
	go ssh.DiscardRequests(reqs)
	for nc := range chans {
		go channels[nc.ChannelType()](nil, nc)
	}
}

func discard(_ *Conn, nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for buf := make([]byte, 64<<10); err == nil; {
		_, err = ch.Read(buf)
	}
}

// BenchmarkBulk moves a megabyte at a time through a channel. The client is
// x/crypto's in the same process, so figures compare only with each other.
func BenchmarkBulk(b *testing.B) {
	channels := map[string]func(*Conn, ssh.NewChannel){"up": discard, "down": talk}
	for _, direction := range []string{"up", "down"} {
		for _, bare := range []bool{true, false} {
			name := direction + "/accessd"
			if bare {
				name = direction + "/bare"
			}
			b.Run(name, func(b *testing.B) {
				t := &testing.T{}
				w := newWorld(t, func(c *Config) { quiet(c); c.Channels = channels })
				client, server := loopback(b)
				done := make(chan struct{})
				go func() {
					defer close(done)
					if bare {
						bareServer(b, w.host, server, channels)
					} else if err := w.server.ServeConn(b.Context(), server); err != nil {
						b.Error(err)
					}
				}()
				cfg := w.clientConfig("alice", w.alice)
				cfg.Ciphers = []string{ssh.CipherAES128GCM}
				c, err := w.dial(client, cfg)
				if err != nil {
					b.Fatal(err)
				}
				ch, reqs, err := c.OpenChannel(direction, nil)
				if err != nil {
					b.Fatal(err)
				}
				go ssh.DiscardRequests(reqs)
				buf := make([]byte, 1<<20)
				b.SetBytes(1 << 20)
				for b.Loop() {
					if direction == "up" {
						_, err = ch.Write(buf)
					} else {
						_, err = io.ReadFull(ch, buf)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				c.Close()
				<-done
			})
		}
	}
}

// BenchmarkHandshake logs in and leaves; both sides are in the figure.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld(&testing.T{}, quiet)
	for b.Loop() {
		client, server := loopback(b)
		done := make(chan error, 1)
		go func() { done <- w.server.ServeConn(b.Context(), server) }()
		c, err := w.dial(client, w.clientConfig("alice", w.alice))
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
