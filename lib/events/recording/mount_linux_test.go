package recording

import "syscall"

// mountSmall mounts a file system of 4 MB on dir.
func mountSmall(dir string) error {
	return syscall.Mount("accessd-test", dir, "tmpfs", 0, "size=4m,mode=0700")
}

func unmount(dir string) error { return syscall.Unmount(dir, 0) }
