package sftp

import (
	"fmt"
	"strings"
	"time"
)

// Operation is what became of something a client asked for.
type Operation struct {
	// Action is one of
	//   - open, close, readdir: a file opened; a file closed, with what went
	//     through it; a directory that was opened to be listed, when it is closed;
	//   - remove, rename, mkdir, rmdir, setstat, symlink, link, copy: what changes
	//     something;
	//   - any of these and read, write, fsync, stat, lstat, fstat, realpath,
	//     readlink, statvfs, users-groups: what was refused by a right. Of one
	//     file, reads and writes are reported once.
	Action string
	// Path and Target are as the client named them. What is made by a link or a
	// copy, and a file before its renaming, is Path; Target is the other file.
	Path   string
	Target string
	Flags  string // how a file is opened: "write,create,truncate"
	Attrs  string // attributes that are given: "mode=0644,size=0"
	Write  bool   // it takes the right to write

	// Status is that of the answer (draft-ietf-secsh-filexfer-02, section 7): 0 is
	// success. With any other, Error holds the server's words or the reason why
	// it was refused, cut to a few hundred bytes.
	Status uint32
	Error  string

	// For close: bytes the client was sent and bytes it sent that the server
	// took. Sequential tells that all went one way, once, in order, from the
	// file's beginning; then SHA256 is their hash in hexadecimal.
	BytesRead    int64
	BytesWritten int64
	Sequential   bool
	SHA256       string
}

// ended is the error of what was not answered, or not closed, at the end.
const ended = "session ended"

// bounded cuts s to what an error of an [Operation] may have.
func bounded(s string) string {
	if len(s) > maxError {
		s = s[:maxError] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// flagsText names the flags of OPEN.
func flagsText(flags uint32) string {
	var words []string
	for _, f := range []struct {
		bit  uint32
		word string
	}{
		{flagRead, "read"},
		{flagWrite, "write"},
		{flagAppend, "append"},
		{flagCreate, "create"},
		{flagTrunc, "truncate"},
		{flagExcl, "exclusive"},
	} {
		if flags&f.bit != 0 {
			words = append(words, f.word)
		}
	}
	return strings.Join(words, ",")
}

// attributes are those of a request that an operating system's file has.
type attributes struct {
	flags        uint32
	size         uint64
	uid, gid     uint32
	mode         uint32
	atime, mtime uint32
}

// attrs reads attributes (section 5). Extended ones, which come last and which
// no server known uses, are left.
func (f *fields) attrs() attributes {
	a := attributes{flags: f.u32()}
	if a.flags&attrSize != 0 {
		a.size = f.u64()
	}
	if a.flags&attrOwner != 0 {
		a.uid, a.gid = f.u32(), f.u32()
	}
	if a.flags&attrMode != 0 {
		a.mode = f.u32()
	}
	if a.flags&attrTimes != 0 {
		a.atime, a.mtime = f.u32(), f.u32()
	}
	return a
}

func (a attributes) String() string {
	var words []string
	if a.flags&attrMode != 0 {
		words = append(words, fmt.Sprintf("mode=%04o", a.mode&0o7777))
	}
	if a.flags&attrSize != 0 {
		words = append(words, fmt.Sprintf("size=%d", a.size))
	}
	if a.flags&attrOwner != 0 {
		words = append(words, fmt.Sprintf("owner=%d:%d", a.uid, a.gid))
	}
	if a.flags&attrTimes != 0 {
		words = append(words, "atime="+timeText(a.atime), "mtime="+timeText(a.mtime))
	}
	return strings.Join(words, ",")
}

func timeText(seconds uint32) string {
	return time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
}
