package daemon

import (
	"errors"
	"runtime"
	"testing"
)

func TestGCTargetNeverBelowFloor(t *testing.T) {
	for _, live := range []uint64{0, 1 << 20, 4 << 20, 20 << 20, 32 << 20, 100 << 20} {
		percent := uint64(gcPercent(live))
		target := max(live+live*percent/100, smallestHeap*percent/100)
		want := max(heapFloor, 2*live)
		if target < want*9/10 || target > want*11/10 {
			t.Errorf("live %d MiB: next collection at %d MiB, want about %d MiB", live>>20, target>>20, want>>20)
		}
	}
}

// TestGarbageIsNotLive: right after a collection, when nothing is swept yet, the
// target follows what is in use and not what was.
func TestGarbageIsNotLive(t *testing.T) {
	var garbage [][]byte
	for range 64 {
		garbage = append(garbage, make([]byte, 1<<20))
	}
	runtime.KeepAlive(garbage)
	runtime.GC()
	if got := liveHeap(); got == 0 || got > heapFloor/2 {
		t.Errorf("live heap of %d bytes after 64 MiB of garbage", got)
	}
}

func TestCgroupLimit(t *testing.T) {
	file := func(name, text string) func(string) ([]byte, error) {
		return func(path string) ([]byte, error) {
			if path == name {
				return []byte(text), nil
			}
			return nil, errors.New("no such file")
		}
	}
	cases := []struct {
		name string
		read func(string) ([]byte, error)
		want uint64
		ok   bool
	}{
		{"v2", file("/sys/fs/cgroup/memory.max", "1073741824\n"), 1 << 30, true},
		{"v2 without a limit", file("/sys/fs/cgroup/memory.max", "max\n"), 0, false},
		{"v1", file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n"), 2 << 20, true},
		{"v1 without a limit", file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), 0, false},
		{"no cgroup", file("", ""), 0, false},
	}
	for _, c := range cases {
		if got, ok := cgroupLimit(c.read); got != c.want || ok != c.ok {
			t.Errorf("%s: limit = %d, %v, want %d, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}
