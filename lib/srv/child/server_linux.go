package child

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxPacket is the largest packet that is taken, in bytes; OpenSSH's bound.
	maxPacket = 256 << 10
	// maxData is the most that one READ or WRITE carries, in bytes; the rest of a
	// packet is room for its head.
	maxData = maxPacket - 1024
	// maxHandles bounds what one client has open.
	maxHandles = 1000
	// streamSize is how much is read and written at once, in bytes.
	streamSize = 64 << 10
)

// status is the code of a STATUS packet (section 7).
type status uint32

const (
	statusOK status = iota
	statusEOF
	statusNoFile
	statusDenied
	statusFailure
	statusBadMessage
	statusNoConnection
	statusConnectionLost
	statusUnsupported
)

// String returns OpenSSH's words for s.
func (s status) String() string {
	words := [...]string{
		"Success", "End of file", "No such file", "Permission denied", "Failure",
		"Bad message", "No connection", "Connection lost", "Operation unsupported",
	}
	return words[s]
}

// statusError is an error that the protocol has a code for.
type statusError struct{ code status }

// Error implements [error].
func (e *statusError) Error() string { return e.code.String() }

func failed(code status) error { return &statusError{code} }

// statusOf returns the code for err; OpenSSH's server has the same for each.
func statusOf(err error) status {
	if err == nil {
		return statusOK
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.code
	}
	errno, _ := errors.AsType[unix.Errno](err)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.EBADF, unix.ELOOP:
		return statusNoFile
	case unix.EPERM, unix.EACCES, unix.EFAULT:
		return statusDenied
	case unix.ENAMETOOLONG, unix.EINVAL:
		return statusBadMessage
	case unix.ENOSYS:
		return statusUnsupported
	default:
		return statusFailure
	}
}

// server serves the files of the account it runs as, by version 3 of the protocol
// (draft-ietf-secsh-filexfer-02). It does one request after the other, in their
// order, each with the system call of the same name on the path as it came: the
// kernel says what is allowed. What the draft leaves open is as in OpenSSH's
// sftp-server.
type server struct {
	in  *bufio.Reader
	out *bufio.Writer

	request []byte // the packet being read
	reply   answer // what answers it
	handles map[uint32]*handle
	last    uint32 // handle given out
	cwd     string
	names   names
}

// handle is an open file or directory.
type handle struct {
	*os.File

	directory bool
	listed    bool // "." and ".." of a directory are
	append    bool
}

// serveFiles serves the files of this account until its client is done. It
// begins in the working directory, which is the account's home.
func serveFiles(in io.Reader, out io.Writer) error {
	s := &server{
		in: bufio.NewReaderSize(in, streamSize), out: bufio.NewWriterSize(out, streamSize),
		handles: map[uint32]*handle{}, cwd: "/", names: newNames(),
	}
	if dir, err := os.Getwd(); err == nil {
		s.cwd = dir
	}
	if err := s.begin(); err != nil {
		return err
	}
	for {
		err := s.next()
		if errors.Is(err, io.EOF) {
			return s.out.Flush()
		}
		if err == nil {
			err = s.serve()
		}
		if err != nil {
			return errors.Join(err, s.out.Flush())
		}
	}
}

// next reads a packet. What has been answered goes out before it waits for one.
func (s *server) next() error {
	if s.in.Buffered() < 4 {
		if err := s.out.Flush(); err != nil {
			return err
		}
	}
	var head [4]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxPacket {
		return fmt.Errorf("a packet of %d bytes", n)
	}
	if uint32(cap(s.request)) < n {
		s.request = make([]byte, n)
	}
	s.request = s.request[:n]
	if s.in.Buffered() < int(n) {
		if err := s.out.Flush(); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(s.in, s.request); err != nil {
		return errors.Join(errors.New("a packet is cut short"), noEOF(err))
	}
	return nil
}

// noEOF returns err without its meaning of an orderly end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// begin answers the first packet, which says the client's version.
func (s *server) begin() error {
	if err := s.next(); err != nil {
		return err
	}
	f := fields{b: s.request[1:]}
	if f.u32(); s.request[0] != typeInit || f.bad {
		return errors.New("the client does not speak SFTP")
	}
	s.reply = append(s.reply[:0], 0, 0, 0, 0, typeVersion)
	s.reply.u32(3)
	for _, e := range extensions() {
		s.reply.text(e[0])
		s.reply.text(e[1])
	}
	return s.send()
}

func (s *server) send() error {
	_, err := s.out.Write(s.reply.seal())
	return err
}

// serve answers one request. An error means that the client cannot be understood.
func (s *server) serve() error {
	f := &fields{b: s.request[1:]}
	id := f.u32()
	s.start(id, typeStatus)
	err := s.do(s.request[0], f)
	if f.bad {
		return fmt.Errorf("a malformed request of type %d", s.request[0])
	}
	if err != nil || s.reply[4] == typeStatus {
		code := statusOf(err)
		s.start(id, typeStatus)
		s.reply.u32(uint32(code))
		s.reply.text(code.String())
		s.reply.text("") // language
	}
	return s.send()
}

// start begins the answer to the request id.
func (s *server) start(id uint32, kind byte) {
	s.reply = append(s.reply[:0], 0, 0, 0, 0, kind)
	s.reply.u32(id)
}

// do does what a request of that type asks, and says in reply what it found, if
// anything.
func (s *server) do(kind byte, f *fields) error {
	switch kind {
	case typeOpen:
		return s.open(f)
	case typeClose:
		return s.close(f)
	case typeRead:
		return s.read(f)
	case typeWrite:
		return s.write(f)
	case typeOpendir:
		return s.opendir(f)
	case typeReaddir:
		return s.readdir(f)
	case typeStat, typeLstat, typeFstat:
		return s.stat(kind, f)
	case typeSetstat:
		return s.setstat(f)
	case typeFsetstat:
		return s.fsetstat(f)
	case typeRealpath, typeReadlink:
		return s.resolve(kind, f)
	case typeExtended:
		return s.extended(f)
	}
	return change(kind, f)
}

// change serves the requests that change a directory.
func change(kind byte, f *fields) error {
	path := f.text()
	switch kind {
	case typeRemove:
		return f.do(func() error { return unix.Unlink(path) })
	case typeMkdir:
		a := f.attributes()
		mode := uint32(0o777)
		if a.flags&attrMode != 0 {
			mode = a.mode & 0o7777
		}
		return f.do(func() error { return unix.Mkdir(path, mode) })
	case typeRmdir:
		return f.do(func() error { return unix.Rmdir(path) })
	case typeRename:
		to := f.text()
		return f.do(func() error { return rename(path, to) })
	case typeSymlink: // OpenSSH's order: where it leads, then the link
		link := f.text()
		return f.do(func() error { return unix.Symlink(path, link) })
	}
	f.bad = false // it is not known what its fields are
	return failed(statusUnsupported)
}

// do calls call unless the packet lacks fields, again while a signal interrupts.
func (f *fields) do(call func() error) error {
	if f.bad {
		return failed(statusBadMessage)
	}
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// add puts a new handle into the reply.
func (s *server) add(h *handle) {
	s.last++
	s.handles[s.last] = h
	s.reply[4] = typeHandle
	s.reply.u32(4)
	s.reply.u32(s.last)
}

// find returns the number of a handle and what it stands for, or nil.
func (s *server) find(f *fields) (uint32, *handle) {
	b := f.bytes()
	if len(b) != 4 {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(b)
	return n, s.handles[n]
}

// file returns the open file that a handle stands for, or nil.
func (s *server) file(f *fields) *handle {
	if _, h := s.find(f); h != nil && !h.directory {
		return h
	}
	return nil
}

func (s *server) open(f *fields) error {
	path, asked, a := f.text(), f.u32(), f.attributes()
	flags := unix.O_CLOEXEC | unix.O_NOCTTY
	switch asked & (flagRead | flagWrite) {
	case flagRead | flagWrite:
		flags |= unix.O_RDWR
	case flagWrite:
		flags |= unix.O_WRONLY
	}
	for _, b := range [...]struct {
		asked uint32
		flag  int
	}{{flagAppend, unix.O_APPEND}, {flagCreate, unix.O_CREAT}, {flagTrunc, unix.O_TRUNC}, {flagExcl, unix.O_EXCL}} {
		if asked&b.asked != 0 {
			flags |= b.flag
		}
	}
	mode := uint32(0o666)
	if a.flags&attrMode != 0 {
		mode = a.mode & 0o7777
	}
	if len(s.handles) >= maxHandles {
		return failed(statusFailure)
	}
	fd := -1
	err := f.do(func() (err error) {
		fd, err = unix.Open(path, flags, mode)
		return err
	})
	if err == nil {
		s.add(&handle{File: os.NewFile(uintptr(fd), path), append: asked&flagAppend != 0})
	}
	return err
}

func (s *server) opendir(f *fields) error {
	path := f.text()
	if len(s.handles) >= maxHandles {
		return failed(statusFailure)
	}
	fd := -1
	err := f.do(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err == nil {
		s.add(&handle{File: os.NewFile(uintptr(fd), path), directory: true})
	}
	return err
}

func (s *server) close(f *fields) error {
	n, h := s.find(f)
	if h == nil {
		return failed(statusNoFile)
	}
	delete(s.handles, n)
	return h.Close()
}

func (s *server) read(f *fields) error {
	h, offset, n := s.file(f), f.u64(), min(f.u32(), maxData)
	if h == nil || f.bad {
		return failed(statusFailure)
	}
	s.reply[4] = typeData
	s.reply.u32(0)
	head := len(s.reply)
	if need := head + int(n); cap(s.reply) < need {
		s.reply = append(make(answer, 0, need), s.reply...)
	}
	room := s.reply[head : head+int(n)]
	got := 0
	err := f.do(func() (err error) {
		got, err = unix.Pread(int(h.Fd()), room, int64(offset))
		return err
	})
	if err == nil && got == 0 && n > 0 {
		err = failed(statusEOF)
	}
	binary.BigEndian.PutUint32(s.reply[head-4:], uint32(max(got, 0)))
	s.reply = s.reply[:head+max(got, 0)]
	return err
}

func (s *server) write(f *fields) error {
	h, offset, data := s.file(f), f.u64(), f.bytes()
	if h == nil || f.bad {
		return failed(statusFailure)
	}
	return h.put(data, int64(offset))
}

// put writes all of data, at the end of a file that was opened to append.
func (h *handle) put(data []byte, offset int64) error {
	for len(data) > 0 {
		var n int
		var err error
		if h.append {
			n, err = unix.Write(int(h.Fd()), data)
		} else {
			n, err = unix.Pwrite(int(h.Fd()), data, offset)
		}
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// stat serves the requests for the attributes of one file.
func (s *server) stat(kind byte, f *fields) error {
	var st unix.Stat_t
	var err error
	if kind == typeFstat {
		h := s.file(f)
		if h == nil {
			return failed(statusFailure)
		}
		err = f.do(func() error { return unix.Fstat(int(h.Fd()), &st) })
	} else {
		path, call := f.text(), unix.Stat
		if kind == typeLstat {
			call = unix.Lstat
		}
		err = f.do(func() error { return call(path, &st) })
	}
	if err == nil {
		s.reply[4] = typeAttrs
		s.reply.attributes(attributesOf(&st))
	}
	return err
}

func attributesOf(st *unix.Stat_t) attributes {
	return attributes{
		flags: attrSize | attrOwner | attrMode | attrTimes, size: uint64(st.Size), uid: st.Uid, gid: st.Gid,
		mode: st.Mode, atime: uint32(st.Atim.Sec), mtime: uint32(st.Mtim.Sec),
	}
}

// calls change the attributes of one file.
type calls struct {
	truncate func(size int64) error
	chmod    func(mode uint32) error
	utimes   func(times []unix.Timespec) error
	chown    func(uid, gid int) error
}

// apply changes what a says, all that can be; the last error counts.
func (c calls) apply(f *fields, a attributes) error {
	var err error
	if a.flags&attrSize != 0 {
		err = cmp.Or(f.do(func() error { return c.truncate(int64(a.size)) }), err)
	}
	if a.flags&attrMode != 0 {
		err = cmp.Or(f.do(func() error { return c.chmod(a.mode & 0o7777) }), err)
	}
	if a.flags&attrTimes != 0 {
		times := []unix.Timespec{{Sec: int64(a.atime)}, {Sec: int64(a.mtime)}}
		err = cmp.Or(f.do(func() error { return c.utimes(times) }), err)
	}
	if a.flags&attrOwner != 0 {
		err = cmp.Or(f.do(func() error { return c.chown(int(a.uid), int(a.gid)) }), err)
	}
	return err
}

func (s *server) setstat(f *fields) error {
	path, a := f.text(), f.attributes()
	return calls{
		truncate: func(size int64) error { return unix.Truncate(path, size) },
		chmod:    func(mode uint32) error { return unix.Chmod(path, mode) },
		utimes:   func(times []unix.Timespec) error { return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0) },
		chown:    func(uid, gid int) error { return unix.Chown(path, uid, gid) },
	}.apply(f, a)
}

func (s *server) fsetstat(f *fields) error {
	h, a := s.file(f), f.attributes()
	if h == nil {
		return failed(statusFailure)
	}
	fd := int(h.Fd())
	return calls{
		truncate: func(size int64) error { return unix.Ftruncate(fd, size) },
		chmod:    func(mode uint32) error { return unix.Fchmod(fd, mode) },
		utimes:   func(times []unix.Timespec) error { return unix.UtimesNanoAt(unix.AT_FDCWD, proc(fd), times, 0) },
		chown:    func(uid, gid int) error { return unix.Fchown(fd, uid, gid) },
	}.apply(f, a)
}

// proc returns a path of the file that fd is open on, whatever became of its own.
func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// lsetstat changes a file itself, not what it leads to (OpenSSH PROTOCOL,
// section 4.7). A symbolic link has no size and no mode to set.
func lsetstat(f *fields) error {
	path, a := f.text(), f.attributes()
	return calls{
		truncate: func(int64) error { return failed(statusBadMessage) },
		chmod:    func(mode uint32) error { return lchmod(path, mode) },
		utimes: func(times []unix.Timespec) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
		},
		chown: func(uid, gid int) error { return unix.Lchown(path, uid, gid) },
	}.apply(f, a)
}

func lchmod(path string, mode uint32) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(proc(fd), mode)
}

// rename fails when there is something called to (section 6.5). Not every file
// system can promise that in one step.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var st unix.Stat_t
	if unix.Lstat(to, &st) == nil {
		return unix.EEXIST
	}
	return unix.Rename(from, to)
}
