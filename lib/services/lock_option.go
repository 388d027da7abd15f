package services

import (
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// StaleAfter is how long a member may have heard nothing of the policy until its
// view of the locks is stale. The authority tells it each [PolicyBeat] that there is
// nothing new.
const (
	StaleAfter = 2 * time.Minute
	PolicyBeat = 30 * time.Second
)

// LockMode says what becomes of what a role grants where the view of the locks is
// stale: somebody may be locked out by now and the authority cannot say so.
type LockMode string

// What a role may say of locks.
const (
	LocksStrict     LockMode = "strict"      // nothing begins, and what is there ends
	LocksBestEffort LockMode = "best_effort" // the locks that are known count; what "" means, too
)

// strictest returns the stricter of m and o.
func (m LockMode) strictest(o LockMode) LockMode {
	if m == LocksStrict || o == "" {
		return m
	}
	return o
}

func (p *roleParser) lockMode(n *yaml.Node) LockMode {
	if m := LockMode(n.Value); p.is(n, yaml.ScalarNode, "!!str") && slices.Contains([]LockMode{LocksStrict, LocksBestEffort}, m) {
		return m
	}
	p.fail(n, "locks: want strict or best_effort, got %s", describe(n))
	return ""
}

// Stale reports whether nothing was heard of the policy for StaleAfter.
func (c *Cache) Stale() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.staleLocked()
}

func (c *Cache) staleLocked() bool { return c.heard.IsZero() || time.Since(c.heard) >= StaleAfter }

// hearLocked notes that the policy is as it was a moment ago, and has whoever reads
// the copy look again if it gets stale.
func (c *Cache) hearLocked() {
	c.heard = time.Now()
	if c.silence == nil {
		c.silence = time.AfterFunc(StaleAfter, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.staleLocked() {
				c.tellLocked(fleeting)
			}
		})
		return
	}
	c.silence.Reset(StaleAfter)
}
