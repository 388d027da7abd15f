package recording

import "syscall"

// mountSmall mounts a file system of 2 MB on dir.
func mountSmall(dir string) error {
	return syscall.Mount("accessd-test", dir, "tmpfs", 0, "size=2m,mode=0700")
}

func unmount(dir string) error { return syscall.Unmount(dir, 0) }
