package sftp

import "sync/atomic"

// maxHandles bounds the open handles of a session; OpenSSH's server has as many
// as a process may open files, which is 1024 on most systems.
const maxHandles = 1024

// maxOutstanding bounds the requests that a session's server has not answered.
// Over it the client is not read; stock clients stay under 256.
const maxOutstanding = 4096

// file is what a handle stands for. The pump of the client has write and
// refused, the pump of the server the rest; after the CLOSE has passed the
// former nothing of it changes there.
type file struct {
	path  string
	flags uint32
	dir   bool

	write   content
	refused bool // a refused read or write has been reported

	read                    content
	bytesRead, bytesWritten int64 // that were answered
	spoilt                  bool  // something else has changed the content
	empty                   bool  // its first byte was asked for, and there is none
}

func newFile(c *request, held *atomic.Int64) *file {
	return &file{
		path: c.path, flags: c.flags, dir: c.action == actOpendir,
		write: content{held: held}, read: content{held: held},
	}
}

// closed returns the operation that says what went through f.
func (f *file) closed() Operation {
	if f.dir {
		return Operation{Action: actReaddir, Path: f.path}
	}
	op := Operation{
		Action: actClose, Path: f.path, Flags: flagsText(f.flags),
		Write:     openNeeds(f.flags) != needRead,
		BytesRead: f.bytesRead, BytesWritten: f.bytesWritten,
	}
	switch {
	case f.spoilt, f.flags&flagAppend != 0: // the offsets of APPEND mean nothing
	case f.read.next == 0 && (f.write.next > 0 || f.flags&flagTrunc != 0):
		op.SHA256, op.Sequential = f.write.sha256(f.bytesWritten)
		op.Sequential = op.Sequential && f.bytesRead == 0
	case f.write.next == 0 && (f.read.next > 0 || f.empty):
		op.SHA256, op.Sequential = f.read.sha256(f.bytesRead)
		op.Sequential = op.Sequential && f.bytesWritten == 0
	}
	if !op.Sequential {
		op.SHA256 = ""
	}
	f.read.release()
	f.write.release()
	return op
}

// request is a [call] that the server has been asked and has not answered.
type request struct {
	action string
	good   byte
	path   string     // of an open or opendir
	flags  uint32     // of an open
	file   *file      // that it concerns
	resize bool       // it sets the size of file
	offset uint64     // of a read
	length uint32     // of a read or write
	op     *Operation // what is reported of its outcome; nil: nothing
}
