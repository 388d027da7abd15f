package child

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// listSize is how many files one answer to READDIR holds.
	listSize = 100
	// maxLinks is how many symbolic links one path may lead through.
	maxLinks = 32
	// maxNames bounds the names of users, and of groups, that are remembered.
	maxNames = 1000
)

// Extended requests (OpenSSH PROTOCOL, section 4, and
// draft-ietf-secsh-filexfer-extensions-00, section 7, for copy-data).
const (
	extPosixRename = "posix-rename@openssh.com"
	extStatvfs     = "statvfs@openssh.com"
	extFstatvfs    = "fstatvfs@openssh.com"
	extHardlink    = "hardlink@openssh.com"
	extFsync       = "fsync@openssh.com"
	extLsetstat    = "lsetstat@openssh.com"
	extLimits      = "limits@openssh.com"
	extExpandPath  = "expand-path@openssh.com"
	extCopyData    = "copy-data"
	extUsersGroups = "users-groups-by-id@openssh.com"
)

// extensions returns the extended requests that are served, with their versions.
func extensions() [][2]string {
	return [][2]string{
		{extPosixRename, "1"},
		{extStatvfs, "2"},
		{extFstatvfs, "2"},
		{extHardlink, "1"},
		{extFsync, "1"},
		{extLsetstat, "1"},
		{extLimits, "1"},
		{extExpandPath, "1"},
		{extCopyData, "1"},
		{extUsersGroups, "1"},
	}
}

func (s *server) extended(f *fields) error {
	switch name := f.text(); name {
	case extPosixRename:
		from, to := f.text(), f.text()
		return f.do(func() error { return unix.Rename(from, to) })
	case extHardlink:
		from, to := f.text(), f.text()
		return f.do(func() error { return unix.Link(from, to) })
	case extFsync:
		h := s.file(f)
		if h == nil {
			return failed(statusNoFile)
		}
		return f.do(func() error { return unix.Fsync(int(h.Fd())) })
	case extLsetstat:
		return lsetstat(f)
	case extStatvfs, extFstatvfs:
		return s.statvfs(name, f)
	case extLimits:
		s.reply[4] = typeExtendedReply
		for _, n := range [...]uint64{maxPacket, maxData, maxData, maxHandles} {
			s.reply.u64(n)
		}
		return nil
	case extExpandPath:
		return s.expand(f)
	case extCopyData:
		return s.copyData(f)
	case extUsersGroups:
		return s.usersGroups(f)
	}
	f.bad = false // it is not known what its fields are
	return failed(statusUnsupported)
}

// statvfs tells about the file system of a path or of an open file.
func (s *server) statvfs(name string, f *fields) error {
	var st unix.Statfs_t
	var err error
	if name == extFstatvfs {
		h := s.file(f)
		if h == nil {
			return failed(statusFailure)
		}
		err = f.do(func() error { return unix.Fstatfs(int(h.Fd()), &st) })
	} else {
		path := f.text()
		err = f.do(func() error { return unix.Statfs(path, &st) })
	}
	if err != nil {
		return err
	}
	const readOnly, noSetuid = 1, 2 // the two that the protocol has; the kernel's are the same
	s.reply[4] = typeExtendedReply
	for _, n := range [...]uint64{
		uint64(st.Bsize), uint64(st.Frsize), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree,
		uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32, uint64(st.Flags) & (readOnly | noSetuid), uint64(st.Namelen),
	} {
		s.reply.u64(n)
	}
	return nil
}

// resolve serves the requests that turn a path into another.
func (s *server) resolve(kind byte, f *fields) error {
	path, found := f.text(), ""
	err := f.do(func() (err error) {
		if kind == typeReadlink {
			found, err = os.Readlink(path)
		} else {
			found, err = s.realPath(path)
		}
		return err
	})
	if err == nil {
		s.name(found)
	}
	return err
}

// name answers with one path.
func (s *server) name(path string) {
	s.reply[4] = typeName
	s.reply.u32(1)
	s.reply.text(path)
	s.reply.text(path)
	s.reply.attributes(attributes{})
}

// realPath returns path without symbolic links and dots. Its last element need
// not be there.
func (s *server) realPath(path string) (string, error) {
	left := path // what is still to be walked
	if !strings.HasPrefix(left, "/") {
		left = s.cwd + "/" + left
	}
	found, links, more := "", 0, true
	for more {
		if len(left) >= unix.PathMax {
			return "", unix.ENAMETOOLONG
		}
		var element string
		element, left, more = strings.Cut(left, "/")
		switch element {
		case "", ".":
			continue
		case "..":
			found = found[:max(strings.LastIndexByte(found, '/'), 0)]
			continue
		}
		at := found + "/" + element
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			if errors.Is(err, unix.ENOENT) && !more {
				return at, nil
			}
			return "", err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			found = at
			continue
		}
		to, err := os.Readlink(at)
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(to, "/") {
			found = ""
		}
		if more {
			to += "/" + left
		}
		left, more = to, true
	}
	return cmp.Or(found, "/"), nil
}

// expand turns a path with a tilde into one without (OpenSSH PROTOCOL, section
// 4.9).
func (s *server) expand(f *fields) error {
	path := f.text()
	tilde, rest, _ := strings.Cut(path, "/")
	switch {
	case tilde == "~": // where this server has begun
		path = s.cwd + "/" + rest
	case strings.HasPrefix(tilde, "~"):
		u, err := user.Lookup(tilde[1:])
		if err != nil {
			return failed(statusNoFile)
		}
		path = u.HomeDir + "/" + rest
	}
	found := ""
	err := f.do(func() (err error) {
		found, err = s.realPath(path)
		return err
	})
	if err == nil {
		s.name(found)
	}
	return err
}

// copyData copies from one open file to another.
func (s *server) copyData(f *fields) error {
	from, offset, left := s.file(f), f.u64(), f.u64()
	to, at := s.file(f), f.u64()
	if from == nil || to == nil || from == to || f.bad {
		return failed(statusFailure)
	}
	toEnd := left == 0
	buffer := make([]byte, streamSize)
	for toEnd || left > 0 {
		n := uint64(len(buffer))
		if !toEnd {
			n = min(n, left)
		}
		got := 0
		err := f.do(func() (err error) {
			got, err = unix.Pread(int(from.Fd()), buffer[:n], int64(offset))
			return err
		})
		switch {
		case err != nil:
			return err
		case got == 0:
			return nil
		}
		if err := to.put(buffer[:got], int64(at)); err != nil {
			return err
		}
		offset, at, left = offset+uint64(got), at+uint64(got), left-uint64(got)
	}
	return nil
}

// usersGroups tells the names of users and groups.
func (s *server) usersGroups(f *fields) error {
	lists := [2]fields{{b: f.bytes()}, {b: f.bytes()}}
	s.reply[4] = typeExtendedReply
	for i, look := range []func(uint32) string{s.names.user, s.names.group} {
		var names answer
		for len(lists[i].b) > 0 {
			id := lists[i].u32()
			if f.bad = f.bad || lists[i].bad; f.bad {
				return failed(statusBadMessage)
			}
			name := look(id)
			if name == strconv.FormatUint(uint64(id), 10) {
				name = ""
			}
			names.text(name)
		}
		s.reply.text(string(names))
	}
	return nil
}

func (s *server) readdir(f *fields) error {
	_, h := s.find(f)
	if h == nil || !h.directory {
		return failed(statusFailure)
	}
	s.reply[4] = typeName
	count := len(s.reply)
	s.reply.u32(0)
	n := uint32(0)
	for n == 0 { // files may all have gone meanwhile
		list, err := h.Readdirnames(listSize)
		if !h.listed {
			list = append([]string{".", ".."}, list...)
			h.listed = true
		}
		if len(list) == 0 && (err == nil || errors.Is(err, io.EOF)) {
			return failed(statusEOF)
		}
		if len(list) == 0 {
			return err
		}
		for _, name := range list {
			var st unix.Stat_t
			if unix.Fstatat(int(h.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			s.reply.text(name)
			s.reply.text(s.names.long(name, &st))
			s.reply.attributes(attributesOf(&st))
			n++
		}
	}
	s.reply[count+3] = byte(n) // fewer than 256
	return nil
}

// names knows what users and groups are called.
type names struct {
	users, groups map[uint32]string
}

func newNames() names { return names{users: map[uint32]string{}, groups: map[uint32]string{}} }

// remembered returns what known has for id, or looks it up. Who has no name is
// called by number.
func remembered(known map[uint32]string, id uint32, look func(id string) (string, error)) string {
	if name, ok := known[id]; ok {
		return name
	}
	number := strconv.FormatUint(uint64(id), 10)
	name, err := look(number)
	if err != nil {
		name = number
	}
	if len(known) >= maxNames {
		clear(known)
	}
	known[id] = name
	return name
}

func (n names) user(uid uint32) string {
	return remembered(n.users, uid, func(id string) (string, error) {
		u, err := user.LookupId(id)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n names) group(gid uint32) string {
	return remembered(n.groups, gid, func(id string) (string, error) {
		g, err := user.LookupGroupId(id)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

// long returns a line about a file as ls(1) has it.
func (n names) long(name string, st *unix.Stat_t) string {
	const halfYear = 365 * 24 * time.Hour / 2
	changed := time.Unix(st.Mtim.Sec, 0)
	form := "Jan _2  2006"
	if age := time.Since(changed); age >= 0 && age < halfYear {
		form = "Jan _2 15:04"
	}
	return fmt.Sprintf("%s %3d %-8s %-8s %8d %s %s", modeText(st.Mode), st.Nlink, n.user(st.Uid), n.group(st.Gid), st.Size, changed.Format(form), name)
}

// modeText returns a mode as strmode(3) does.
func modeText(mode uint32) string {
	kinds := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFBLK: 'b', unix.S_IFCHR: 'c', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}
	text := []byte("?rwxrwxrwx ")
	if kind, ok := kinds[mode&unix.S_IFMT]; ok {
		text[0] = kind
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			text[1+i] = '-'
		}
	}
	for _, special := range []struct {
		bit       uint32
		at        int
		with, not byte
	}{{unix.S_ISUID, 3, 's', 'S'}, {unix.S_ISGID, 6, 's', 'S'}, {unix.S_ISVTX, 9, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		if text[special.at] == 'x' {
			text[special.at] = special.with
		} else {
			text[special.at] = special.not
		}
	}
	return string(text)
}
