package sftp

// Actions: the words of [Operation], and what the filter calls the rest.
const (
	actOpen     = "open"
	actClose    = "close"
	actRead     = "read"
	actWrite    = "write"
	actReaddir  = "readdir"
	actOpendir  = "opendir"
	actRemove   = "remove"
	actRename   = "rename"
	actMkdir    = "mkdir"
	actRmdir    = "rmdir"
	actSetstat  = "setstat"
	actSymlink  = "symlink"
	actLink     = "link"
	actCopy     = "copy"
	actFsync    = "fsync"
	actStat     = "stat"
	actLstat    = "lstat"
	actFstat    = "fstat"
	actRealpath = "realpath"
	actReadlink = "readlink"
	actStatvfs  = "statvfs"
	actLimits   = "limits"
	actGroups   = "users-groups"
)

// need is the right that a request takes.
type need uint8

const (
	needNothing need = iota
	needEither
	needRead
	needWrite
	needBoth
)

// call is a request of a client, read.
type call struct {
	action string
	need   need
	good   byte // type of the answer that brings what was asked for

	path, target string
	attrs        attributes
	flags        uint32
	handle       []byte // nil: none; part of the packet
	source       []byte // handle that copy-data reads
	offset       uint64
	length       uint32
	data         int // where the data of a WRITE begins
}

// reported tells whether every outcome of the call is an [Operation].
func (c *call) reported() bool {
	switch c.action {
	case actOpen, actRemove, actRename, actMkdir, actRmdir, actSetstat, actSymlink, actLink, actCopy:
		return true
	}
	return false
}

// parse reads the request in p, the beginning of a packet that has size bytes.
// A name that is not known leaves action empty; ok is false for a packet that
// the protocol does not allow. Bytes after the last field are nobody's: servers
// leave them, too.
func parse(p []byte, size int) (c call, ok bool) {
	f := fields{b: p[4+1+4:]}
	switch kind := p[4]; kind {
	case typeOpen:
		c = call{action: actOpen, good: typeHandle, path: f.path(), flags: f.u32(), attrs: f.attrs()}
		c.need = openNeeds(c.flags)
	case typeExtended:
		c = parseExtended(&f)
	case typeClose, typeRead, typeWrite, typeFstat, typeFsetstat, typeReaddir:
		c = parseHandle(kind, &f)
		if kind == typeWrite {
			c.data = len(p) - len(f.b)
			f.bad = f.bad || uint64(c.length) > uint64(size-c.data)
		}
	default:
		c = parsePath(kind, &f)
	}
	return c, !f.bad
}

// openNeeds returns the right that flags take. OpenSSH's server opens for
// reading what is not to be written, whatever else is asked for.
func openNeeds(flags uint32) need {
	changes := flags&(flagWrite|flagAppend|flagCreate|flagTrunc) != 0
	reads := flags&flagRead != 0 || flags&flagWrite == 0
	switch {
	case changes && reads:
		return needBoth
	case changes:
		return needWrite
	}
	return needRead
}

// parseHandle reads what is asked of a handle (sections 6.3, 6.4, 6.7 to 6.9).
func parseHandle(kind byte, f *fields) call {
	c := call{handle: f.bytes(maxHandle), good: typeStatus}
	switch kind {
	case typeClose:
		c.action = actClose
	case typeRead:
		c.action, c.need, c.good = actRead, needRead, typeData
		c.offset, c.length = f.u64(), f.u32()
	case typeWrite:
		c.action, c.need = actWrite, needWrite
		c.offset, c.length = f.u64(), f.u32()
	case typeFstat:
		c.action, c.need, c.good = actFstat, needEither, typeAttrs
	case typeFsetstat:
		c.action, c.need, c.attrs = actSetstat, needWrite, f.attrs()
	case typeReaddir:
		c.action, c.need, c.good = actReaddir, needEither, typeName
	}
	return c
}

// parsePath reads what is asked of a path (sections 6.5 to 6.11).
func parsePath(kind byte, f *fields) call {
	look := func(action string, good byte) call {
		return call{action: action, need: needEither, good: good, path: f.path()}
	}
	change := func(action string) call {
		return call{action: action, need: needWrite, good: typeStatus, path: f.path()}
	}
	var c call
	switch kind {
	case typeStat:
		c = look(actStat, typeAttrs)
	case typeLstat:
		c = look(actLstat, typeAttrs)
	case typeRealpath:
		c = look(actRealpath, typeName)
	case typeReadlink:
		c = look(actReadlink, typeName)
	case typeOpendir:
		c = look(actOpendir, typeHandle)
	case typeRemove:
		c = change(actRemove)
	case typeRmdir:
		c = change(actRmdir)
	case typeMkdir:
		c = change(actMkdir)
		c.attrs = f.attrs()
	case typeSetstat:
		c = change(actSetstat)
		c.attrs = f.attrs()
	case typeRename:
		c = change(actRename)
		c.target = f.path()
	case typeSymlink: // in OpenSSH's order, not in section 6.10's
		c = call{action: actSymlink, need: needWrite, good: typeStatus, target: f.path(), path: f.path()}
	}
	return c
}

// parseExtended reads an extended request.
func parseExtended(f *fields) call {
	name := f.text(maxExtension)
	c := call{good: typeExtendedReply, need: needEither}
	switch name {
	case extPosixRename:
		c.action, c.path, c.target = actRename, f.path(), f.path()
		c.need, c.good = needWrite, typeStatus
	case extHardlink:
		c.action, c.target, c.path = actLink, f.path(), f.path()
		c.need, c.good = needWrite, typeStatus
	case extLsetstat:
		c.action, c.path, c.attrs = actSetstat, f.path(), f.attrs()
		c.need, c.good = needWrite, typeStatus
	case extFsync:
		c.action, c.handle = actFsync, f.bytes(maxHandle)
		c.need, c.good = needWrite, typeStatus
	case extCopyData:
		c.action, c.source = actCopy, f.bytes(maxHandle)
		f.take(8 + 8) // offset and length to read
		c.handle = f.bytes(maxHandle)
		f.take(8) // offset to write to
		c.need, c.good = needBoth, typeStatus
	case extStatvfs:
		c.action, c.path = actStatvfs, f.path()
	case extFstatvfs:
		c.action, c.handle = actStatvfs, f.bytes(maxHandle)
	case extExpandPath:
		c.action, c.path, c.good = actRealpath, f.path(), typeName
	case extLimits:
		c.action = actLimits
	case extUsersGroups:
		c.action = actGroups
	default:
		f.bad = false // its fields are not known
		return call{}
	}
	return c
}
