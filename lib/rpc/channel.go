package rpc

import (
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// ChannelConn makes a connection of a channel of an SSH connection.
//
// Its deadlines are cruder than a socket's: when one passes, the channel is
// closed for good and further use fails with [os.ErrDeadlineExceeded]. That is
// what handshakes and servers want of them. A Read or a Write that waits ends,
// with the deadline as with Close, when the peer answers the close (RFC 4254,
// section 5.3) or the SSH connection ends, whichever is first: who opens
// channels to a peer must also bound how long a dead connection lives.
func ChannelConn(ch ssh.Channel, local, remote net.Addr) net.Conn {
	return &channelConn{Channel: ch, local: local, remote: remote}
}

type channelConn struct {
	ssh.Channel
	local, remote net.Addr

	mu      sync.Mutex
	timers  [2]*time.Timer // of reads and writes
	expired bool
}

// LocalAddr implements [net.Conn].
func (c *channelConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements [net.Conn].
func (c *channelConn) RemoteAddr() net.Addr { return c.remote }

// Read implements [net.Conn].
func (c *channelConn) Read(p []byte) (int, error) {
	n, err := c.Channel.Read(p)
	return n, c.explain(err)
}

// Write implements [net.Conn].
func (c *channelConn) Write(p []byte) (int, error) {
	n, err := c.Channel.Write(p)
	return n, c.explain(err)
}

func (c *channelConn) explain(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expired {
		return os.ErrDeadlineExceeded
	}
	return err
}

// Close implements [net.Conn].
func (c *channelConn) Close() error {
	c.set(time.Time{}, 0)
	c.set(time.Time{}, 1)
	return c.Channel.Close()
}

// SetDeadline implements [net.Conn].
func (c *channelConn) SetDeadline(t time.Time) error {
	c.set(t, 0)
	c.set(t, 1)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (c *channelConn) SetReadDeadline(t time.Time) error {
	c.set(t, 0)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *channelConn) SetWriteDeadline(t time.Time) error {
	c.set(t, 1)
	return nil
}

func (c *channelConn) set(t time.Time, i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timers[i] != nil {
		c.timers[i].Stop()
		c.timers[i] = nil
	}
	if t.IsZero() {
		return
	}
	c.timers[i] = time.AfterFunc(time.Until(t), func() {
		c.mu.Lock()
		c.expired = true
		c.mu.Unlock()
		c.Channel.Close()
	})
}
