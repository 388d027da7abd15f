//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestDev(t *testing.T) {
	ctx := context.Background()
	l, err := newLab(options{quick: os.Getenv("FULL") == "", link: true}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	b, err := l.openssh(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(b.algorithms(ctx))
	t.Log(connectLoad(ctx, b, 2*time.Second))
	n, took, err := rate(ctx, workers, 2*time.Second, func(ctx context.Context) error { return b.exec(ctx, "true") })
	t.Log(n, took, err)
	for range 3 {
		s := time.Now()
		t.Log(runStock(ctx, b.config, "true"), time.Since(s))
	}
	t.Log(bulk(ctx, b, 96))
	t.Log(bulk(ctx, b, 96))
	k, err := openKeyboard(ctx, b.config)
	if err != nil {
		t.Fatal(err)
	}
	x, err := k.press(1000)
	t.Log(err, median(x), quantile(x, .99))
	k.close()
	t.Log(holdSessions(ctx, b, 10))
	t.Log(openSessions(ctx, b, 10))
}

func TestDevLink(t *testing.T) {
	ctx := context.Background()
	l, err := newLab(options{quick: true, link: true}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	w, err := newWire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	t.Log(roundTrip(ctx))
	b, err := l.startOpenSSH(ctx, place{host: wireProxy, atNode: w.atNode()})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strokesOnFullLink(ctx, b, 8*time.Second))
	l.end(0)
}

func TestDevEvents(t *testing.T) {
	l, err := newLab(options{quick: true}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	f, err := measureEvents(t.Context(), l)
	for _, x := range f {
		t.Log(x.what, x.accessd)
	}
	t.Log(err)
}

func TestDevProxy(t *testing.T) {
	ctx := t.Context()
	l, err := newLab(options{quick: true, accessd: "/tmp/accp"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	a, err := l.startAuthority(ctx, place{host: "127.0.0.1"}, cluster{})
	if err != nil {
		t.Fatal(err)
	}
	s := &side{name: "accessd", proxy: a.main, addr: a.addr, user: "bench", login: l.login, target: "n1:22"}
	if err := a.addUser(ctx, s); err != nil {
		t.Fatal(err)
	}
	b, err := l.openssh(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s.algorithms(ctx))
	_ = b
	go profile(s.proxy.pid(), "connect", "20")
	for range 6 {
		t.Log(connectLoad(ctx, s, 4*time.Second))
	}
	t.Log(settled(ctx, s.proxy.pid()))
}

func profile(pid int, name, secs string) {
	out, err := exec.Command("curl", "-s", "--unix-socket", fmt.Sprintf("/tmp/lt/prof/%d", pid), "-o", "/tmp/lt/"+name+".pprof", "http://x/debug/pprof/profile?seconds="+secs).CombinedOutput()
	if err != nil {
		fmt.Println(string(out), err)
	}
}
