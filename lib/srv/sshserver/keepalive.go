package sshserver

import (
	"time"

	"github.com/accessd/accessd/lib/sshwire"
)

// wedged is how many intervals a keepalive may go unanswered although bytes
// come in: a peer that stalls a key exchange, or never reads, can send
// SSH_MSG_IGNORE for ever. The answer of an honest peer waits behind what it has
// queued on a slow link at most.
const wedged = 10

// keepalive runs every interval, in a goroutine of its own, and cuts a peer that
// is gone. Sending can block for as long as the peer pleases, so the next beat is
// set before and decides by the clock alone.
func (c *Conn) keepalive() {
	if !c.enter() {
		return
	}
	defer c.handlers.Done()
	defer c.recovered()
	k := c.server.cfg.Keepalive
	now := time.Now()
	quiet := now.Sub(time.Unix(0, c.meter.heard.Load()))
	left := k.Interval*time.Duration(k.Misses) - quiet

	c.mu.Lock()
	dead := left <= 0 || (!c.asked.IsZero() && now.Sub(c.asked) >= wedged*k.Interval)
	ask := !dead && c.asked.IsZero()
	if ask {
		c.asked = now
	}
	if !dead {
		c.beat.Reset(min(k.Interval, left))
	}
	c.mu.Unlock()

	if dead {
		c.Cut(errDead)
	}
	if !ask {
		return
	}
	// The answer is always "no", and all that matters is that there is one.
	if _, _, err := c.SendRequest(sshwire.RequestKeepalive, true, nil); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Time{}
}
