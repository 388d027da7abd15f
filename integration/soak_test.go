package integration

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
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
	"time"

	"github.com/accessd/accessd/integration/harness"
)

// soakPlan is how long a soak is and how much of everything is in it. Without
// $ACCESSD_SOAK each kind of client runs once beside a kill, so that the soak itself
// stays sound.
type soakPlan struct {
	seed    uint64
	long    bool
	rounds  int
	stretch time.Duration // half of a round: with kills, then without any
	workers int
	least   int // clients of a stretch, however short
	proxies []string
	nodes   []string // n3 runs plain sshd, n4 has only an ssh client besides, and dials p1
}

func newSoakPlan(t *testing.T) soakPlan {
	t.Helper()
	p := soakPlan{seed: uint64(time.Now().UnixNano()) % 1e9, rounds: 1, workers: 3, least: 6, proxies: []string{"p1"}, nodes: []string{"n3", "n4", "n1"}}
	if text := os.Getenv("ACCESSD_SOAK_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		p.seed = n
	}
	text := os.Getenv("ACCESSD_SOAK")
	if text == "" {
		return p
	}
	all, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	const longest = time.Hour // of a stretch
	p.long, p.workers, p.least, p.rounds = true, 5, len(soakClients()), max(2, int(all/(2*longest)))
	p.proxies, p.nodes = append(p.proxies, "p2"), append(p.nodes, "n2")
	p.stretch = all / time.Duration(2*p.rounds)
	return p
}

// soakUID is whom the sessions of a soak run as, and nothing else.
const soakUID = "4871"

// soak is a cluster of processes that die and stall while clients use it.
type soak struct {
	*fleet

	t      *testing.T
	plan   soakPlan
	parts  []*part
	echo   string // address of a service that sends back what it gets
	binary string
	as     map[string]string          // a person's ssh_config
	kept   map[string]*harness.Person // by name

	mu       sync.Mutex
	troubles []trouble
	tallies  map[string]*tally
}

// part is one of the cluster's processes.
type part struct {
	name  string
	proc  *harness.Process
	again func() *harness.Process
	page  string // address of its metrics; a node has none
	base  gauge
}

// trouble is what was done to a part, until the cluster was whole again.
type trouble struct {
	part, what string
	from, to   time.Time // to is zero while it lasts
}

// tally is how often clients of a kind got what they wanted, and how often a kill
// cut them off.
type tally struct {
	fine, cut int
	slowest   time.Duration
}

// What runs for long leaves nothing behind, whatever dies beside it: clients of all
// kinds come and go while the authority, proxies and nodes are killed, stopped and
// stalled as a seed says. Each client gets what it asked for, or ends because a kill
// cut it off; after it all, every process has the files, terminals, children and
// goroutines that it began with.
func TestSoak(t *testing.T) {
	t.Parallel()
	plan := newSoakPlan(t)
	t.Logf("ACCESSD_SOAK_SEED=%d", plan.seed)
	s := newSoak(t, plan)
	if plan.long {
		s.load(0, nil)
	} else {
		s.load(0, s.chaos)
	}
	s.rest("base", func(p *part, g gauge) bool { p.base = g; return g.ptys == 0 && g.children == 0 })
	s.alike()
	for round := range plan.rounds {
		if plan.long {
			s.load(2*round+1, s.chaos)
		}
		s.load(2*round+2, nil)
		s.rest(fmt.Sprint("round ", round+1), func(p *part, g gauge) bool { return g.within(p.base) })
		s.settled()
	}
	if plan.long {
		s.report()
		s.goroutines()
	}
}

func newSoak(t *testing.T, plan soakPlan) *soak {
	t.Helper()
	f := &fleet{host: harness.NewHost(t), dir: open(t), sshds: map[string]*harness.Sshd{}}
	f.host.Account(login, "--shell", "/bin/bash", "--uid", soakUID)
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	harness.WriteFile(t, config, "limits: {no_penalties: true}\nlog: {level: info, format: json}\n")
	s := &soak{fleet: f, t: t, plan: plan, echo: echo(t), binary: harness.Binary(t), as: map[string]string{}, kept: map[string]*harness.Person{}, tallies: map[string]*tally{}}
	f.Cluster = harness.New(t, "--roles", "auth", "--config", config)
	authority := f.Addr
	s.parts = append(s.parts, &part{name: "authority", proc: f.Main, page: authority, again: func() *harness.Process { f.StartMain(); return f.Main }})
	pin := strings.TrimSpace(f.Admin("ca", "pin"))
	for _, name := range s.plan.proxies {
		token := strings.TrimSpace(f.Admin("tokens", "add", "--role", "proxy", "--ttl", "1h", "--quiet"))
		s.start(name, harness.Start(t, "start", "--data-dir", t.TempDir(), "--roles", "proxy", "--node-name", name, "--listen", "127.0.0.1:"+port(t),
			"--join", authority, "--token", token, "--ca-pin", pin, "--config", config))
	}
	f.Addr = s.part("p1").page // nodes dial a proxy
	for _, name := range s.plan.nodes[2:] {
		s.start(name, f.host.Start(f.NodeArgs(name, t.TempDir(), "--config", config)...))
	}
	f.Admin("nodes", "add", "n3", "--address", f.trusting(t).Addr)
	s.redial("n4", f.trusting(t).Addr)
	f.Addr = authority
	f.Admin("roles", "apply", "-f", f.File("every-action.yaml", everyAction))
	f.Admin("roles", "apply", "-f", f.File("request-roles", requestRoles))
	s.person("alice", "access,every-action")
	s.person("dev", "developer")
	s.person("lead", "lead")
	for i := range plan.workers {
		s.person(fmt.Sprint("extra-", i), "access,every-action")
	}
	s.whole()
	return s
}

// start takes a proxy or a node among the parts.
func (s *soak) start(name string, p *harness.Process) {
	x := &part{name: name, proc: p, again: p.Again}
	if !strings.HasPrefix(name, "n") {
		x.page = p.Field("listen")
	}
	s.parts = append(s.parts, x)
}

func (s *soak) part(name string) *part {
	if i := slices.IndexFunc(s.parts, func(p *part) bool { return p.name == name }); i >= 0 {
		return s.parts[i]
	}
	return nil
}

// person adds somebody with an ssh_config in which NODE-PROXY jumps through a
// proxy, NODE-at-PROXY has the proxy log in, and PROXY is the proxy itself.
func (s *soak) person(name, roles string) {
	s.t.Helper()
	s.Admin("users", "add", name, "--roles", roles, "--logins", login)
	p := s.Sign(name, "72h")
	var b strings.Builder
	for _, proxy := range s.plan.proxies {
		host, port, _ := net.SplitHostPort(s.part(proxy).page)
		fmt.Fprintf(&b, "Host %s\n  HostName %s\n  Port %s\n  User %s\n", proxy, host, port, name)
		for _, node := range s.plan.nodes {
			fmt.Fprintf(&b, "Host %s-%s\n  HostName %[1]s\n  User %[3]s\n  ProxyJump %[2]s\n", node, proxy, login)
			fmt.Fprintf(&b, "Host %s-at-%s\n  HostName %[3]s\n  Port %[4]s\n  User %[5]s@%[1]s\n", node, proxy, host, port, login)
		}
	}
	fmt.Fprintf(&b, "Host *\n  IdentityFile %s\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  BatchMode yes\n",
		p.Key, filepath.Join(s.Home, "bare-hosts"))
	s.as[name], s.kept[name] = s.File(name+"-soak", b.String()), p
}

// redial opens the tunnel of a node that has only an ssh client whenever it ends, as
// its unit would.
func (s *soak) redial(name, addr string) {
	s.joinBare(s.t, name)
	args := s.dial(name, addr)
	var over sync.WaitGroup
	over.Go(func() {
		for pause := time.NewTicker(500 * time.Millisecond); s.t.Context().Err() == nil; <-pause.C {
			_ = exec.CommandContext(s.t.Context(), "ssh", args...).Run() // how it ends is the kills' doing
		}
	})
	s.t.Cleanup(over.Wait)
}

// whole waits until every node that dials is there, accessd's through both proxies.
func (s *soak) whole() {
	s.t.Helper()
	ways := map[string]int{"n1": len(s.plan.proxies), "n2": len(s.plan.proxies), "n4": 1}
	var missing []string
	began, seen := time.Now(), ""
	s.Eventually("the cluster is whole", func() bool {
		r := s.Try("nodes", "ls", "--format", "json")
		var nodes []harness.NodeView
		missing = nil
		if r.Code != 0 || json.Unmarshal([]byte(r.Stdout), &nodes) != nil {
			missing = []string{"the authority"}
		}
		for _, n := range nodes {
			if len(n.Proxies) < ways[n.Name] {
				missing = append(missing, fmt.Sprint(n.Name, " at ", len(n.Proxies)))
			}
		}
		if now := strings.Join(missing, ", "); now != seen && time.Since(began) > recovery {
			s.t.Logf("%v after it began: not there: %s", time.Since(began).Round(time.Millisecond), now)
			seen = now
		}
		return len(missing) == 0
	})
}

// recovery is how long a cluster may be less than whole before the soak says what
// it lacks.
const recovery = 3 * time.Second

// load has the workers run their clients, and meanwhile do, until the stretch is
// over. A short soak runs each kind of client once.
func (s *soak) load(stretch int, meanwhile func(rng *rand.Rand, until time.Time)) {
	s.t.Helper()
	began := time.Now()
	until := began.Add(s.plan.stretch)
	if stretch == 0 {
		until = began.Add(s.plan.stretch / 20) // to warm up
	}
	order := rand.New(rand.NewPCG(s.plan.seed, uint64(stretch)))
	todo := chores{kinds: soakClients(), least: s.plan.least}
	if meanwhile != nil {
		todo.least = len(todo.kinds)
	}
	order.Shuffle(len(todo.kinds), func(i, j int) { todo.kinds[i], todo.kinds[j] = todo.kinds[j], todo.kinds[i] })
	var all sync.WaitGroup
	for i := range s.plan.workers {
		w := &worker{soak: s, id: i, rng: rand.New(rand.NewPCG(s.plan.seed, uint64(stretch*1000+i+1))), dir: open(s.t)}
		all.Go(func() {
			for k, ok := todo.next(until); ok; k, ok = todo.next(until) {
				w.serve(k)
			}
		})
	}
	if meanwhile != nil {
		meanwhile(order, until)
	}
	all.Wait()
	s.t.Logf("stretch %d: %v, %s", stretch, time.Since(began).Round(time.Second), s.counts())
}

// chores hands out kinds of clients until time is up, and so many at least.
type chores struct {
	least int

	mu    sync.Mutex
	kinds []soakClient
	given int
}

func (c *chores) next(until time.Time) (soakClient, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.given >= c.least && time.Now().After(until) {
		return soakClient{}, false
	}
	k := c.kinds[c.given%len(c.kinds)]
	c.given++
	return k, true
}

// chaos does something to one part after the other.
func (s *soak) chaos(rng *rand.Rand, until time.Time) {
	if !s.plan.long {
		s.harm(s.part("n1"), "kill", 0)
		return
	}
	for time.Now().Before(until) {
		p := s.parts[rng.IntN(len(s.parts))]
		pause := time.Duration(rng.IntN(int(8 * time.Second)))
		switch n := rng.IntN(10); {
		case n < 5:
			s.harm(p, "kill", time.Duration(rng.IntN(int(3*time.Second))))
		case n < 7:
			s.harm(p, "stop", 0)
		case n < 9:
			s.harm(p, "hiccup", time.Duration(rng.IntN(int(2*time.Second))))
		default:
			s.harm(p, "stall", 10*time.Second+time.Duration(rng.IntN(int(30*time.Second))))
		}
		s.wait(pause)
	}
}

// wait lets time pass in which clients run.
func (s *soak) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
}

// harm does something to a part and waits until the cluster is whole again.
func (s *soak) harm(p *part, what string, length time.Duration) {
	s.t.Helper()
	s.mu.Lock()
	i := len(s.troubles)
	s.troubles = append(s.troubles, trouble{part: p.name, what: what, from: time.Now()})
	s.mu.Unlock()
	switch what {
	case "kill":
		p.proc.Kill()
		s.wait(length)
		s.anew(p)
	case "stop":
		if code := p.proc.Stop(); code != 0 {
			s.t.Errorf("%s ended with %d after SIGTERM, want 0", p.name, code)
		}
		s.anew(p)
	default:
		p.proc.Signal(syscall.SIGSTOP)
		s.wait(length)
		p.proc.Signal(syscall.SIGCONT)
	}
	back := time.Now()
	s.whole()
	s.mu.Lock()
	s.troubles[i].to = time.Now()
	s.mu.Unlock()
	s.t.Logf("%s: %s, away for %v, whole %v later", p.name, what, back.Sub(s.troubles[i].from).Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
}

// anew starts a part again.
func (s *soak) anew(p *part) {
	s.t.Helper()
	proc := p.again()
	s.mu.Lock()
	defer s.mu.Unlock()
	p.proc = proc
}

// said returns what parts have said since a client began.
func (s *soak) said(parts []string, since time.Time) string {
	var b strings.Builder
	from := since.Format("2006-01-02T15:04:05.000")
	for _, name := range parts {
		p := s.part(name)
		if p == nil {
			continue
		}
		s.mu.Lock()
		proc := p.proc
		s.mu.Unlock()
		for line := range strings.Lines(proc.Log()) {
			if _, at, ok := strings.Cut(line, `"ts":"`); ok && at >= from && b.Len() < maxSaid {
				fmt.Fprintf(&b, "%s: %s", name, line)
			}
		}
	}
	return b.String()
}

// maxSaid bounds what is shown of diagnostics, in bytes.
const maxSaid = 16 << 10

// excuse returns what happened to one of the parts since a client began, if
// anything did that may cut it off. A hiccup may not.
func (s *soak) excuse(parts []string, since time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.troubles {
		if slices.Contains(parts, x.part) && x.what != "hiccup" && (x.to.IsZero() || x.to.After(since)) {
			return x.what + " of " + x.part
		}
	}
	return ""
}

// count keeps how a client did.
func (s *soak) count(kind string, fine bool, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.tallies[kind]
	if c == nil {
		c = &tally{}
		s.tallies[kind] = c
	}
	if fine {
		c.fine++
	} else {
		c.cut++
	}
	c.slowest = max(c.slowest, took)
}

func (s *soak) counts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fine, cut int
	for _, c := range s.tallies {
		fine, cut = fine+c.fine, cut+c.cut
	}
	return fmt.Sprintf("%d clients got what they asked for, %d were cut off, %d kills and stalls", fine, cut, len(s.troubles))
}

func (s *soak) report() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(s.tallies)) {
		c := s.tallies[kind]
		s.t.Logf("%-16s %6d fine, %5d cut off, slowest %v", kind, c.fine, c.cut, c.slowest.Round(time.Millisecond))
	}
}

// gauge is what a process holds.
type gauge struct {
	files, ptys, children, threads int
	goroutines                     int // -1 where nobody says
	memory                         int // KiB
	names                          []string
}

// goroutineSlack is how many goroutines a process may have beyond its base: so many
// serve the calls of members that took another way then. What each client left
// behind would be hundreds.
const goroutineSlack = 24

// memorySlack is what a process's memory may be beyond its base, in KiB: a heap of
// any size up to 64 MiB is not collected (lib/daemon), and what it held is given
// back to the system only later.
const memorySlack = 80 << 10

func (g gauge) within(base gauge) bool {
	return g.files <= base.files && g.ptys == 0 && g.children == 0 && g.goroutines <= base.goroutines+goroutineSlack && g.memory <= base.memory+memorySlack
}

// alike gives proxies one base, and nodes: whose turn it is to have what members
// have once, such as the way their calls take, changes with each kill.
func (s *soak) alike() {
	for _, p := range s.parts {
		for _, q := range s.parts {
			if p.name[0] != q.name[0] {
				continue
			}
			p.base.files, p.base.goroutines = max(p.base.files, q.base.files), max(p.base.goroutines, q.base.goroutines)
			p.base.memory = max(p.base.memory, q.base.memory)
		}
	}
}

func (g gauge) String() string {
	return fmt.Sprintf("%d files, %d ptys, %d children, %d threads, %d goroutines, %d KiB", g.files, g.ptys, g.children, g.threads, g.goroutines, g.memory)
}

// gauge looks at a process from outside, and at its metrics where it has any.
func (s *soak) gauge(p *part) gauge {
	s.t.Helper()
	g := gauge{goroutines: -1}
	if p.page != "" {
		g.goroutines = s.metric(p, "go_goroutines")
	}
	dir := fmt.Sprintf("/proc/%d/", p.proc.Pid())
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", p.name, err, p.proc.Log())
	}
	for _, fd := range fds {
		to, err := os.Readlink(dir + "fd/" + fd.Name())
		if err != nil {
			continue // gone meanwhile
		}
		g.files++
		if strings.HasPrefix(to, "/dev/pt") {
			g.ptys++
		}
		g.names = append(g.names, s.ends(to))
	}
	threads, _ := os.ReadDir(dir + "task")
	g.threads = len(threads)
	status := read(s.t, dir+"status")
	if m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(status); m != nil {
		g.memory, _ = strconv.Atoi(m[1])
	}
	g.children = len(processes(func(status string) bool { return strings.Contains(status, fmt.Sprintf("\nPPid:\t%d\n", p.proc.Pid())) }))
	return g
}

// ends says what a socket connects; other files have their names.
func (s *soak) ends(file string) string {
	var inode string
	if _, err := fmt.Sscanf(file, "socket:[%s", &inode); err != nil {
		return file
	}
	inode = strings.TrimSuffix(inode, "]")
	for _, table := range []string{"tcp", "tcp6", "unix"} {
		for line := range strings.Lines(read(s.t, "/proc/net/"+table)) {
			f := strings.Fields(line)
			switch {
			case len(f) > 6 && table == "unix" && f[6] == inode:
				return "socket " + strings.Join(f[7:], " ")
			case len(f) > 9 && f[9] == inode:
				return "socket " + s.known(f[1]) + " " + s.known(f[2])
			}
		}
	}
	return "socket of another kind"
}

// known names the part that listens at an address as /proc/net/tcp has it.
func (s *soak) known(address string) string {
	_, hex, _ := strings.Cut(address, ":")
	n, _ := strconv.ParseUint(hex, 16, 16)
	for _, p := range s.parts {
		if strings.HasSuffix(p.page, fmt.Sprint(":", n)) {
			return p.name
		}
	}
	return "any"
}

// processes returns the processes, dead ones that nobody waited for included, whose
// /proc/PID/status is so.
func processes(so func(status string) bool) (found []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range all {
		if status, err := os.ReadFile(path); err == nil && so(string(status)) {
			found = append(found, strings.Join(strings.Fields(string(status))[1:2], "")+" "+filepath.Base(filepath.Dir(path)))
		}
	}
	return found
}

// metric returns a number of a process's metrics.
func (s *soak) metric(p *part, name string) int {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: harness.Patience}
	res, err := client.Get("https://" + p.page + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		s.t.Fatalf("%s has no metric %s", p.name, name)
	}
	f, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return int(f)
}

// rest waits until every process holds no more than it may.
func (s *soak) rest(when string, good func(*part, gauge) bool) {
	s.t.Helper()
	for _, p := range s.parts {
		var g gauge
		ok := false
		for deadline := time.Now().Add(harness.Patience); !ok && time.Now().Before(deadline); s.wait(200 * time.Millisecond) {
			g = s.gauge(p)
			if ok = good(p, g); ok {
				break
			}
		}
		s.t.Logf("%s: %-9s %v", when, p.name, g)
		if !ok {
			s.t.Errorf("%s: %s holds %v\nat base %v\nopen now  %q\nopen then %q", when, p.name, g, p.base, counted(g.names), counted(p.base.names))
		}
	}
	s.Eventually("no process of a session is left", func() bool {
		return len(processes(func(status string) bool { return strings.Contains(status, "\nUid:\t"+soakUID+"\t") })) == 0
	})
}

// counted returns names with how often each is there, less what differs from file to
// file of a kind.
func counted(names []string) (out []string) {
	n := map[string]int{}
	for _, name := range names {
		n[regexp.MustCompile(`\[?[0-9]+\]?`).ReplaceAllString(name, "#")]++
	}
	for _, name := range slices.Sorted(maps.Keys(n)) {
		out = append(out, fmt.Sprintf("%d %s", n[name], name))
	}
	return out
}

// settled wants the log to hold, each session to have ended in it once, and all that
// waited on disks to be gone.
func (s *soak) settled() {
	s.t.Helper()
	for _, p := range s.parts {
		var left []string
		for deadline := time.Now().Add(harness.Patience); time.Now().Before(deadline); s.wait(200 * time.Millisecond) {
			if left = spooled(p.proc.DataDir()); len(left) == 0 {
				break
			}
		}
		if len(left) > 0 {
			s.t.Errorf("%s has not shipped %q", p.name, left)
		}
	}
	var starts, ends map[string][]harness.Event
	s.Eventually("all sessions have ended", func() bool {
		starts, ends = s.sessions("session.start"), s.sessions("session.end")
		return len(ends) >= len(starts)
	})
	for sid := range starts {
		if len(starts[sid]) != 1 || len(ends[sid]) != 1 {
			s.t.Errorf("session %s has %d starts and %d ends, want one of each: %v %v", sid, len(starts[sid]), len(ends[sid]), starts[sid], ends[sid])
		}
	}
	for sid := range ends {
		if len(starts[sid]) == 0 {
			s.t.Errorf("session %s has ended and not begun: %v", sid, ends[sid])
		}
	}
	s.recorded(ends)
	s.t.Logf("%d sessions, each with its end and its recording", len(starts))
	s.Verify()
}

// recorded holds the recordings in the authority's folder against what the log says
// of them where their sessions have ended.
func (s *soak) recorded(ends map[string][]harness.Event) {
	s.t.Helper()
	parts := map[string][]string{}
	s.Eventually("all recordings are in the store", func() bool {
		clear(parts)
		_ = filepath.WalkDir(filepath.Join(s.Dir, "recordings"), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".part") {
				sid := filepath.Base(filepath.Dir(path))
				parts[sid] = append(parts[sid], path)
			}
			return nil
		})
		for sid, e := range ends {
			if n := e[0].Str("recording_parts"); n != "" && n != fmt.Sprint(len(parts[sid])) {
				return false
			}
		}
		return true
	})
	none := 0
	for sid, e := range ends {
		if len(parts[sid]) == 0 {
			none++
			continue
		}
		slices.Sort(parts[sid])
		root, size := chain(s.t, parts[sid])
		if said, _ := e[0]["recording_bytes"].(float64); root != e[0].Str("recording_root") || size != int(said) {
			s.t.Errorf("session %s: the parts have %d bytes and root %s: %v", sid, size, root, e[0])
		}
	}
	for sid := range parts {
		if len(ends[sid]) == 0 {
			s.t.Errorf("there is a recording of session %s, which did not end", sid)
		}
	}
	s.t.Logf("%d recordings, %d sessions without one", len(parts), none)
}

// sessions returns the events of a name by session.
func (s *soak) sessions(event string) map[string][]harness.Event {
	s.t.Helper()
	all := map[string][]harness.Event{}
	for line := range strings.Lines(s.Admin("audit", "export", "--event", event)) {
		var e harness.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			s.t.Fatal(err)
		}
		all[e.Str("sid")] = append(all[e.Str("sid")], e)
	}
	return all
}

// spooled returns the files that wait in a data directory for the authority: of
// events, those besides the one that is written to.
func spooled(dir string) []string {
	files := waiting(dir)
	if events, _ := filepath.Glob(filepath.Join(dir, "spool", "*.events")); len(events) > 1 {
		files = append(files, events...)
	}
	return files
}

// goroutines holds what runs in the processes, by what started it, against what runs
// in them once they were started anew and served clients of each kind again.
func (s *soak) goroutines() {
	s.t.Helper()
	after := s.stacks()
	s.whole()
	s.load(0, nil)
	s.rest("anew", func(p *part, g gauge) bool { return g.within(p.base) })
	before := s.stacks()
	for _, role := range slices.Sorted(maps.Keys(after)) {
		for group, n := range after[role] {
			if was := before[role][group]; n > was {
				s.t.Logf("%s: %d goroutines of %s, %d when they are new", role, n, group, was)
				if n > was+goroutineSlack/4 {
					s.t.Error("these are too many")
				}
			}
		}
	}
	s.whole()
	for _, p := range slices.Backward(s.parts) { // who needs others first
		if code := p.proc.Stop(); code != 0 {
			s.t.Errorf("%s ended with %d after SIGTERM, want 0", p.name, code)
		}
		if left, _ := filepath.Glob(filepath.Join(p.proc.DataDir(), "spool", "*.events")); len(left) > 0 {
			s.t.Errorf("%s has not shipped %q", p.name, left)
		}
	}
}

// stacks has every process say what runs in it, as it ends, and starts it again. It
// counts goroutines by role and by what started them.
func (s *soak) stacks() map[string]map[string]int {
	s.t.Helper()
	all := map[string]map[string]int{}
	for _, p := range s.parts { // so that none misses another
		p.proc.Signal(syscall.SIGSTOP)
	}
	for _, p := range s.parts {
		p.proc.Signal(syscall.SIGQUIT)
		p.proc.Signal(syscall.SIGCONT)
		p.proc.Wait()
		role := p.name[:1]
		if all[role] == nil {
			all[role] = map[string]int{}
		}
		found := regexp.MustCompile(`(?m)^created by (\S+)`).FindAllStringSubmatch(p.proc.Log(), -1)
		for _, m := range found {
			all[role][m[1]]++
		}
		s.t.Logf("%s: %d goroutines", p.name, len(found))
	}
	for _, p := range s.parts {
		s.anew(p)
	}
	return all
}
