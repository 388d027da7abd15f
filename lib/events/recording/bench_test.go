//go:build unix

package recording

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"
)

// BenchmarkPrint prints as a channel brings it: 32 KiB at once. "yes" is what a
// runaway command prints, "noise" what compresses not at all.
func BenchmarkPrint(b *testing.B) {
	noise := make([]byte, maxData)
	rand.Read(noise)
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"yes", bytes.Repeat([]byte("y\n"), maxData/2)},
		{"noise", noise},
		{"keystroke", []byte("x")},
	} {
		b.Run(c.name, func(b *testing.B) {
			r, err := New(Config{Dir: b.TempDir(), Quota: 1 << 50})
			if err != nil {
				b.Fatal(err)
			}
			h := header()
			w, err := r.Begin(h)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Print(stdout, c.data); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := w.Close(); err != nil {
				b.Fatal(err)
			}
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkSession is what a session without output costs: its beginning, which a
// person waits for, and its end, which nobody does.
func BenchmarkSession(b *testing.B) {
	r, err := New(Config{Dir: b.TempDir(), Quota: 1 << 50})
	if err != nil {
		b.Fatal(err)
	}
	var begun time.Duration
	for b.Loop() {
		at := time.Now()
		w, err := r.Begin(header())
		begun += time.Since(at)
		if err == nil {
			_, err = w.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(begun.Microseconds())/float64(b.N), "µs/begin")
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
}
