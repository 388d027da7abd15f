package daemon

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
)

// heapFloor is the heap below which collecting costs more than it gives: each
// 32 KiB packet is an allocation, and a heap of 4 MiB would be collected a
// hundred times a second while a file goes through. In bytes.
const heapFloor = 64 << 20

// memoryShare is the part of a cgroup's limit that the Go heap may take; the
// rest is for stacks, the page cache and children.
const memoryShare = 0.9

// tuneMemory sets the garbage collector's target and the memory limit once per
// process, unless the environment already does.
var tuneMemory = sync.OnceFunc(func() { //nolint:gochecknoglobals // once per process is its point
	if os.Getenv("GOMEMLIMIT") == "" {
		if limit, ok := cgroupLimit(os.ReadFile); ok {
			debug.SetMemoryLimit(int64(float64(limit) * memoryShare))
		}
	}
	if os.Getenv("GOGC") == "" {
		holdHeapFloor()
	}
})

// floor is a finalizer's carrier: it is garbage at once, so its finalizer runs
// after each collection, which is when the target has to follow the live heap.
type floor struct{ _ [16]byte }

func holdHeapFloor() {
	f := &floor{}
	var adjust func(*floor)
	adjust = func(f *floor) {
		debug.SetGCPercent(gcPercent(liveHeap()))
		runtime.SetFinalizer(f, adjust)
	}
	debug.SetGCPercent(gcPercent(liveHeap()))
	runtime.SetFinalizer(f, adjust)
}

func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// gcPercent returns the GOGC under which a live heap of live bytes is next
// collected at twice its size, or at heapFloor when that is more.
func gcPercent(live uint64) int {
	const usual = 100
	if live >= heapFloor/2 {
		return usual
	}
	live = max(live, 1<<20)
	return int((heapFloor - live) * usual / live)
}

// cgroupLimit returns the memory limit of this process's cgroup (v2, else v1),
// in bytes.
func cgroupLimit(read func(string) ([]byte, error)) (uint64, bool) {
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := read(path)
		if err != nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n < math.MaxInt64/2 { // v1 says "no limit" with a huge number
			return n, true
		}
	}
	return 0, false
}
