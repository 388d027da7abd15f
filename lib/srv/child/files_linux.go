package child

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"
)

// serveFiles serves the files of this account until its client is done. It
// begins in the working directory, which is the account's home.
func serveFiles(in io.Reader, out io.WriteCloser) error {
	home, err := os.Getwd()
	if err != nil {
		home = "/"
	}
	server := sftp.NewRequestServer(stream{in, out}, sftp.Handlers{
		FileGet: files{}, FilePut: files{}, FileCmd: files{}, FileList: files{},
	}, sftp.WithRSAllocator(), sftp.WithStartDirectory(home))
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sftp: %w", err)
	}
	return nil
}

type stream struct {
	io.Reader
	io.WriteCloser
}

// files are the files of this machine as the account sees them: each method is
// one system call, and the kernel says what is allowed. Where the protocol leaves
// something open it is as OpenSSH's sftp-server does it.
type files struct{}

// Fileread implements [sftp.FileReader].
func (files) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	return os.OpenFile(r.Filepath, os.O_RDONLY|unix.O_NOCTTY, 0)
}

// Filewrite implements [sftp.FileWriter].
func (files) Filewrite(r *sftp.Request) (io.WriterAt, error) { return open(r, os.O_WRONLY) }

// OpenFile implements [sftp.OpenFileWriter].
func (files) OpenFile(r *sftp.Request) (sftp.WriterAtReaderAt, error) { return open(r, os.O_RDWR) }

// file is an open file that may be written.
type file interface {
	sftp.WriterAtReaderAt
	io.Closer
}

func open(r *sftp.Request, flags int) (file, error) {
	p := r.Pflags()
	for _, f := range []struct {
		set bool
		bit int
	}{{p.Creat, os.O_CREATE}, {p.Trunc, os.O_TRUNC}, {p.Excl, os.O_EXCL}, {p.Append, os.O_APPEND}} {
		if f.set {
			flags |= f.bit
		}
	}
	mode := os.FileMode(0o666)
	if r.AttrFlags().Permissions {
		mode = r.Attributes().FileMode().Perm()
	}
	f, err := os.OpenFile(r.Filepath, flags|unix.O_NOCTTY, mode)
	if err != nil {
		return nil, err
	}
	if p.Append {
		return appended{f}, nil
	}
	return f, nil
}

// appended is a file whose writes all go to its end, wherever they are meant for.
type appended struct{ *os.File }

// WriteAt implements [io.WriterAt].
func (f appended) WriteAt(p []byte, _ int64) (int, error) { return f.Write(p) }

// Filecmd implements [sftp.FileCmder].
func (files) Filecmd(r *sftp.Request) error {
	switch r.Method {
	case "Setstat":
		return setstat(r)
	case "Rename":
		return rename(r.Filepath, r.Target)
	case "Rmdir":
		return unix.Rmdir(r.Filepath)
	case "Remove":
		return unix.Unlink(r.Filepath)
	case "Mkdir":
		return os.Mkdir(r.Filepath, 0o777)
	case "Link":
		return os.Link(r.Filepath, r.Target)
	case "Symlink": // its target is no path of ours to look at
		return os.Symlink(r.Filepath, r.Target)
	}
	return sftp.ErrSSHFxOpUnsupported
}

// rename fails when there is something called to (draft-ietf-secsh-filexfer-02,
// section 6.5). Not every file system can promise that in one step.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}

// PosixRename implements [sftp.PosixRenameFileCmder].
func (files) PosixRename(r *sftp.Request) error { return os.Rename(r.Filepath, r.Target) }

// setstat changes what a request names, in the order of OpenSSH's server.
func setstat(r *sftp.Request) error {
	flags, a := r.AttrFlags(), r.Attributes()
	if flags.Size {
		if err := os.Truncate(r.Filepath, int64(a.Size)); err != nil {
			return err
		}
	}
	if flags.Permissions {
		if err := os.Chmod(r.Filepath, a.FileMode()); err != nil {
			return err
		}
	}
	if flags.Acmodtime {
		if err := os.Chtimes(r.Filepath, a.AccessTime(), a.ModTime()); err != nil {
			return err
		}
	}
	if flags.UidGid {
		return os.Chown(r.Filepath, int(a.UID), int(a.GID))
	}
	return nil
}

// StatVFS implements [sftp.StatVFSFileCmder].
func (files) StatVFS(r *sftp.Request) (*sftp.StatVFS, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(r.Filepath, &s); err != nil {
		return nil, err
	}
	return &sftp.StatVFS{
		Bsize: uint64(s.Bsize), Frsize: uint64(s.Frsize), Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail,
		Files: s.Files, Ffree: s.Ffree, Favail: s.Ffree, Flag: uint64(s.Flags), Namemax: uint64(s.Namelen),
	}, nil
}

// Filelist implements [sftp.FileLister].
func (files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	switch r.Method {
	case "List":
		d, err := os.Open(r.Filepath)
		if err != nil {
			return nil, err
		}
		return &directory{d}, nil
	case "Stat":
		info, err := os.Stat(r.Filepath)
		return one{info}, err
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// Lstat implements [sftp.LstatFileLister].
func (files) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := os.Lstat(r.Filepath)
	return one{info}, err
}

// Readlink implements [sftp.ReadlinkFileLister].
func (files) Readlink(path string) (string, error) { return os.Readlink(path) }

// RealPath implements [sftp.RealPathFileLister]. As with OpenSSH's server the last
// element need not be there.
func (files) RealPath(path string) (string, error) {
	found, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return found, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// LookupUserName implements [sftp.NameLookupFileLister].
func (files) LookupUserName(uid string) string {
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

// LookupGroupName implements [sftp.NameLookupFileLister].
func (files) LookupGroupName(gid string) string {
	if g, err := user.LookupGroupId(gid); err == nil {
		return g.Name
	}
	return gid
}

// one is a list of one file.
type one struct{ info os.FileInfo }

// ListAt implements [sftp.ListerAt].
func (l one) ListAt(list []os.FileInfo, offset int64) (int, error) {
	if offset > 0 || len(list) == 0 {
		return 0, io.EOF
	}
	list[0] = l.info
	return 1, io.EOF
}

// directory is an open directory, which is listed from the front to the end. As
// with OpenSSH's server it holds itself and its parent.
type directory struct{ *os.File }

// ListAt implements [sftp.ListerAt].
func (d *directory) ListAt(list []os.FileInfo, offset int64) (int, error) {
	n := 0
	if offset == 0 {
		for _, name := range []string{".", ".."} {
			if info, err := os.Stat(filepath.Join(d.Name(), name)); err == nil && n < len(list) {
				list[n] = called{info, name}
				n++
			}
		}
	}
	infos, err := d.Readdir(len(list) - n)
	return n + copy(list[n:], infos), err
}

// called is a file under another name.
type called struct {
	os.FileInfo

	name string
}

// Name implements [os.FileInfo].
func (c called) Name() string { return c.name }
