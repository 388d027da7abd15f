package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// fileChecks are clients that move files, over OpenSSH's transport or their own.
func fileChecks() []check {
	return []check{
		{"sftp", "put, get", "5 MB each way, permissions and times kept with -p", nil, sftpPutGet},
		{"sftp", "resume", "reput and reget finish half a file", nil, sftpResume},
		{"sftp", "names", "ls, mkdir, rename, symlink, ln, chmod, rm, rmdir, df", nil, sftpNames},
		{"sftp", "refused by the system", "the login's rights decide, and the client reads why", nil, func(t *testing.T, x target) {
			r := x.sftp(t, "get /etc/shadow "+t.TempDir()+"/shadow\n")
			if r.Code != 1 || !strings.Contains(r.Stderr, "Permission denied") {
				t.Errorf("exit %d, stderr %q", r.Code, r.Stderr)
			}
		}},
		{"scp", "files", "there and back, over SFTP", nil, func(t *testing.T, x target) { scp(t, x) }},
		{"scp -O", "files", "there and back, with the old protocol", nil, func(t *testing.T, x target) { scp(t, x, "-O") }},
		{"scp -3", "between two nodes", "through the person's machine", nil, func(t *testing.T, x target) {
			dir := x.scratch(t)
			want := blob(t, filepath.Join(dir, "a"), 1<<20)
			must(t, x.run(t, nil, "scp", "-q", "-F", x.config, "-3", x.alias()+":"+dir+"/a", stock+":"+dir+"/b"))
			sameFile(t, filepath.Join(dir, "b"), want)
			must(t, x.run(t, nil, "scp", "-q", "-F", x.config, "-3", stock+":"+dir+"/b", x.alias()+":"+dir+"/c"))
			sameFile(t, filepath.Join(dir, "c"), want)
		}},
		{"rsync", "a tree", "whole, then only what changed, with --delete", nil, rsync},
		{"git", "clone and push", "a repository on the node", nil, git},
		{"sshfs", "mount", "write, read, rename, list and remove through FUSE", nil, sshfs},
		{"lftp", "sftp://", "put, get and mirror with its own SFTP client", nil, lftp},
		{"ansible", "modules", "ping, copy, fetch and shell", nil, ansible},
	}
}

// sftp runs the stock client on a batch of commands.
func (x target) sftp(t *testing.T, batch string) harness.Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "batch")
	harness.WriteFile(t, file, batch)
	return x.run(t, nil, "sftp", "-q", "-F", x.config, "-b", file, x.alias())
}

func sftpPutGet(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, filepath.Join(near, "here"), 5<<20)
	if err := os.Chmod(filepath.Join(near, "here"), 0o640); err != nil {
		t.Fatal(err)
	}
	must(t, x.sftp(t, fmt.Sprintf("put -p %[1]s/here %[2]s/there\nget -p %[2]s/there %[1]s/back\n", near, far)))
	for _, path := range []string{far + "/there", near + "/back"} {
		sameFile(t, path, want)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v, %v, want mode 0640", path, fi, err)
		}
	}
	must(t, x.sftp(t, fmt.Sprintf("put %s/here \"%s/a name, with spaces; and é\"\n", near, far)))
	sameFile(t, far+"/a name, with spaces; and é", want)
}

func sftpResume(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, filepath.Join(near, "whole"), 3<<20)
	whole := read(t, filepath.Join(near, "whole"))
	harness.WriteFile(t, filepath.Join(near, "half"), whole[:1<<20])
	harness.WriteFile(t, filepath.Join(far, "half"), whole[:1<<20])
	if err := os.Chmod(filepath.Join(far, "half"), 0o666); err != nil {
		t.Fatal(err)
	}
	must(t, x.sftp(t, fmt.Sprintf("reput %[1]s/whole %[2]s/half\nput %[1]s/whole %[2]s/whole\nreget %[2]s/whole %[1]s/half\n", near, far)))
	sameFile(t, filepath.Join(far, "half"), want)
	sameFile(t, filepath.Join(near, "half"), want)
}

func sftpNames(t *testing.T, x target) {
	far := x.scratch(t)
	harness.WriteFile(t, filepath.Join(far, "a"), "a")
	if err := os.Chmod(filepath.Join(far, "a"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := x.sftp(t, strings.ReplaceAll(`cd FAR
put /etc/hostname mine
mkdir d
rename mine d/renamed
symlink d/renamed link
ln d/renamed hard
chmod 600 hard
ls -1
df .
pwd
-rename hard d
rm link
rm d/renamed
rmdir d
`, "FAR", far))
	if want := "a\nd\nhard\nlink\n"; r.Code != 0 || !strings.Contains(r.Stdout, want) {
		t.Errorf("exit %d, stdout %q, stderr %q, want %q", r.Code, r.Stdout, r.Stderr, want)
	}
	left, err := os.ReadDir(far)
	if err != nil || len(left) != 2 || left[1].Name() != "hard" {
		t.Fatalf("left over: %v %v, want a and hard", left, err)
	}
	if fi, err := left[1].Info(); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("hard is %v %v, want 0600", fi, err)
	}
}

func scp(t *testing.T, x target, flags ...string) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, filepath.Join(near, "a"), 3<<20)
	args := append([]string{"-q", "-F", x.config}, flags...)
	must(t, x.run(t, nil, "scp", append(args, near+"/a", x.alias()+":"+far+"/b")...))
	sameFile(t, far+"/b", want)
	must(t, x.run(t, nil, "scp", append(args, "-p", x.alias()+":"+far+"/b", near+"/c")...))
	sameFile(t, near+"/c", want)
	for _, dir := range []string{"tree/one/two", "tree/empty"} {
		if err := os.MkdirAll(filepath.Join(near, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deep := blob(t, filepath.Join(near, "tree/one/two/deep"), 1000)
	must(t, x.run(t, nil, "scp", append(args, "-r", near+"/tree", x.alias()+":"+far+"/copy")...))
	sameFile(t, far+"/copy/one/two/deep", deep)
	must(t, x.run(t, nil, "scp", append(args, "-r", x.alias()+":"+far+"/copy", near+"/back")...))
	sameFile(t, near+"/back/one/two/deep", deep)
	if fi, err := os.Stat(near + "/back/empty"); err != nil || !fi.IsDir() {
		t.Errorf("the empty directory: %v %v", fi, err)
	}
	r := x.run(t, nil, "scp", append(args, x.alias()+":"+far+"/none", near+"/none")...)
	if r.Code != 1 || !strings.Contains(r.Stderr, "No such file") {
		t.Errorf("a file that is not there: exit %d, %q", r.Code, r.Stderr)
	}
}

func rsync(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	for i := range 40 {
		blob(t, filepath.Join(near, fmt.Sprintf("f%02d", i)), 1000*i)
	}
	big := blob(t, filepath.Join(near, "big"), 3<<20)
	shell := "ssh -F " + x.config
	must(t, x.run(t, nil, "rsync", "-rtO", "-e", shell, near+"/", x.alias()+":"+far+"/"))
	sameFile(t, far+"/big", big)
	if err := os.Remove(filepath.Join(near, "f07")); err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, filepath.Join(near, "f08"), "changed")
	out := must(t, x.run(t, nil, "rsync", "-rtO", "--delete", "--stats", "-e", shell, near+"/", x.alias()+":"+far+"/"))
	if !strings.Contains(out, "Number of regular files transferred: 1\n") {
		t.Errorf("rsync --stats: %s", out)
	}
	back := t.TempDir()
	must(t, x.run(t, nil, "rsync", "-rtO", "-z", "-e", shell, x.alias()+":"+far+"/", back+"/"))
	must(t, harness.Run(t, nil, "diff", "-r", near, back))
}

func git(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	must(t, x.ssh(t, nil, "git init -q --bare "+far+"/repo.git"))
	env := []string{
		"GIT_SSH_COMMAND=ssh -F " + x.config, "HOME=" + near, "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=init.defaultBranch", "GIT_CONFIG_VALUE_0=main",
	}
	url := x.alias() + ":" + far + "/repo.git"
	must(t, x.run(t, env, "git", "clone", "-q", url, near+"/one"))
	want := blob(t, near+"/one/blob", 2<<20)
	must(t, x.run(t, env, "git", "-C", near+"/one", "add", "."))
	must(t, x.run(t, env, "git", "-C", near+"/one", "commit", "-q", "-m", "one"))
	must(t, x.run(t, env, "git", "-C", near+"/one", "push", "-q", "origin", "HEAD:main"))
	must(t, x.run(t, env, "git", "clone", "-q", "-b", "main", url, near+"/two"))
	sameFile(t, near+"/two/blob", want)
}

// sshfs mounts a directory of the node, where this kernel has FUSE.
func sshfs(t *testing.T, x target) {
	if dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("NOT RUN: no FUSE on this machine: %v", err)
	} else {
		dev.Close()
	}
	far, mnt := x.scratch(t), shortDir(t)
	cmd := exec.Command("sshfs", "-f", "-F", x.config, x.alias()+":"+far, mnt)
	fs := x.background(t, cmd)
	t.Cleanup(func() { _ = exec.Command("fusermount3", "-u", "-z", mnt).Run() })
	fs.eventually(t, "the mount is there", func() bool {
		return exec.Command("mountpoint", "-q", mnt).Run() == nil
	})
	// Not written from here: a signal, and Go sends itself many, lets close return
	// before sshfs has sent everything.
	near := filepath.Join(t.TempDir(), "file")
	want := blob(t, near, 2<<20)
	must(t, harness.Run(t, nil, "cp", near, mnt+"/file"))
	sameFile(t, far+"/file", want)
	sameFile(t, mnt+"/file", want)
	for _, err := range []error{os.Mkdir(mnt+"/d", 0o755), os.Rename(mnt+"/file", mnt+"/d/moved"), os.Symlink("d/moved", mnt+"/link")} {
		if err != nil {
			t.Error(err)
		}
	}
	sameFile(t, far+"/link", want)
	list, err := os.ReadDir(mnt)
	if err != nil || len(list) != 2 {
		t.Errorf("ReadDir = %v, %v, want d and link", list, err)
	}
	if err := os.RemoveAll(mnt + "/d"); err != nil {
		t.Error(err)
	}
	// A process that another test is starting right now has our files open until it runs.
	fs.eventually(t, "nobody uses the mount", func() bool { return harness.Run(t, nil, "fusermount3", "-u", mnt).Code == 0 })
	// The kernel may tell a reader that was late for its end that it was aborted.
	if r := fs.wait(t); r.Code != 0 && !strings.Contains(r.Stderr, "reading device: Software caused connection abort") {
		t.Errorf("sshfs = %d %s", r.Code, r.Stderr)
	}
}

func lftp(t *testing.T, x target) {
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, near+"/a", 1<<20)
	script := fmt.Sprintf(`set sftp:connect-program "ssh -a -x -F %s"; set net:max-retries 1; set cmd:fail-exit true; open sftp://%s; put %s/a -o %s/b; get %[4]s/b -o %[3]s/c; mkdir %[4]s/d; mv %[4]s/b %[4]s/d/e; mirror %[4]s/d %[3]s/m; ls %[4]s/d; quit`, x.config, x.alias(), near, far)
	r := x.run(t, []string{"HOME=" + near}, "lftp", "-c", script)
	if r.Code != 0 || !strings.Contains(r.Stdout, " e\n") {
		t.Errorf("exit %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
	}
	for _, path := range []string{near + "/c", far + "/d/e", near + "/m/e"} {
		sameFile(t, path, want)
	}
}

func ansible(t *testing.T, x target) {
	far, near := x.scratch(t), shortDir(t)
	want := blob(t, near+"/a", 100_000)
	play := fmt.Sprintf(`- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.ping:
    - ansible.builtin.copy: {src: %[1]s/a, dest: %[2]s/b, mode: "0600"}
    - ansible.builtin.shell: sha256sum < %[2]s/b; exit 0
      register: sum
    - ansible.builtin.assert: {that: "sum.stdout.startswith('%[3]s')"}
    - ansible.builtin.fetch: {src: %[2]s/b, dest: %[1]s/back, flat: true}
`, near, far, want)
	harness.WriteFile(t, near+"/play.yaml", play)
	harness.WriteFile(t, near+"/hosts", fmt.Sprintf("%s ansible_ssh_common_args='-F %s' ansible_python_interpreter=/usr/bin/python3\n", x.alias(), x.config))
	env := []string{
		"HOME=" + near, "ANSIBLE_HOST_KEY_CHECKING=true", "ANSIBLE_NOCOLOR=1", "ANSIBLE_SSH_CONTROL_PATH_DIR=" + near + "/cp", "ANSIBLE_LOCAL_TEMP=" + near + "/tmp",
		"ANSIBLE_REMOTE_TEMP=" + far + "/.ansible", "LC_ALL=C.UTF-8",
	}
	r := x.run(t, env, "ansible-playbook", "-i", near+"/hosts", near+"/play.yaml")
	if r.Code != 0 || !strings.Contains(r.Stdout, "ok=5") || !strings.Contains(r.Stdout, "failed=0") {
		t.Errorf("exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	sameFile(t, near+"/back", want)
}
