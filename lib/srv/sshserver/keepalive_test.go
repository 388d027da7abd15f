package sshserver

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestKeepalive: BUDGETS 11, a peer that is gone is noticed 45 s after its last
// byte, in a bubble; one that answers is kept, whatever its answer; one that
// sends but never answers is cut later.
func TestKeepalive(t *testing.T) {
	for name, row := range map[string]struct {
		peer func(c *rawClient)
		want time.Duration
	}{
		"dead": {func(*rawClient) {}, 45 * time.Second},
		"dies after 100 s": {func(c *rawClient) {
			for end := time.Now().Add(100 * time.Second); time.Now().Before(end); {
				c.expect(msgGlobalRequest)
				<-time.After(time.Second)
				c.mustSend([]byte{msgRequestFailure})
			}
		}, (106 + 45) * time.Second},
		"answers until it leaves": {func(c *rawClient) {
			for range 1000 {
				c.expect(msgGlobalRequest)
				c.mustSend([]byte{msgRequestFailure})
			}
			c.conn.Close()
		}, 1000 * 15 * time.Second},
		"sends but never answers": {func(c *rawClient) {
			for c.send(cat(msgIgnore, str(""))) == nil {
				<-time.After(time.Second)
			}
		}, 165 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				client, server := memPair()
				var took time.Duration
				start := time.Now()
				go func() {
					err := w.server.ServeConn(t.Context(), server)
					took = time.Since(start)
					w.errs <- err
				}()
				c := newRaw(t, client)
				c.handshake()
				c.prove("alice", w.alice)
				c.expect(msgAuthSuccess)
				row.peer(c)
				err := <-w.errs
				if took != row.want {
					t.Errorf("ended after %v, want %v", took, row.want)
				}
				if name != "answers until it leaves" && !errors.Is(err, errDead) {
					t.Errorf("ServeConn = %v, want %v", err, errDead)
				}
				client.Close()
			})
		})
	}
}

// TestKeepaliveWedge: THREATS 1.1, F16, a peer that takes nothing any more makes
// the keepalive's own write wait; the connection is closed all the same.
func TestKeepaliveWedge(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		quiet(c)
		c.Keepalive = Keepalive{Interval: 150 * time.Millisecond, Misses: 3}
		c.Channels["talk"] = talk
	})
	c := w.rawLogin()
	if _, err := c.open("talk", 0, 1<<31); err != nil {
		t.Fatal(err)
	}
	// The client is stopped from here on, as by SIGSTOP.
	start := time.Now()
	if err := <-w.errs; !errors.Is(err, errDead) {
		t.Errorf("ServeConn = %v, want %v", err, errDead)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("cut after %v", took)
	}
}
