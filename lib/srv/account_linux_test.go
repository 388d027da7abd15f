package srv

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// etc returns accounts that are read from files of the test's own.
func etc(t *testing.T, files map[string]string) accounts {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return accounts{root: dir, now: func() time.Time { return time.Unix(20_000*secondsPerDay, 0) }}
}

const (
	passwdFile = `root:x:0:0:root:/root:/bin/bash
deploy:x:1000:1000:,,,:/home/deploy:/bin/sh
noshell:x:1001:1001::/:
big:x:4294967295:1::/:/bin/sh
text:x:one:1::/:/bin/sh
short:x:1
+nis:x:1002:1002::/:/bin/sh
deploy:x:0:0:second entry:/root:/bin/bash
`
	groupFile = `root:x:0:
tty:x:5:
deploy:x:1000:
sudo:x:27:other,deploy
docker:x:999:deploy
again:x:27:deploy
odd:x:-1:deploy
deploy-admin:x:1:deployer,xdeploy
`
)

func TestFindAccount(t *testing.T) {
	a := etc(t, map[string]string{"etc/passwd": passwdFile, "etc/group": groupFile})
	got, err := a.find(t.Context(), "deploy")
	if err != nil {
		t.Fatal(err)
	}
	if got.uid != 1000 || got.gid != 1000 || got.home != "/home/deploy" || got.shell != "/bin/sh" {
		t.Errorf("find = %+v", got)
	}
	groups, err := a.groupsOf(t.Context(), got)
	if want := []uint32{1000, 27, 999}; !slices.Equal(groups, want) || err != nil {
		t.Errorf("groups %v, %v, want %v", groups, err, want)
	}
	if got, err := a.find(t.Context(), "noshell"); err != nil || got.shell != "/bin/sh" {
		t.Errorf("account without a shell: %+v, %v, want /bin/sh", got, err)
	}
	for _, login := range []names.Login{"big", "text", "short", "nis", "nobody", "dep", "deploy2", "x"} {
		if got, err := a.find(t.Context(), login); !fault.Is(err, fault.Denied) {
			t.Errorf("find %q = %+v, %v, want denied", login, got, err)
		}
	}
	if gid, ok := a.ttyGroup(); gid != 5 || !ok {
		t.Errorf("ttyGroup = %d, %v, want 5", gid, ok)
	}
	if _, err := etc(t, nil).find(t.Context(), "root"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("find without a passwd file: %v, want unavailable", err)
	}
}

func TestSourcesBeyondFiles(t *testing.T) {
	tests := map[string]bool{
		"":                                      false,
		"passwd: files\n":                       false,
		"passwd:\tfiles compat # sss\n":         false,
		"passwd: files systemd\n":               true,
		"passwd: files [NOTFOUND=return] sss\n": true,
		"group: sss\n":                          false,
		"#passwd: sss\n":                        false,
	}
	for file, want := range tests {
		if got := etc(t, map[string]string{"etc/nsswitch.conf": file}).beyondFiles("passwd"); got != want {
			t.Errorf("%q: beyond files = %v, want %v", file, got, want)
		}
	}
}

// getent must give what the files give for an account of this machine, and know
// who is not there.
func TestGetentAgreesWithFiles(t *testing.T) {
	files := accounts{root: "/", now: time.Now}
	asked, err := files.askPasswd(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	read, err := files.passwd(func(name string, _ uint32) bool { return name == "root" })
	if err != nil {
		t.Fatal(err)
	}
	if asked.uid != read.uid || asked.gid != read.gid || asked.home != read.home || asked.shell != read.shell {
		t.Errorf("getent says %+v, the file %+v", asked, read)
	}
	if _, err := files.askPasswd(t.Context(), "no-such-account"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown account: %v, want not found", err)
	}
}

func TestExpired(t *testing.T) {
	tests := map[string]bool{
		"a:!:19000:0:99999:7:::":       false, // a locked password locks the password
		"a:*:19000:0:99999:7::20001:":  false,
		"a:*:19000:0:99999:7::20000:":  true,
		"a:*:19000:0:99999:7::1:":      true, // usermod -e 1
		"a:*:19000:0:99999:7::0:":      true,
		"a:*:19000:0:99999:7::-1:":     false,
		"a:*:19000:0:99999:7::x:":      false,
		"aa:*:19000:0:99999:7::1:":     false,
		"a:*:19000:0:99999:7":          false,
		"b:::::::1:\na:*:1:::::30000:": false,
	}
	for line, want := range tests {
		got, err := etc(t, map[string]string{"etc/shadow": line + "\n"}).expired(account{name: "a"})
		if got != want || err != nil {
			t.Errorf("%q: expired = %v, %v, want %v", line, got, err, want)
		}
	}
	if got, err := etc(t, nil).expired(account{name: "a"}); got || err != nil {
		t.Errorf("without a shadow file: %v, %v, want false", got, err)
	}
}

func TestEnvironment(t *testing.T) {
	a := etc(t, map[string]string{
		"etc/environment":    "# comment\nPATH=\"/opt/bin:/bin\"\nexport HTTP_PROXY='http://x'\n bad line\nBAD NAME=1\n=x\nEMPTY=\n",
		"etc/default/locale": "LANG=de_DE.UTF-8\n",
	})
	t.Setenv("TZ", "Europe/Berlin")
	got := a.environment(account{name: "deploy", uid: 1000, home: "/home/deploy", shell: "/bin/sh"}, Command{}, "")
	want := []string{
		"TZ=Europe/Berlin", "USER=deploy", "LOGNAME=deploy", "HOME=/home/deploy", "PATH=/opt/bin:/bin", "MAIL=/var/mail/deploy",
		"SHELL=/bin/sh", "SSH_CLIENT=UNKNOWN 65535 65535", "SSH_CONNECTION=UNKNOWN 65535 UNKNOWN 65535",
		"HTTP_PROXY=http://x", "EMPTY=", "LANG=de_DE.UTF-8",
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// own returns files in which the account "me" is the one the test runs as.
func own(shell, home, expires string) map[string]string {
	id := strings.NewReplacer("UID", itoa(os.Getuid()), "GID", itoa(os.Getgid()))
	return map[string]string{
		"etc/passwd": id.Replace("me:x:UID:GID::" + home + ":" + shell + "\nstranger:x:54321:54321::/:/bin/sh\n"),
		"etc/group":  "",
		"etc/shadow": "me:*:19000:0:99999:7::" + expires + ":\nstranger:!:19000:0:99999:7:::\n",
	}
}

func localOf(t *testing.T, files map[string]string) *Local {
	t.Helper()
	l, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l.accounts = etc(t, files)
	return l
}

// F36, F37: what is wrong with an account is told before anything runs.
func TestF37AccountsThatCannotBeUsed(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "shell")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		files map[string]string
		login names.Login
		want  string
	}{
		{"unknown", own("/bin/sh", "/", ""), "nobody", `there is no account "nobody" on this node`},
		{"expired", own("/bin/sh", "/", "19999"), "me", `the account "me" has expired on this node`},
		{"no shell", own("/no/shell", "/", ""), "me", `the shell /no/shell of "me" does not exist on this node`},
		{"shell not executable", own(plain, "/", ""), "me", `the shell ` + plain + ` of "me" is not executable on this node`},
		{"shell is a directory", own("/etc", "/", ""), "me", `the shell /etc of "me" is not executable on this node`},
		{"good", own("/bin/sh", "/", "20001"), "me", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := localOf(t, test.files)
			err := l.Check(t.Context(), Account{Login: test.login})
			if test.want == "" {
				if err != nil {
					t.Errorf("Check = %v", err)
				}
				return
			}
			if got := fault.Public(err); got != test.want || !fault.Is(err, fault.Denied) {
				t.Errorf("Check = %v, want %q", err, test.want)
			}
			if _, err := l.Start(t.Context(), Command{Account: Account{Login: test.login}, Kind: KindExec, Line: "true"}); fault.Public(err) != test.want {
				t.Errorf("Start = %v, want %q", err, test.want)
			}
		})
	}
}

// An ordinary user's server serves that user.
func TestOnlyOwnAccountWithoutRoot(t *testing.T) {
	l := localOf(t, own("/bin/sh", "/", ""))
	l.root = false
	want := `this node does not run as root and serves no account but its own, not "stranger"`
	if got := fault.Public(l.Check(t.Context(), Account{Login: "stranger"})); got != want {
		t.Errorf("Check = %q, want %q", got, want)
	}
	if err := l.Check(t.Context(), Account{Login: "me"}); err != nil {
		t.Errorf("Check of the own account = %v", err)
	}
}
