//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/daemon"
)

// measureTunnels measures what an idle node's tunnel holds of the proxy's memory.
func measureTunnels(ctx context.Context, l *lab) ([]figure, error) {
	return l.own(func() ([]figure, error) {
		nodes, tunnels := pick(l, 100, 16), pick(l, 20, 3)
		var held [2]float64
		for i, apart := range []bool{true, false} {
			var err error
			if held[i], err = l.holdNodes(ctx, nodes, apart); err != nil {
				return nil, fmt.Errorf("accessd: %w", err)
			}
		}
		p, err := l.here()
		if err != nil {
			return nil, err
		}
		stockHeld, err := l.holdTunnels(ctx, p, tunnels)
		if err != nil {
			return nil, fmt.Errorf("OpenSSH: %w", err)
		}
		return []figure{
			pair(held[0]/1000, stockHeld/1000).named("8", "memory per idle node tunnel at a proxy", kb, atMost(56)).
				remark("growth of the proxy's proportional set size over %d nodes that joined (each a node of the embedding API, %d to a process), against %d `ssh -N -R`; accessd's proxy runs with GOGC=10, so that what it holds is measured and not what is yet to be collected.", nodes, nodes, tunnels),
			pair(held[1]/1000, stockHeld/1000).named("8", "the same where the proxy is the authority, too", kb, goal{}).
				remark("the node's streams of policy and instructions end there."),
		}, nil
	})
}

// holdNodes joins n nodes to a fresh cluster and returns the bytes that each
// holds at the proxy.
func (l *lab) holdNodes(ctx context.Context, n int, apart bool) (float64, error) {
	mark := len(l.processes)
	defer func() { l.end(mark) }()
	a, err := l.startAuthority(ctx, place{host: "127.0.0.1"}, cluster{env: frugal(), apart: apart})
	if err != nil {
		return 0, err
	}
	join, err := a.joinArgs(ctx, "node", n+1)
	if err != nil {
		return 0, err
	}
	if err := l.joinNodes(ctx, "first", 1, join); err != nil { // what is allocated once is not a tunnel's
		return 0, err
	}
	before, err := l.settled(ctx, a.proxy.pid())
	if err != nil {
		return 0, err
	}
	if err := l.joinNodes(ctx, "many", n, join); err != nil {
		return 0, err
	}
	if err := await(ctx, "all nodes are online", func() bool { return a.online(ctx) == n+1 }); err != nil {
		return 0, err
	}
	after, err := l.settled(ctx, a.proxy.pid())
	if err != nil {
		return 0, err
	}
	return (after[0] - before[0]) / float64(n), nil
}

// joinNodes runs n nodes in another process and waits until they serve.
func (l *lab) joinNodes(ctx context.Context, name string, n int, join []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := l.folder()
	if err != nil {
		return err
	}
	p, err := l.launch(spec{what: "nodes", args: append([]string{self, nodesVerb, "-name", name, "-count", fmt.Sprint(n), "-dir", dir}, join...)})
	if err != nil {
		return err
	}
	_, err = p.awaitReady(ctx)
	return err
}

// holdTunnels opens n stock tunnels to a fresh sshd and returns the bytes that
// each holds there.
func (l *lab) holdTunnels(ctx context.Context, p place, n int) (float64, error) {
	y := &yardstick{lab: l, place: p}
	s, err := y.start(ctx)
	if err != nil {
		return 0, err
	}
	before, err := l.settled(ctx, s.proxy.pid())
	if err != nil {
		return 0, err
	}
	for range n {
		if _, err := y.tunnel(ctx, ""); err != nil {
			return 0, err
		}
	}
	after, err := l.settled(ctx, s.proxy.pid())
	if err != nil {
		return 0, err
	}
	return (after[0] - before[0]) / float64(n), nil
}

// nodesVerb makes this program run nodes instead, as the proxy's counterpart.
const nodesVerb = "nodes"

// joiners is how many nodes join at once: fewer than one source may have
// connections that are not authenticated yet.
const joiners = 8

// runNodes runs nodes until ctx ends, when args ask for that.
func runNodes(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, ok bool) {
	if len(args) == 0 || args[0] != nodesVerb {
		return 0, false
	}
	fl := flag.NewFlagSet(nodesVerb, flag.ContinueOnError)
	fl.SetOutput(stderr)
	name := fl.String("name", "n", "first part of the nodes' names")
	count := fl.Int("count", 1, "how many nodes")
	dir := fl.String("dir", "", "directory for their data")
	join := fl.String("join", "", "address of the proxy")
	token := fl.String("token", "", "join token")
	pin := fl.String("ca-pin", "", "pin of the host CA")
	if err := fl.Parse(args[1:]); err != nil {
		return 2, true
	}
	err := joinAll(ctx, *count, stdout, func(i int) *config.Config {
		id := fmt.Sprintf("%s-%d", *name, i)
		return &config.Config{
			DataDir: filepath.Join(*dir, id), Roles: []string{"node"}, Node: config.Node{Name: id},
			Tunnel: config.Tunnel{Proxies: 1},
			Join:   config.Join{Addresses: strings.Split(*join, ","), Token: *token, CAPins: []string{*pin}},
			Log:    config.Log{Level: "error"},
		}
	})
	if err != nil {
		fmt.Fprintln(stderr, "bench: nodes:", err)
		return 1, true
	}
	return 0, true
}

// joinAll runs count nodes, says "ready" once all of them serve, and returns when
// all have ended.
func joinAll(ctx context.Context, count int, stdout io.Writer, cfg func(int) *config.Config) error {
	all, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, joiners)
	for i := range count {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return all.Wait()
		}
		d, err := daemon.New(cfg(i), daemon.Options{Stderr: os.Stderr})
		if err != nil {
			return err
		}
		all.Go(func() error { return d.Run(ctx) })
		all.Go(func() error {
			select {
			case <-d.Ready():
				<-slots
			case <-ctx.Done():
			}
			return nil
		})
	}
	for range joiners { // all slots are free when all are ready
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return all.Wait()
		}
	}
	fmt.Fprintln(stdout, "ready")
	return all.Wait()
}
