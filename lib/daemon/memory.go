package daemon

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
)

// heapFloor is the heap below which collecting costs more than it gives: each
// 32 KiB packet is an allocation, and a heap of 4 MiB would be collected a
// hundred times a second while a file goes through. In bytes.
const heapFloor = 64 << 20

// smallestHeap times GOGC/100 is what Go lets any heap grow to, in bytes.
const smallestHeap = 4 << 20

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
	f, now := &floor{}, 0
	var adjust func(*floor)
	adjust = func(f *floor) {
		// Setting it stops the world, so small changes are not followed.
		if want := gcPercent(liveHeap()); want < now*9/10 || want > now*11/10 {
			debug.SetGCPercent(want)
			now = want
		}
		runtime.SetFinalizer(f, adjust)
	}
	adjust(f)
}

// liveHeap returns what the last collection found to be in use, in bytes. What
// is allocated would not do: while the sweep goes on, and finalizers run then, most
// of it is garbage. Of 8 MB in use, a GiB of packets took 58 collections then, and
// takes 25 now.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// gcPercent returns the GOGC under which a live heap of live bytes is next
// collected at twice its size, or at heapFloor when that is more.
func gcPercent(live uint64) int {
	const usual = 100
	if live >= heapFloor/2 {
		return usual
	}
	live = max(live, smallestHeap) // before the first collection nothing is known
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
