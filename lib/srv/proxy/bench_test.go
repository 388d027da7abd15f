package proxy

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// crowdEnv makes the test binary the crowd of BenchmarkIdleBridge.
const crowdEnv = "ACCESSD_PROXY_CROWD"

func TestMain(m *testing.M) {
	if os.Getenv(crowdEnv) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := crowd(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
}

// orders are what a crowd is told on its standard input.
type orders struct {
	Addr        string // of the proxy
	Key         ed25519.PrivateKey
	Certificate string
	N           int // connections, each with a bridge
}

// crowd is both ends of many idle bridges, in a process of its own so that the
// proxy's memory can be told from theirs.
func crowd(in io.Reader, out io.Writer) error {
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, node.Addr())
	var o orders
	dec := json.NewDecoder(in)
	if err := dec.Decode(&o); err != nil {
		return err
	}
	cert, err := parseCertificateLine(o.Certificate)
	if err != nil {
		return err
	}
	key, err := ssh.NewSignerFromKey(o.Key)
	if err != nil {
		return err
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return err
	}
	cfg := &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()} //nolint:forbidigo // it measures memory
	for range o.N {
		conn, err := ssh.Dial("tcp", o.Addr, cfg)
		if err != nil {
			return err
		}
		bridge, err := conn.Dial("tcp", "n1:22")
		if err != nil {
			return err
		}
		end, err := node.Accept()
		if err != nil {
			return err
		}
		// As much as a session's beginning, both ways.
		if err := pingPong(bridge, end); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "ready")
	_, err = io.Copy(io.Discard, in) // until it is closed
	return err
}

func pingPong(a, b net.Conn) error {
	buf := make([]byte, 1500)
	for range 8 {
		for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
			if _, err := way[0].Write(buf); err != nil {
				return err
			}
			if _, err := io.ReadFull(way[1], buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseCertificateLine(line string) (*ssh.Certificate, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, err
	}
	return key.(*ssh.Certificate), nil
}

// BenchmarkIdleBridge measures what an idle connection with a bridge to a node
// costs the proxy; the goal is 80 KB (BUDGETS.md, 8).
func BenchmarkIdleBridge(b *testing.B) {
	const n = 200
	for b.Loop() {
		w := newWorld(b, func(w *world) { w.cfg.Events = forgetful{} })
		w.policy.node(services.Node{ID: idN1, Name: "n1", GatewayPort: portN1})
		private, signer := sshca.Generate()
		cert, err := sshca.MintUser(w.ca[sshca.TypeUser], w.userRequest("alice", signer.PublicKey()))
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), crowdEnv+"=1")
		cmd.Stderr = os.Stderr
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		w.tunnel.nodes[idN1] = lines.Text()
		before := memory()
		if err := json.NewEncoder(in).Encode(orders{w.addr, private, authorizedKey(cert), n}); err != nil {
			b.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != "ready" {
			b.Fatalf("the crowd says %q", lines.Text())
		}
		b.ReportMetric(float64(memory()-before)/n, "bytes/bridge")
		b.ReportMetric(float64(runtime.NumGoroutine())/n, "goroutines/bridge")
		in.Close()
		_ = cmd.Wait()
		stop()
		w.stop()
	}
}

// forgetful is an audit log that keeps nothing, so that it is not measured.
type forgetful struct{}

func (forgetful) Emit(context.Context, events.Event) error { return nil }

// memory returns what heap and stacks hold once both have shrunk, stacks by half
// in each collection.
func memory() uint64 {
	for range 5 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
