package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Nobody is the account that has no rights and no files.
const Nobody = 65534

// AsNobody returns a command that runs as [Nobody] without any capability, and
// cannot get one.
func AsNobody(name string, args ...string) *exec.Cmd {
	id := fmt.Sprint(Nobody)
	return exec.Command("setpriv", append([]string{"--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", name}, args...)...)
}

// StartAsNobody runs a copy of the binary in dir as [Nobody], to whom dir is
// given, and waits for its ready line. Where the tests are not root it runs as
// whoever they are.
func StartAsNobody(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	if os.Getuid() != 0 {
		return Start(t, args...)
	}
	binary := dir + "/accessd"
	if r := Run(t, nil, "cp", Binary(t), binary); r.Code != 0 { // what is built for a test is closed to others
		t.Fatalf("cp: %s", r.Stderr)
	}
	if r := Run(t, nil, "chown", "-R", fmt.Sprint(Nobody), dir); r.Code != 0 {
		t.Fatalf("chown: %s", r.Stderr)
	}
	p, ready := launch(t, AsNobody(binary, args...))
	p.await(ready)
	return p
}

// maxPart bounds a part of a process's memory: what is larger is the shadow memory
// of the race detector, which holds no data.
const maxPart = 1 << 30

// Readable reads a process's memory, part by part, as far as it may be written
// to. It needs to be root where the process is somebody else.
func (p *Process) Readable(part func([]byte)) {
	p.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.Pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.Pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") || to-from > maxPart {
			continue
		}
		b := make([]byte, to-from)
		n, err := io.ReadFull(io.NewSectionReader(mem, from, to-from), b)
		if err == nil || n > 0 {
			part(b[:n])
		}
	}
}
