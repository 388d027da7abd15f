//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine says where a run took place.
type machine struct {
	cpu, kernel, openssh, accessd string
}

func describeMachine(ctx context.Context, binary string) machine {
	m := machine{cpu: "unknown CPU", openssh: "none", accessd: "unknown"}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	var version bytes.Buffer
	cmd := exec.CommandContext(ctx, "ssh", "-V")
	cmd.Stderr = &version
	if cmd.Run() == nil {
		m.openssh = strings.TrimSpace(version.String())
	}
	if out, err := exec.CommandContext(ctx, binary, "version").Output(); err == nil {
		m.accessd, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	}
	return m
}

func (m machine) write(w io.Writer) {
	fmt.Fprintf(w, "- %s, %d cores, %s, %s\n", m.cpu, runtime.NumCPU(), runtime.GOARCH, m.kernel)
	fmt.Fprintf(w, "- %s; %s; %s\n", m.accessd, runtime.Version(), m.openssh)
}

// load watches how much of the machine others used.
type load struct {
	start time.Time
	busy  time.Duration
	own   time.Duration
}

func startLoad() load { return load{start: time.Now(), busy: busyTime(), own: ownTime()} }

// foreign returns the part of all cores' time that went to processes other than
// this one and the children it has waited for.
func (l load) foreign() float64 {
	all := time.Since(l.start) * time.Duration(runtime.NumCPU())
	return max(0, float64((busyTime()-l.busy)-(ownTime()-l.own))/float64(all))
}

// busyTime returns the time all cores together have spent not idle.
func busyTime() time.Duration {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return 0
	}
	return time.Duration(user+nice+system+irq+softirq+steal) * clockTick
}

// ownTime returns the CPU time of this process and of its ended children.
func ownTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if syscall.Getrusage(who, &r) == nil {
			sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return sum
}
