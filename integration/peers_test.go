package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/relay"
)

// Two authorities on one external etcd have a log each, and whichever is asked
// answers from both; when one is away, the other says so.
func TestOneListFromSeveralLogs(t *testing.T) {
	t.Parallel()
	etcd := backendtest.StartCluster(t)
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, fmt.Sprintf("storage: {etcd: {endpoints: [%s], ca_file: %s, cert_file: %s, key_file: %s}}\nkeys: {file: %s}\n",
		strings.Join(etcd.Endpoints, ", "), etcd.CAFile, etcd.CertFile, etcd.KeyFile, filepath.Join(t.TempDir(), "seal.key")))
	a := harness.New(t, "--config", config, "--node-name", "hub-a")
	b := harness.New(t, "--config", config, "--node-name", "hub-b")
	both := map[string]*harness.Cluster{"hub-a": a, "hub-b": b}

	var all []string
	add := func(c *harness.Cluster) string {
		t.Helper()
		name := fmt.Sprintf("user-%02d", len(all))
		c.Admin("users", "add", name, "--roles", "auditor")
		all = append(all, name)
		return name
	}
	for range 3 {
		add(a)
		add(b)
		add(b)
	}
	for name, c := range both {
		if got := made(c.Admin(listMade...)); !slices.Equal(got, all) {
			t.Errorf("%s lists %q, want %q", name, got, all)
		}
		if got := pages(t, c, 2); !slices.Equal(got, all) {
			t.Errorf("%s pages through %q, want %q", name, got, all)
		}
	}
	_, place := export(t, a, "")
	tail := follow(t, a)
	tail.shows(all[0])
	tail.shows(add(b))
	tail.shows(add(a))
	if got, _ := export(t, a, place); !slices.Equal(sorted(got), all[9:]) {
		t.Errorf("behind the first export came %q, want %q", got, all[9:])
	}

	t.Run("a person at the proxy", func(t *testing.T) {
		person := a.Sign(all[0], "1h")
		r := harness.Run(t, nil, "ssh", "-F", "none", "-i", person.Key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-p", a.Addr[strings.LastIndex(a.Addr, ":")+1:], all[0]+"@127.0.0.1", strings.Join(listMade, " "))
		if must(t, r); !slices.Equal(made(r.Stdout), all) {
			t.Errorf("shown %q, want %q", made(r.Stdout), all)
		}
	})
	t.Run("proof", func(t *testing.T) {
		keys := a.File("audit.pub", a.Admin("ca", "export", "--type", "audit"))
		for _, of := range []string{"hub-a", "hub-b"} {
			ev := wantEvent(t, a, map[string]string{"server_hostname": of}, "--event", "user.create")
			proof := a.File("proof", a.Admin("audit", "prove", ev.Str("uid")))
			must(t, harness.Run(t, nil, harness.Binary(t), "audit", "check", proof, "--key", keys))
		}
	})

	b.Main.Kill()
	away := "missing: the events of hub-b: "
	tail.says(away)
	shown := add(a)
	tail.shows(shown)
	r := a.Try(listMade...)
	if got := made(r.Stdout); r.Code != 4 || !strings.Contains(r.Stderr, "accessd: error: "+away+"it cannot be reached") || !slices.Contains(got, shown) || slices.Contains(got, all[1]) {
		t.Errorf("with one away: exit %d, %q, stderr %q", r.Code, got, r.Stderr)
	}
	if r := a.Try("audit", "prove", "0195510c-9a40-7bb2-8c51-000000000000"); r.Code != 4 || !strings.Contains(r.Stderr, "not read: hub-b") {
		t.Errorf("a proof with one away: exit %d, stderr %q", r.Code, r.Stderr)
	}
	r = a.Try("audit", "export", "--event", "user.create", "--after", place)
	if got := made(r.Stdout); r.Code != 4 || !slices.Equal(sorted(got), []string{all[10], shown}) {
		t.Errorf("export with one away: exit %d, %q, stderr %q", r.Code, got, r.Stderr)
	}
	place = behind(t, r.Stderr)
	b.StartMain()
	tail.says("there again: the events of hub-b")
	tail.shows(add(b))
	if got, _ := export(t, a, place); !slices.Equal(sorted(got), []string{all[9], all[12]}) {
		t.Errorf("when it is back, the export goes on with %q, want what it lacked and what is new", got)
	}

	// A third one, at an address that leads to the first every other time.
	balancer := newBalancer(t, a.Addr)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	balanced := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, balanced, string(text)+"public_addresses: ['"+balancer.addr()+"']\n")
	both["hub-c"] = harness.New(t, "--config", balanced, "--node-name", "hub-c")
	balancer.to(both["hub-c"].Addr)
	tail.shows(add(both["hub-c"]))
	for name, c := range both {
		if got := made(c.Admin(listMade...)); !slices.Equal(got, all) {
			t.Errorf("with a new authority %s lists %q, want %q", name, got, all)
		}
		c.Verify()
	}
	if code := both["hub-c"].Main.Stop(); code != 0 {
		t.Errorf("an authority that is followed stopped with %d", code)
	}
	tail.says("missing: the events of hub-c: ")
	retires(t, a, both["hub-c"], tail)
	if code := tail.stop(all); code != 0 {
		t.Errorf("a tail that lacks nothing at its end exits with %d", code)
	}
}

// retires takes c, which has stopped, off the record at a: from then on nothing is
// missing, not even for who has a place in its log.
func retires(t *testing.T, a, c *harness.Cluster, tail *tailing) {
	t.Helper()
	r := a.Try("audit", "export", "--event", "user.create")
	if r.Code != 4 {
		t.Errorf("with one gone an export exits with %d", r.Code)
	}
	place := behind(t, r.Stderr)
	end := filepath.Join(c.Dir, "audit", "checkpoint")
	for what, args := range map[string][]string{
		"has a log that answers would lack": {"hub-c"},
		"reason of 0 bytes":                 {"hub-c", "--force"},
		"is the authority that you are":     {"hub-a", "--force", "--reason", "x"},
		"answers: stop it first":            {"hub-b", "--force", "--reason", "x"},
		"does not count":                    {"hub-c", "--force", "--reason", "x", "--end", filepath.Join(a.Dir, "audit", "checkpoint")},
	} {
		if r := a.Try(append([]string{"nodes", "rm"}, args...)...); r.Code == 0 || !strings.Contains(r.Stderr, what) {
			t.Errorf("nodes rm %q: exit %d %q, want that it %s", args, r.Code, r.Stderr, what)
		}
	}
	a.Admin("nodes", "rm", "hub-c", "--force", "--reason", "its disk is gone", "--end", end)
	wantEvent(t, a, map[string]string{"node_name": "hub-c", "reason": "its disk is gone", "checkpoint": read(t, end), "log_lost": "false"}, "--event", "authority.delete")
	for _, args := range [][]string{listMade, {"audit", "export", "--event", "user.create", "--after", place}} {
		if r := a.Try(args...); r.Code != 0 {
			t.Errorf("%q exits with %d: %q", args, r.Code, r.Stderr)
		}
	}
	tail.says("there again: the events of hub-c")
}

// balancer is an address behind which there are two processes.
type balancer struct {
	ln    net.Listener
	first string
	then  chan string
}

// newBalancer carries every other connection to first, beginning with it, and those
// between to where [balancer.to] says.
func newBalancer(t *testing.T, first string) *balancer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{ln, first, make(chan string, 1)}
	var carried sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	carried.Go(func() { b.run(ctx, &carried) })
	t.Cleanup(func() {
		cancel()
		ln.Close()
		carried.Wait()
	})
	return b
}

func (b *balancer) addr() string { return b.ln.Addr().String() }

func (b *balancer) to(addr string) { b.then <- addr }

func (b *balancer) run(ctx context.Context, carried *sync.WaitGroup) {
	then := b.first
	for n := 0; ; n++ {
		near, err := b.ln.Accept()
		if err != nil {
			return
		}
		select {
		case then = <-b.then:
		default:
		}
		to := b.first
		if n%2 == 1 {
			to = then
		}
		far, err := net.Dial("tcp", to)
		if err != nil {
			near.Close()
			continue
		}
		carried.Go(func() { relay.Pipe(ctx, near, far) })
	}
}

// listMade lists who was added, in the order of time.
var listMade = []string{"audit", "ls", "--event", "user.create", "--format", "json"}

// made returns who was added, by the events in a list or in lines.
func made(text string) (names []string) {
	for _, m := range regexp.MustCompile(`"name": ?"(user-\d\d)"`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// pages returns the whole list, read in pages from the newest on.
func pages(t *testing.T, c *harness.Cluster, size int) (all []string) {
	t.Helper()
	var place []string
	for range 100 {
		r := c.Try(slices.Concat(listMade, []string{"--limit", strconv.Itoa(size)}, place)...)
		must(t, r)
		all = append(made(r.Stdout), all...)
		older := regexp.MustCompile(`--before (\S+)`).FindStringSubmatch(r.Stderr)
		if older == nil {
			return all
		}
		place = []string{"--before", older[1]}
	}
	t.Fatal("the pages do not end")
	return nil
}

// export returns whom an export from a place on says to have been added, and the
// place behind it.
func export(t *testing.T, c *harness.Cluster, after string) (names []string, place string) {
	t.Helper()
	r := c.Try("audit", "export", "--event", "user.create", "--after", after)
	must(t, r)
	return made(r.Stdout), behind(t, r.Stderr)
}

// behind returns the place that an export said to be behind it.
func behind(t *testing.T, stderr string) string {
	t.Helper()
	m := regexp.MustCompile(`newer: --after (\S+)`).FindStringSubmatch(stderr)
	if m == nil {
		t.Fatalf("no place in %q", stderr)
	}
	return m[1]
}

// tailing is an "audit tail" under way.
type tailing struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err string
}

// follow starts a tail of who is added.
func follow(t *testing.T, c *harness.Cluster) *tailing {
	t.Helper()
	f := &tailing{t: t, out: filepath.Join(c.Home, "tail"), err: filepath.Join(c.Home, "tail.err")}
	f.cmd = exec.Command(harness.Binary(t), "--data-dir", c.Dir, "audit", "tail", "-n", "100", "--event", "user.create", "--format", "json")
	for path, to := range map[string]*io.Writer{f.out: &f.cmd.Stdout, f.err: &f.cmd.Stderr} {
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		*to = file
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.cmd.Process.Kill() })
	return f
}

// has waits until a file of the tail's output has a text.
func (f *tailing) has(path, text string) {
	f.t.Helper()
	harness.Eventually(f.t, "the tail has "+text, func() bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(b), text)
	})
}

func (f *tailing) shows(name string) { f.t.Helper(); f.has(f.out, strconv.Quote(name)) }
func (f *tailing) says(words string) { f.t.Helper(); f.has(f.err, words) }

// stop ends the tail, which has told each of all once, and returns its exit code.
func (f *tailing) stop(all []string) int {
	f.t.Helper()
	_ = f.cmd.Process.Signal(syscall.SIGINT)
	_ = f.cmd.Wait() // the code says how it ended
	b, err := os.ReadFile(f.out)
	if got := made(string(b)); err != nil || !slices.Equal(sorted(got), all) {
		f.t.Errorf("the tail told %q, want each of %q once", got, all)
	}
	return f.cmd.ProcessState.ExitCode()
}
