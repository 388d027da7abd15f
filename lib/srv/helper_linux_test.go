package srv

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv/child"
)

// helperEnv makes the test binary a server that starts one process, tells its
// number and waits to be killed.
const helperEnv = "ACCESSD_TEST_HELPER"

func TestMain(m *testing.M) {
	if code, ok := child.Run(os.Args); ok {
		os.Exit(code)
	}
	if runHelper() {
		return
	}
	cleanup := addAccount()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		cleanup()
		os.Exit(code)
	}))
}

func runHelper() bool {
	login := os.Getenv(helperEnv)
	if login == "" {
		return false
	}
	local, err := NewLocal(LocalConfig{})
	if err != nil {
		panic(err)
	}
	p, err := local.Start(context.TODO(), Command{Account: Account{Login: names.Login(login)}, Kind: KindExec, Line: "echo $$; exec sleep 1000"})
	if err != nil {
		panic(err)
	}
	var pid int
	if _, err := fmt.Fscan(p.Pipes().Stdout, &pid); err != nil {
		panic(err)
	}
	fmt.Println(pid)
	<-p.Exited()
	return true
}

// accountEnv names the account that TestMain has made.
const accountEnv = "ACCESSD_TEST_ACCOUNT"

// addAccount makes an account to log in to when the tests run as root, so that
// nobody's start-up files matter and privileges can be tested. What it returns
// takes the account away again.
func addAccount() func() {
	if os.Geteuid() != 0 {
		return func() {}
	}
	login := "acc" + strconv.Itoa(os.Getpid())
	// The password "*" matches none and, unlike "!", is not locked, for which
	// sshd would refuse the account.
	out, err := exec.Command("useradd", "--create-home", "--skel", "/nonexistent", "--shell", "/bin/bash",
		"--groups", "games,audio", "--password", "*", login).CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("useradd: %v\n%s", err, out))
	}
	_ = os.Setenv(accountEnv, login)
	return func() { _ = exec.Command("userdel", "--remove", "--force", login).Run() }
}

// me returns the account to log in to.
func me(t *testing.T) string {
	t.Helper()
	if login := os.Getenv(accountEnv); login != "" {
		return login
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// F02: the server is killed in the middle of a command that has no terminal and
// neither reads nor writes. OpenSSH would leave it running; ours hangs up.
func TestF02KilledServerHangsUp(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+me(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(out), &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		t.Errorf("the command still runs 10 s after its server was killed (poll: %d, %v)", n, err)
	}
	_ = unix.Close(fd)
}
