package child

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if code, ok := Run(os.Args); ok {
		os.Exit(code)
	}
	unix.Umask(0o022)
	os.Exit(m.Run())
}

// stock is OpenSSH's server, the yardstick.
const stock = "/usr/lib/openssh/sftp-server"

// servers returns commands that serve the files of dir: ours and the stock one.
func servers() map[string]func(dir string) *exec.Cmd {
	return map[string]func(dir string) *exec.Cmd{
		"ours": func(dir string) *exec.Cmd {
			return &exec.Cmd{Path: "/proc/self/exe", Args: []string{Name, SFTP}, Dir: dir, Stderr: os.Stderr}
		},
		"stock": func(dir string) *exec.Cmd {
			return &exec.Cmd{Path: stock, Args: []string{stock}, Dir: dir, Stderr: os.Stderr}
		},
	}
}

// talk is a conversation with a server, packet by packet.
type talk struct {
	t       *testing.T
	in      io.WriteCloser
	out     io.Reader
	dir     string
	handles []string
	lines   []string // what was asked and answered
	id      uint32
}

func start(t *testing.T, cmd *exec.Cmd) *talk {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s ended with %v", cmd.Path, err)
		}
	})
	c := &talk{t: t, in: in, out: out, dir: cmd.Dir}
	c.send([]byte{typeInit, 0, 0, 0, 3})
	if p := c.receive(); p[0] != typeVersion {
		t.Fatalf("answer of type %d to the first packet", p[0])
	}
	return c
}

func (c *talk) send(p []byte) {
	c.t.Helper()
	p = append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...)
	if _, err := c.in.Write(p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *talk) receive() []byte {
	c.t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(c.out, head[:]); err != nil {
		c.t.Fatal(err)
	}
	p := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(c.out, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// h stands for the n-th handle that the server gave out.
type h int

// packet returns a request of those fields.
func (c *talk) packet(kind byte, list ...any) []byte {
	c.id++
	b := answer{kind}
	b.u32(c.id)
	for _, v := range list {
		switch v := v.(type) {
		case string:
			b.text(strings.ReplaceAll(v, "DIR", c.dir))
		case int:
			b.u32(uint32(v))
		case uint64:
			b.u64(v)
		case attributes:
			b.attributes(v)
		case h:
			b.text(c.handles[v])
		}
	}
	return b
}

// do asks for something and notes the answer.
func (c *talk) do(kind byte, list ...any) {
	c.t.Helper()
	c.send(c.packet(kind, list...))
	line := fmt.Sprintf("%d %v: %s", kind, list, c.read())
	c.lines = append(c.lines, strings.NewReplacer(c.dir, "DIR", filepath.Dir(c.dir), "UP").Replace(line))
}

// read returns an answer in words.
func (c *talk) read() string {
	c.t.Helper()
	p := c.receive()
	f := fields{b: p[1:]}
	if id := f.u32(); id > c.id {
		c.t.Errorf("answer to request %d", id)
	}
	switch p[0] {
	case typeStatus:
		return fmt.Sprintf("status %d %q", f.u32(), f.text())
	case typeHandle:
		c.handles = append(c.handles, f.text())
		return "handle"
	case typeData:
		return fmt.Sprintf("data %q", f.bytes())
	case typeAttrs:
		return describe(f.attributes())
	case typeName:
		var list []string
		for range f.u32() {
			list = append(list, fmt.Sprintf("%q %q %s", f.text(), f.text(), describe(f.attributes())))
		}
		slices.Sort(list) // a file system has an order of its own
		return strings.Join(list, "\n\t")
	}
	return fmt.Sprintf("type %d, %d bytes", p[0], len(p))
}

func describe(a attributes) string {
	if a.flags&attrMode != 0 && a.mode&unix.S_IFMT == unix.S_IFDIR {
		a.size = 0 // the file system's own
	}
	if a.mtime > 1e9 {
		a.mtime = 1 // now, more or less
	}
	return fmt.Sprintf("flags %x size %d owner %d %d mode %o mtime %d", a.flags, a.size, a.uid, a.gid, a.mode, a.mtime)
}

// fixture makes the files that each case begins with.
func fixture(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "w") // in a directory that holds nothing else
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("d/e"), 0o755),
		os.Mkdir(at("empty"), 0o755),
		os.WriteFile(at("f"), []byte("0123456789"), 0o644),
		os.WriteFile(at("g"), []byte("other"), 0o600),
		os.WriteFile(at("d/x"), []byte("x"), 0o644),
		os.WriteFile(at("later"), nil, 0o644),
		os.Symlink("f", at("link")),
		os.Symlink("d/e", at("dlink")),
		os.Symlink("nowhere", at("dangling")),
		os.Symlink("loop", at("loop")),
		os.Link(at("f"), at("hard")),
		unix.Mkfifo(at("fifo"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// No listing names the present: the clock that a file system stamps with
	// may be ahead of the one that time(2) reads.
	for _, name := range []string{"f", "g", "d/x", "d/e", "d", "empty", "later", "link", "dlink", "dangling", "loop", "fifo", ".", ".."} {
		stamp := unix.Timespec{Sec: 1000}
		if name == "later" {
			stamp.Sec = 4102444800 // 2100
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// after lists what dir holds.
func after(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			content, err = os.Readlink(path)
		case unix.S_IFREG:
			data, _ := os.ReadFile(path)
			content = string(data)
		}
		fmt.Fprintf(&b, "%s %o %d %q\n", rel, st.Mode, st.Nlink, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(b.String(), dir, "DIR")
}

// Whatever is asked, the answers and what becomes of the files are those of
// OpenSSH's server.
func TestStockSameAsSFTPServer(t *testing.T) {
	none := attributes{}
	mode := func(m uint32) attributes { return attributes{flags: attrMode, mode: m} }
	size := func(n uint64) attributes { return attributes{flags: attrSize, size: n} }
	times := attributes{flags: attrTimes, atime: 5, mtime: 6}
	tests := map[string]func(c *talk){
		"real paths": func(c *talk) {
			for _, p := range []string{
				"", ".", "..", "f", "link", "dlink", "dlink/..", "dlink/../x", "d//e/", "no", "no/", "no/x", "f/x", "f/.", "loop", "dangling",
				"dangling/x", "DIR", "/", "//", "/no", "./d/./e/../x", "~", strings.Repeat("a", 300), strings.Repeat("a/", 3000),
			} {
				c.do(typeRealpath, p)
			}
		},
		"look": func(c *talk) {
			for _, p := range []string{
				"f", "link", "dlink", "dlink/", "d", "no", "f/x", "loop", "dangling", "fifo", "", "dlink/../x",
				strings.Repeat("a", 300), strings.Repeat("a/", 3000),
			} {
				c.do(typeStat, p)
				c.do(typeLstat, p)
				c.do(typeReadlink, p)
			}
		},
		"read": func(c *talk) {
			c.do(typeOpen, "f", flagRead, none)
			for _, at := range []uint64{0, 4, 9, 10, 1000, 1 << 63} {
				c.do(typeRead, h(0), at, 5)
			}
			c.do(typeRead, h(0), uint64(0), 0)
			c.do(typeWrite, h(0), uint64(0), "no")
			c.do(typeFstat, h(0))
			c.do(typeReaddir, h(0))
			c.do(typeClose, h(0))
			c.do(typeClose, h(0))
			c.do(typeRead, h(0), uint64(0), 5)
			c.do(typeFstat, h(0))
			c.do(typeRead, "bogus", uint64(0), 5)
			for _, p := range []string{"no", "d", "loop", "dangling", "f/x", "", "link"} {
				c.do(typeOpen, p, flagRead, none)
			}
			c.do(typeRead, h(1), uint64(0), 5) // the directory
		},
		"write": func(c *talk) {
			c.do(typeOpen, "new", flagWrite|flagCreate|flagTrunc, none)
			c.do(typeWrite, h(0), uint64(0), "hello")
			c.do(typeWrite, h(0), uint64(8), "gap")
			c.do(typeRead, h(0), uint64(0), 5)
			c.do(typeClose, h(0))
			c.do(typeOpen, "new", flagWrite|flagCreate|flagExcl, none)
			c.do(typeOpen, "link", flagWrite|flagCreate|flagExcl, none)
			c.do(typeOpen, "dangling", flagWrite|flagCreate, none)
			c.do(typeOpen, "private", flagWrite|flagCreate, mode(0o600))
			c.do(typeOpen, "wide", flagWrite|flagCreate, mode(0o666))
			c.do(typeOpen, "special", flagWrite|flagCreate, mode(0o4755))
			c.do(typeOpen, "f", flagWrite|flagAppend, none)
			c.do(typeWrite, h(5), uint64(0), "end")
			c.do(typeOpen, "g", flagRead|flagWrite, none)
			c.do(typeWrite, h(6), uint64(1), "XX")
			c.do(typeRead, h(6), uint64(0), 9)
			c.do(typeOpen, "d/x", flagTrunc|flagWrite, none)
			c.do(typeOpen, "d", flagWrite, none)
			c.do(typeOpen, "no/x", flagWrite|flagCreate, none)
			c.do(typeOpen, "flagless", flagCreate, none)
		},
		"list": func(c *talk) {
			for _, p := range []string{".", "empty", "dlink", "f", "no", "loop"} {
				c.do(typeOpendir, p)
			}
			for i := range 3 {
				c.do(typeReaddir, h(i))
				c.do(typeReaddir, h(i))
			}
			c.do(typeRead, h(0), uint64(0), 10)
			c.do(typeFstat, h(0))
			c.do(typeFsetstat, h(0), mode(0o700))
			c.do(typeClose, h(0))
		},
		"directories": func(c *talk) {
			c.do(typeMkdir, "m", none)
			c.do(typeMkdir, "private", mode(0o700))
			c.do(typeMkdir, "wide", mode(0o777))
			c.do(typeMkdir, "slash/", none)
			c.do(typeMkdir, "sticky", mode(0o1777))
			for _, p := range []string{"m", "f", "no/x", "dangling", ""} {
				c.do(typeMkdir, p, none)
			}
			for _, p := range []string{"m", "d", "f", "no", "dlink", ".", "empty/"} {
				c.do(typeRmdir, p)
			}
		},
		"remove": func(c *talk) {
			for _, p := range []string{"f", "link", "f", "d", "dlink", "dangling", "d/x/", "fifo", "", "hard/"} {
				c.do(typeRemove, p)
			}
		},
		"rename": func(c *talk) {
			for _, p := range [][2]string{
				{"f", "g"},
				{"f", "f2"},
				{"no", "x"},
				{"d", "empty"},
				{"d", "d2"},
				{"link", "g"},
				{"link", "link2"},
				{"f2", "no/x"},
				{"f2", "dangling"},
				{"d2", "d2/sub"},
				{"f2", "f2"},
				{"hard", "f2"},
				{"fifo", "g"},
				{"fifo", "fifo2"},
			} {
				c.do(typeRename, p[0], p[1])
			}
		},
		"posix rename": func(c *talk) {
			for _, p := range [][2]string{{"f", "g"}, {"no", "x"}, {"d", "empty"}, {"g", "empty"}, {"empty", "g"}, {"link", "g"}} {
				c.do(typeExtended, extPosixRename, p[0], p[1])
			}
		},
		"links": func(c *talk) {
			c.do(typeSymlink, "../some where", "s1") // where it leads, then the link
			c.do(typeSymlink, "x", "f")
			c.do(typeSymlink, "", "s2")
			c.do(typeSymlink, "x", "no/s")
			c.do(typeReadlink, "s1")
			c.do(typeExtended, extHardlink, "f", "h1")
			c.do(typeExtended, extHardlink, "f", "g")
			c.do(typeExtended, extHardlink, "d", "h2")
			c.do(typeExtended, extHardlink, "link", "h3")
			c.do(typeExtended, extHardlink, "no", "h4")
		},
		"attributes": func(c *talk) {
			for _, p := range []string{"f", "link", "d", "no", "dangling", "loop"} {
				c.do(typeSetstat, p, mode(0o640))
				c.do(typeSetstat, p, times)
				c.do(typeSetstat, p, size(3))
				c.do(typeStat, p)
			}
			c.do(typeSetstat, "g", mode(0o104755))
			c.do(typeSetstat, "g", attributes{flags: attrOwner, uid: uint32(os.Getuid()), gid: uint32(os.Getgid())})
			c.do(typeSetstat, "g", size(1<<63))
			c.do(typeSetstat, "d", attributes{flags: attrSize | attrMode, size: 1, mode: 0o711})
			c.do(typeSetstat, "g", none)
			for _, p := range []string{"f", "link", "dangling", "no"} {
				c.do(typeExtended, extLsetstat, p, times)
				c.do(typeExtended, extLsetstat, p, mode(0o600))
				c.do(typeExtended, extLsetstat, p, size(1))
				c.do(typeLstat, p)
			}
		},
		"an open file is the one that was opened": func(c *talk) {
			c.do(typeOpen, "f", flagRead|flagWrite, none)
			c.do(typeRename, "f", "moved")
			c.do(typeOpen, "f", flagWrite|flagCreate, none)
			c.do(typeFsetstat, h(0), mode(0o600))
			c.do(typeFsetstat, h(0), size(2))
			c.do(typeFsetstat, h(0), times)
			c.do(typeRemove, "moved")
			c.do(typeFstat, h(0))
			c.do(typeRead, h(0), uint64(0), 9)
			c.do(typeExtended, extFsync, h(0))
			c.do(typeExtended, extFsync, "bogus")
			c.do(typeFsetstat, "bogus", mode(0o600))
			c.do(typeExtended, extFstatvfs, "bogus")
		},
		"expand": func(c *talk) {
			for _, p := range []string{"~", "~/no", "~root", "f", "", "DIR/dlink/.."} {
				c.do(typeExtended, extExpandPath, p)
			}
		},
		"copy": func(c *talk) {
			c.do(typeOpen, "f", flagRead, none)
			c.do(typeOpen, "copy", flagRead|flagWrite|flagCreate, none)
			c.do(typeExtended, extCopyData, h(0), uint64(2), uint64(3), h(1), uint64(1))
			c.do(typeExtended, extCopyData, h(0), uint64(5), uint64(0), h(1), uint64(6))
			c.do(typeExtended, extCopyData, h(0), uint64(8), uint64(9), h(1), uint64(6))
			c.do(typeExtended, extCopyData, h(1), uint64(0), uint64(1), h(1), uint64(6))
		},
		"names of users": func(c *talk) {
			c.do(typeExtended, extUsersGroups, "\x00\x00\x00\x00\x7f\x00\x00\x01", "\x00\x00\x00\x00")
			c.do(typeExtended, "no-such@example.org", "x")
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := map[string]string{}
			for who, server := range servers() {
				dir := fixture(t)
				c := start(t, server(dir))
				test(c)
				got[who] = strings.Join(c.lines, "\n") + "\n" + after(t, dir)
			}
			if got["ours"] != got["stock"] {
				t.Errorf("differs:\n%s", difference(got["ours"], got["stock"]))
			}
		})
	}
}

// difference returns the lines that differ.
func difference(ours, stock string) string {
	a, b := strings.Split(ours, "\n"), strings.Split(stock, "\n")
	var out strings.Builder
	for i := range max(len(a), len(b)) {
		x, y := "", ""
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			fmt.Fprintf(&out, "ours  %.300s\nstock %.300s\n", x, y)
		}
	}
	return out.String()
}

// A client appends with many requests on their way (reput of the stock client
// does): they are written in their order.
func TestAppendKeepsTheOrder(t *testing.T) {
	dir := fixture(t)
	c := start(t, servers()["ours"](dir))
	c.do(typeOpen, "log", flagWrite|flagCreate|flagAppend, attributes{})
	var want bytes.Buffer
	const blocks, length = 200, 20_000
	var answers sync.WaitGroup
	answers.Go(func() { _, _ = io.Copy(io.Discard, c.out) })
	for i := range blocks {
		block := strings.Repeat(string(rune('A'+i%50)), length)
		want.WriteString(block)
		c.send(c.packet(typeWrite, h(0), uint64(0), block))
	}
	_ = c.in.Close()
	answers.Wait() // the server has done all and ended
	got, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, %v, out of order", len(got), err)
	}
}

// What is no packet ends the child, and nothing else comes of it.
func TestMalformed(t *testing.T) {
	for _, bytes := range [][]byte{
		{0, 0, 0, 0},
		{0xff, 0xff, 0xff, 0xff},
		{0, 0, 0, 1, 1},
		{0, 0, 0, 5, 99, 0, 0, 0, 3},
		[]byte("GET / HTTP/1.0\r\n\r\n"),
		{0, 0, 0, 5, 1, 0, 0, 0, 3, 0, 0, 0, 1, 13},
		{0, 0, 0, 5, 1, 0, 0, 0, 3, 0, 0, 0, 9, 13, 0, 0, 0, 1, 0, 0, 1, 0},
		{0, 0, 0, 5, 1, 0, 0, 0, 3, 0, 0},
	} {
		cmd := servers()["ours"](fixture(t))
		cmd.Stdin, cmd.Stderr = strings.NewReader(string(bytes)), nil
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%q: %v, want exit status 1", bytes, err)
		}
	}
}

// Whoever opens without closing is stopped.
func TestHandlesAreBounded(t *testing.T) {
	c := start(t, servers()["ours"](fixture(t)))
	for i := range maxHandles {
		if c.do(typeOpen, "f", flagRead, attributes{}); len(c.handles) != i+1 {
			t.Fatalf("file %d: %s", i, c.lines[i])
		}
	}
	if c.do(typeOpen, "f", flagRead, attributes{}); len(c.handles) != maxHandles {
		t.Errorf("more than %d files are open", maxHandles)
	}
	c.do(typeClose, h(0))
	if c.do(typeOpendir, "d"); len(c.handles) != maxHandles+1 {
		t.Errorf("after one was closed: %s", c.lines[len(c.lines)-1])
	}
}

// The stock client with both servers: the same words, the same files.
func TestStockClient(t *testing.T) {
	tests := map[string]string{
		"look around":     "pwd\nls -la\nls -l d\ncd dlink\npwd\ncd ..\npwd\nls -n f\n",
		"copy":            "get f f.got\nput f.got f.put\nget -p f kept\nput -p kept f.kept\nreput f.put f\nreget f f.got\n",
		"trees":           "lmkdir tree\nlmkdir tree/sub\n!chmod 700 tree/sub\nput f tree/sub/f\nget -r d got\nput -r tree there\nput -pr tree kept\nls -l there\n",
		"change":          "rename f g\nrename -l f g\nln -s f s\nln g hard2\nmkdir m\nchmod 700 m\nchmod -h 600 link\nrm link\nrmdir m\nsymlink x y\nls -l\n",
		"errors":          "get no\nput no\ncd f\nmkdir d\nrmdir d\nrm no\nrename no x\nchmod 600 no\nln f g\nls no\n",
		"space and names": "df\nput -f f synced\ncp f copied\nls -l copied\n",
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			got := map[string]string{}
			for who, server := range servers() {
				dir := fixture(t)
				cmd := server(dir)
				path := cmd.Path
				if who == "ours" { // sftp -D splits at blanks and takes no name of the program's own
					path = filepath.Join(t.TempDir(), "serve")
					self, err := os.Executable()
					if err != nil {
						t.Fatal(err)
					}
					line := "#!/bin/bash\nexec -a " + Name + " " + self + " " + SFTP + "\n"
					if err := os.WriteFile(path, []byte(line), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				lines := "-" + strings.ReplaceAll(strings.TrimSpace(script), "\n", "\n-") + "\n"
				client := &exec.Cmd{Path: "/usr/bin/sftp", Args: []string{"sftp", "-b", "-", "-D", path}, Dir: dir, Stdin: strings.NewReader(lines)}
				out, err := client.CombinedOutput()
				text := strings.ReplaceAll(string(out), path, "SERVER")
				if name == "space and names" {
					text = text[strings.LastIndex(text, "sftp>"):] // df tells what others do, too
				}
				got[who] = fmt.Sprintf("%s%v\n%s", strings.ReplaceAll(text, dir, "DIR"), err, after(t, dir))
			}
			if got["ours"] != got["stock"] {
				t.Errorf("differs:\n%s", difference(got["ours"], got["stock"]))
			}
		})
	}
}
