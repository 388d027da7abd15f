package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// worker runs clients of a soak, one after the other.
type worker struct {
	*soak

	id  int
	rng *rand.Rand
	dir string // open to the account of sessions
	n   int
}

// soakClient is a kind of client. It runs against a node through a proxy and says
// what was not as it should be.
type soakClient struct {
	kind string
	also []string // parts it needs besides the proxy and the node
	run  func(w *worker, at course) error
}

// course is where a client goes.
type course struct {
	proxy, node, host string // host is the ssh_config's
}

// errCut says that a client ended as one whose connection was cut off.
var errCut = errors.New("cut off")

// clientLimit bounds a client's life: no kill and no stall of a soak keeps one
// longer.
const clientLimit = 100 * time.Second

// soakClients are the kinds.
func soakClients() []soakClient {
	authority := []string{"authority"}
	return []soakClient{
		{kind: "exec", run: (*worker).exec},
		{kind: "exec again", run: (*worker).exec},
		{kind: "pty", run: (*worker).pty},
		{kind: "stdin", run: (*worker).stdin},
		{kind: "scp", run: (*worker).scp},
		{kind: "sftp", run: (*worker).sftp},
		{kind: "-L", run: (*worker).forward},
		{kind: "-R", run: (*worker).remote},
		{kind: "ControlMaster", run: (*worker).master},
		{kind: "killed", run: (*worker).killed},
		{kind: "slow", run: (*worker).slow},
		{kind: "verbs", run: (*worker).verbs, also: authority},
		{kind: "denied", run: (*worker).denied},
		{kind: "locks", run: (*worker).locks, also: authority},
		{kind: "requests", run: (*worker).requests, also: authority},
		{kind: "session kill", run: (*worker).kill, also: authority},
	}
}

// serve runs a client and judges it.
func (w *worker) serve(k soakClient) {
	w.n++
	at := course{proxy: pick(w.rng, w.plan.proxies), node: pick(w.rng, w.plan.nodes)}
	if at.node == "n4" {
		at.proxy = "p1" // where it dials
	}
	at.host = at.node + pick(w.rng, []string{"-", "-", "-at-"}) + at.proxy
	began := time.Now()
	err := k.run(w, at)
	took := time.Since(began)
	w.count(k.kind, err == nil, took)
	if err == nil {
		return
	}
	needs := append([]string{at.proxy, at.node}, k.also...)
	if at.node == "n3" || at.node == "n4" || strings.Contains(at.host, "-at-") {
		needs = append(needs, "authority") // the proxy comes with a certificate for each session
	}
	excuse := w.excuse(needs, began)
	if excuse == "" || !errors.Is(err, errCut) {
		w.t.Errorf("%s at %s, %v after it began at %s (%q): %v", k.kind, at.host, took.Round(time.Millisecond), began.Format("15:04:05.000"), excuse, err)
		w.t.Logf("meanwhile they said:\n%s", w.said(needs, began))
	}
}

func pick(rng *rand.Rand, of []string) string { return of[rng.IntN(len(of))] }

// outcome is how a client ended.
type outcome struct {
	args     []string
	code     int
	out, err string
	hung     bool
}

func (o outcome) String() string {
	return fmt.Sprintf("%q: exit %d, hung %v, stdout %.300q (%d bytes), stderr %.600q", o.args, o.code, o.hung, o.out, len(o.out), o.err)
}

// client returns a command that clientLimit bounds.
func (w *worker) client(name string, args ...string) (*exec.Cmd, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(w.t.Context(), clientLimit)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	return cmd, cancel
}

// try runs a client to its end.
func (w *worker) try(stdin io.Reader, name string, args ...string) outcome {
	cmd, cancel := w.client(name, args...)
	defer cancel()
	var out, words bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &words
	began := time.Now()
	err := cmd.Run()
	o := outcome{args: cmd.Args, code: cmd.ProcessState.ExitCode(), out: out.String(), err: words.String(), hung: time.Since(began) >= clientLimit}
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok && !errors.Is(err, exec.ErrWaitDelay) {
		o.err += fmt.Sprint(err, exit)
	}
	return o
}

func (w *worker) ssh(who string, stdin io.Reader, words ...string) outcome {
	return w.try(stdin, "ssh", append([]string{"-F", w.as[who]}, words...)...)
}

// lost reports an outcome that is not what it should be: as errCut where a
// connection was lost. A stock client that has read the exit status drops the output
// that it has not passed on yet, up to its window of 2 MiB, and ends with that status.
func (o outcome) lost(codes ...int) error {
	if !o.hung && strings.Contains(o.err, "closed by remote host") {
		codes = append(codes, o.code)
	}
	if !o.hung && slices.Contains(append(codes, 255), o.code) {
		return fmt.Errorf("%w: %v", errCut, o)
	}
	return fmt.Errorf("not as it should be: %v", o)
}

// wants is nil for a client that ended with that code and that output; one that was
// cut off has a part of it.
func (o outcome) wants(code int, out string) error {
	switch {
	case o.code == code && o.out == out && !o.hung:
		return nil
	case strings.HasPrefix(out, o.out):
		return o.lost()
	}
	return fmt.Errorf("wrong output: %v, want exit %d and %.300q", o, code, out)
}

// exec runs a command with an exit code.
func (w *worker) exec(at course) error {
	code, n := w.rng.IntN(100), w.rng.IntN(1e6)
	o := w.ssh("alice", nil, at.host, fmt.Sprintf("echo out-%d; echo err-%d >&2; exit %d", n, n, code))
	if o.code == code && o.err != fmt.Sprintf("err-%d\n", n) {
		return fmt.Errorf("wrong words: %v", o)
	}
	return o.wants(code, fmt.Sprintf("out-%d\n", n))
}

// pty is a shell on a terminal.
func (w *worker) pty(at course) error {
	n := w.rng.IntN(1e6)
	o := w.ssh("alice", strings.NewReader(fmt.Sprintf("echo sum-$((%d+1)); tty; exit 3\n", n)), "-tt", at.host)
	if o.code == 3 && strings.Contains(o.out, fmt.Sprintf("sum-%d\r\n", n+1)) && strings.Contains(o.out, "/dev/pts/") {
		return nil
	}
	return o.lost()
}

// content returns bytes that differ from those of other clients.
func (w *worker) content() []byte {
	body := make([]byte, 1+w.rng.IntN(1<<20))
	for i := range body {
		body[i] = byte(w.rng.Uint32())
	}
	return body
}

// stdin sends bytes there and back.
func (w *worker) stdin(at course) error {
	body := w.content()
	return w.ssh("alice", bytes.NewReader(body), at.host, "cat").wants(0, string(body))
}

// files writes content to a file and returns it with two more names.
func (w *worker) files() (body []byte, here, there, back string, err error) {
	body = w.content()
	name := filepath.Join(w.dir, fmt.Sprint("f", w.n))
	return body, name, name + "-there", name + "-back", os.WriteFile(name, body, 0o600)
}

// came compares what came back after clients that ended as they should.
func came(body []byte, back string) error {
	got, err := os.ReadFile(back)
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back, other than the %d that were sent", len(got), len(body))
	}
	return err
}

func (w *worker) scp(at course) error {
	body, here, there, back, err := w.files()
	defer func() { _, _, _ = os.Remove(here), os.Remove(there), os.Remove(back) }()
	if err != nil {
		return err
	}
	for _, args := range [][]string{{here, at.host + ":" + there}, {at.host + ":" + there, back}} {
		if o := w.try(nil, "scp", append([]string{"-q", "-F", w.as["alice"]}, args...)...); o.code != 0 || o.hung {
			return o.lost(1)
		}
	}
	return came(body, back)
}

func (w *worker) sftp(at course) error {
	body, here, there, back, err := w.files()
	defer func() { _, _, _ = os.Remove(here), os.Remove(there), os.Remove(back) }()
	if err != nil {
		return err
	}
	batch := fmt.Sprintf("put %s %s\nget %[2]s %[3]s\nrm %[2]s\n", here, there, back)
	if o := w.try(strings.NewReader(batch), "sftp", "-q", "-b", "-", "-F", w.as["alice"], at.host); o.code != 0 || o.hung {
		return o.lost(1)
	}
	return came(body, back)
}

// dialogue is a client whose output is read as it comes.
type dialogue struct {
	*worker

	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	words  bytes.Buffer
	began  time.Time
	cancel context.CancelFunc
	heard  []byte
}

// dialogue starts a client; end must follow.
func (w *worker) dialogue(args ...string) (*dialogue, error) {
	k := &dialogue{worker: w, began: time.Now()}
	k.cmd, k.cancel = w.client("ssh", append([]string{"-F", w.as["alice"]}, args...)...)
	k.cmd.Stderr = &k.words
	var err error
	if k.in, err = k.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if k.out, err = k.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return k, k.cmd.Start()
}

// hear reads output up to the end of a text.
func (k *dialogue) hear(text string) bool {
	one := make([]byte, 1)
	for !bytes.HasSuffix(k.heard, []byte(text)) {
		if _, err := io.ReadFull(k.out, one); err != nil {
			return false
		}
		k.heard = append(k.heard, one...)
	}
	return true
}

// end closes the client's input and waits for its end.
func (k *dialogue) end() outcome {
	defer k.cancel()
	_ = k.in.Close()
	rest, _ := io.ReadAll(k.out)
	_ = k.cmd.Wait() // the code says it
	return outcome{args: k.cmd.Args, code: k.cmd.ProcessState.ExitCode(), out: string(append(k.heard, rest...)), err: k.words.String(), hung: time.Since(k.began) >= clientLimit}
}

// through sends bytes to the echo service and back while a client that leads there
// runs, and wants the client to end well.
func (w *worker) through(socket string, args ...string) error {
	k, err := w.dialogue(args...)
	if err != nil {
		return err
	}
	var came error
	if k.hear("up\n") {
		came = w.echoed(socket)
	}
	o := k.end()
	if o.code == 0 && came != nil {
		return fmt.Errorf("%w: through %s: %w, but the client ended well: %v", errCut, socket, came, o)
	}
	return o.wants(0, "up\n")
}

func (w *worker) echoed(socket string) error {
	var c net.Conn
	if err := w.until(func() (err error) { // the session may begin before the forward does
		if c, err = net.Dial("unix", socket); err != nil {
			err = fmt.Errorf("%w: %w", errCut, err)
		}
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(clientLimit))
	body := w.content()
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = c.Write(body)
		_ = c.(*net.UnixConn).CloseWrite()
	})
	got, err := io.ReadAll(c)
	_ = c.Close()
	sending.Wait()
	if err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back, other than the %d that were sent", len(got), len(body))
	}
	return err
}

// forward is -L.
func (w *worker) forward(at course) error {
	socket := filepath.Join(w.dir, fmt.Sprint("l", w.n))
	defer os.Remove(socket)
	return w.through(socket, "-o", "ExitOnForwardFailure=yes", "-L", socket+":"+w.echo, at.host, "echo up; cat")
}

// remote is -R.
func (w *worker) remote(at course) error {
	socket := filepath.Join(w.dir, fmt.Sprint("r", w.n))
	defer os.Remove(socket)
	return w.through(socket, "-o", "ExitOnForwardFailure=yes", "-R", socket+":"+w.echo, at.host, "echo up; cat")
}

// master has several sessions on one connection.
func (w *worker) master(at course) error {
	socket := filepath.Join(w.dir, fmt.Sprint("m", w.n))
	defer os.Remove(socket)
	k, err := w.dialogue("-M", "-S", socket, at.host, "echo up; cat")
	if err != nil {
		return err
	}
	var ends [4]error
	if k.hear("up\n") {
		var all sync.WaitGroup
		for i := range ends {
			all.Go(func() {
				line := fmt.Sprintf("line-%d\n", i)
				ends[i] = w.ssh("alice", strings.NewReader(line), "-S", socket, at.host, fmt.Sprintf("cat; exit %d", i)).wants(i, line)
			})
		}
		all.Wait()
	}
	return errors.Join(append(ends[:], k.end().wants(0, "up\n"))...)
}

// killed dies while much comes its way.
func (w *worker) killed(at course) error {
	k, err := w.dialogue(at.host, "cat /dev/zero")
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, k.out, 1<<20)
	_ = k.cmd.Process.Kill()
	o := k.end()
	o.out = ""
	if err != nil { // it ended before
		o.code = 255
		return o.lost()
	}
	return nil
}

// slow reads slowly what is more than all windows on the way hold.
func (w *worker) slow(at course) error {
	const size, piece = 6 << 20, 512 << 10
	k, err := w.dialogue(at.host, fmt.Sprintf("head -c %d /dev/zero; echo; echo done", size))
	if err != nil {
		return err
	}
	var n int64
	for n < size && err == nil {
		var m int64
		m, err = io.CopyN(io.Discard, k.out, piece)
		n += m
		w.wait(50 * time.Millisecond)
	}
	o := k.end()
	if n != size {
		return fmt.Errorf("%d of %d bytes: %w", n, size, o.lost())
	}
	return o.wants(0, "\ndone\n")
}

// verbs asks the proxy.
func (w *worker) verbs(at course) error {
	o := w.ssh("alice", nil, at.proxy, "ls", "--format", "json")
	if o.code != 0 {
		return o.lost(6)
	}
	var nodes []map[string]any
	if err := json.Unmarshal([]byte(o.out), &nodes); err != nil || len(nodes) != len(w.plan.nodes) {
		return fmt.Errorf("%w: %v", err, o)
	}
	if o := w.ssh("alice", nil, at.proxy, "users", "ls"); o.code != 3 {
		return o.lost(6)
	}
	return nil
}

// denied wants what nobody gives.
func (w *worker) denied(at course) error {
	for who, words := range map[string][]string{"dev": {at.host, "true"}, "alice": {"-l", "nobody-here", at.node + "-" + at.proxy, "true"}} {
		o := w.ssh(who, nil, words...)
		if o.code != 255 || o.out != "" || o.hung {
			return fmt.Errorf("not denied: %v", o)
		}
		if !strings.Contains(o.err, "denied") && !strings.Contains(o.err, "not allowed") && !strings.Contains(o.err, "may not") && !strings.Contains(o.err, "no ") {
			return o.lost()
		}
	}
	return nil
}

// admin runs a verb at the authority.
func (w *worker) admin(args ...string) outcome {
	return w.try(nil, w.binary, append([]string{"--data-dir", w.Dir}, args...)...)
}

// until tries again what was cut off, for a while.
func (w *worker) until(so func() error) error {
	for began := time.Now(); ; w.wait(100 * time.Millisecond) {
		if err := so(); err == nil || !errors.Is(err, errCut) || time.Since(began) > clientLimit/2 {
			return err
		}
	}
}

// extra is a person whom nobody else locks or looks for.
func (w *worker) extra() string { return fmt.Sprint("extra-", w.id) }

// locks keeps somebody out and lets them in again.
func (w *worker) locks(at course) error {
	o := w.admin("locks", "add", "--user", w.extra(), "--message", "for a moment")
	if o.code != 0 {
		return o.lost(6)
	}
	lock := strings.TrimSpace(o.out)
	enters := func(code int) error {
		return w.until(func() error {
			if o := w.ssh(w.extra(), nil, at.host, "true"); o.code != code {
				return o.lost(0)
			}
			return nil
		})
	}
	out := enters(255)
	return errors.Join(out, w.until(func() error {
		if o := w.admin("locks", "rm", lock); o.code != 0 && o.code != 4 { // it may be gone though nobody could say so
			return o.lost(6)
		}
		return nil
	}), enters(0))
}

// requests asks for a role, gets it, and loses it again.
func (w *worker) requests(at course) error {
	o := w.ssh("dev", nil, at.proxy, "requests", "create", "--format", "json", "--reason", "soak", "--roles", "dba", "--ttl", "1h")
	if o.code != 0 {
		return o.lost(6)
	}
	var list []requestJSON
	if err := json.Unmarshal([]byte(o.out), &list); err != nil || len(list) != 1 {
		return fmt.Errorf("%w: %v", err, o)
	}
	for _, verb := range []string{"approve", "deny"} {
		if o := w.ssh("lead", nil, at.proxy, "requests", verb, list[0].ID, "--reason", "soak"); o.code != 0 {
			return o.lost(6)
		}
	}
	return nil
}

// kill has an administrator end a session.
func (w *worker) kill(at course) error {
	k, err := w.dialogue("-F", w.as[w.extra()], at.host, "echo up; cat")
	if err != nil {
		return err
	}
	if !k.hear("up\n") {
		return k.end().lost()
	}
	sid, err := w.sid(k.began)
	if err != nil {
		k.end()
		return err
	}
	if o := w.admin("sessions", "kill", sid, "--reason", "a drill"); o.code != 0 {
		k.end()
		return o.lost(6, 4)
	}
	_, _ = io.Copy(io.Discard, k.out) // its input ends only after it did
	o := k.end()
	if o.code == 255 && strings.Contains(o.err, "a drill") {
		return nil
	}
	return o.lost()
}

// sid waits until the session that the worker's person has begun since is listed.
func (w *worker) sid(since time.Time) (sid string, err error) {
	err = w.until(func() error {
		o := w.admin("sessions", "ls", "--format", "json")
		var rows []struct {
			ID      string    `json:"id"`
			User    string    `json:"user"`
			Started time.Time `json:"started"`
		}
		if o.code != 0 || json.Unmarshal([]byte(o.out), &rows) != nil {
			return o.lost(6)
		}
		for _, r := range rows {
			if r.User == w.extra() && r.Started.After(since) {
				sid = r.ID
				return nil
			}
		}
		return o.lost(0)
	})
	return sid, err
}
