package daemon

import (
	"errors"
	"testing"
)

func TestGCTargetNeverBelowFloor(t *testing.T) {
	for _, live := range []uint64{1 << 20, 4 << 20, 20 << 20, 32 << 20, 100 << 20} {
		target := live + live*uint64(gcPercent(live))/100
		want := max(heapFloor, 2*live)
		if target < want*9/10 || target > want*11/10 {
			t.Errorf("live %d MiB: next collection at %d MiB, want about %d MiB", live>>20, target>>20, want>>20)
		}
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
