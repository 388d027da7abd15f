package reversetunnel

import (
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// observed is a log that can be waited for.
type observed struct {
	mu      sync.Mutex
	lines   []string
	changed chan struct{}
}

// observe makes w log to what it returns, info and above.
func observe(w *world) *observed {
	o := &observed{changed: make(chan struct{})}
	w.log = zap.New(o)
	return o
}

func (o *observed) messages() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lines
}

func (o *observed) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

func (o *observed) await(t testing.TB, message string) {
	t.Helper()
	await(t, "log line "+message, o.next, func() bool {
		return slices.Contains(o.messages(), message)
	})
}

// Enabled implements [zapcore.Core].
func (o *observed) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

// With implements [zapcore.Core].
func (o *observed) With([]zapcore.Field) zapcore.Core { return o }

// Check implements [zapcore.Core].
func (o *observed) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if o.Enabled(e.Level) {
		return c.AddCore(e, o)
	}
	return c
}

// Write implements [zapcore.Core].
func (o *observed) Write(e zapcore.Entry, _ []zapcore.Field) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, e.Message)
	close(o.changed)
	o.changed = make(chan struct{})
	return nil
}

// Sync implements [zapcore.Core].
func (o *observed) Sync() error { return nil }
