package reversetunnel

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// farmEnv makes the test binary a farm of agents: "ADDR COUNT HOSTSEED NODESEED".
const farmEnv = "ACCESSD_TEST_FARM"

func TestMain(m *testing.M) {
	if order := os.Getenv(farmEnv); order != "" {
		farm(order)
		return
	}
	goleak.VerifyTestMain(m)
}

// farm runs agents until its standard input ends.
func farm(order string) {
	var addr, host, node string
	var count int
	if _, err := fmt.Sscan(order, &addr, &count, &host, &node); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	w := &world{t: &testing.B{}, host: seeded(host), node: seeded(node), user: seeded(host), log: zap.NewNop()}
	for i := range count {
		name := names.NodeName(fmt.Sprintf("n%d", i))
		signer := w.member(names.NewNodeID(), name, sshca.KindNode)
		a, err := NewAgent(AgentConfig{
			Addresses: func() []string { return []string{addr} }, Trust: w.trust, Serve: echo, Proxies: 1,
			Identity: func() (names.NodeName, ssh.Signer) { return name, signer },
		})
		if err != nil {
			panic(err)
		}
		wg.Go(func() { _ = a.Run(ctx) })
		for up := a.Changed(); len(a.Up()) == 0; up = a.Changed() { // one by one, as the cores are few
			<-up
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
}

func seeded(seed string) ssh.Signer {
	b, err := hex.DecodeString(seed)
	if err != nil {
		panic(err)
	}
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(b))
	if err != nil {
		panic(err)
	}
	return s
}

// resident returns the process's resident set, in bytes.
func resident(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(os.Getpid()), "statm"))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// BenchmarkIdleTunnel tells what one idle node costs a proxy: the control
// connection with its accessd-api channel and Attach call, and, with dial-back,
// what is kept warm. The agents live in a process of their own.
func BenchmarkIdleTunnel(b *testing.B) {
	const tunnels = 1000
	for name, pool := range map[string]int{"control": -1, "control+warm": DefaultPool} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				heap, rss := measureIdle(b, tunnels, pool)
				b.ReportMetric(heap, "heap+stack-B/tunnel")
				b.ReportMetric(rss, "RSS-B/tunnel")
			}
		})
	}
}

func measureIdle(b *testing.B, tunnels, pool int) (heap, rss float64) {
	b.Helper()
	w := newWorld(b)
	seed := func(n byte) string { return strings.Repeat(fmt.Sprintf("%02x", n), ed25519.SeedSize) }
	w.host, w.node = seeded(seed(1)), seeded(seed(2))
	p := w.startProxy(func(c *proxyConfig) { c.Pool = pool })
	memory := func() (int, int) {
		for range 6 { // as idle processes do; each halves what stacks do not use
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse), resident(b)
	}
	heap0, rss0 := memory()
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), farmEnv+"="+fmt.Sprint(p.addr, " ", tunnels, " ", seed(1), " ", seed(2)))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	poll(b, "all tunnels are up", func() bool { return len(p.server.Up()) == tunnels })
	poll(b, "nearly all are warm", func() bool { return p.warmTotal() >= tunnels*max(pool, 0)*95/100 })
	heap1, rss1 := memory()
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	p.stop()
	return float64(heap1-heap0) / float64(tunnels), float64(rss1-rss0) / float64(tunnels)
}

func (p *proxy) warmTotal() (n int) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	for _, t := range p.server.tunnels {
		n += len(t.idle)
	}
	return n
}
