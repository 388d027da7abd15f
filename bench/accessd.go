//go:build linux

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cluster says how to start accessd's proxy, where that differs from the default.
type cluster struct {
	config string // its configuration file
	env    []string
	apart  bool // the proxy is a process of its own, without the authority
}

// authority is the data directory of a running authority, and a proxy to reach it
// through.
type authority struct {
	lab   *lab
	dir   string
	home  string // keys and files of people
	proxy *process
	addr  string // of the proxy
	id    string // of the proxy
}

// startAuthority starts a fresh cluster.
func (l *lab) startAuthority(ctx context.Context, p place, c cluster) (*authority, error) {
	a := &authority{lab: l}
	var err error
	if a.dir, err = l.folder(); err != nil {
		return nil, err
	}
	if a.home, err = l.folder(); err != nil {
		return nil, err
	}
	if err := a.start(ctx, p, c, "--data-dir", a.dir, "--roles", "auth,proxy"); err != nil || !c.apart {
		return a, err
	}
	join, err := a.joinArgs(ctx, "proxy", 1)
	if err != nil {
		return nil, err
	}
	dir, err := l.folder()
	if err != nil {
		return nil, err
	}
	return a, a.start(ctx, p, c, append(join, "--data-dir", dir, "--roles", "proxy", "--node-name", "p1")...)
}

// start starts a process that is a proxy, which the authority is from then on
// reached through.
func (a *authority) start(ctx context.Context, p place, c cluster, args ...string) (err error) {
	args = append([]string{a.lab.accessd, "start", "--listen", net.JoinHostPort(p.host, "0")}, args...)
	if a.proxy, err = a.lab.launch(spec{what: "accessd proxy", args: append(args, a.options(c)...), env: c.env}); err != nil {
		return err
	}
	ready, err := a.proxy.awaitReady(ctx)
	a.addr, a.id = ready["listen"], ready["id"]
	return err
}

// options are the arguments that carry a configuration.
func (a *authority) options(c cluster) []string {
	if c.config == "" {
		return nil
	}
	file := filepath.Join(a.home, "accessd.yaml")
	_ = os.WriteFile(file, []byte(c.config), 0o600) // a missing file is accessd's to complain about
	return []string{"--config", file}
}

// admin runs an administrative verb.
func (a *authority) admin(ctx context.Context, args ...string) (string, error) {
	out, err := call(ctx, append([]string{a.lab.accessd, "--data-dir", a.dir}, args...)...)
	return strings.TrimSpace(out), err
}

// joinArgs are the arguments with which processes of a role join.
func (a *authority) joinArgs(ctx context.Context, role string, uses int) ([]string, error) {
	token, err := a.admin(ctx, "tokens", "add", "--role", role, "--ttl", "1h", "--uses", fmt.Sprint(uses), "--quiet")
	if err != nil {
		return nil, err
	}
	pin, err := a.admin(ctx, "ca", "pin")
	return []string{"--join", a.addr, "--token", token, "--ca-pin", pin}, err
}

// online counts the nodes that have a tunnel to the proxy.
func (a *authority) online(ctx context.Context) int {
	text, err := a.admin(ctx, "nodes", "ls", "--format", "json")
	if err != nil {
		return 0
	}
	var nodes []struct {
		Proxies []string `json:"proxies"`
	}
	if json.Unmarshal([]byte(text), &nodes) != nil {
		return 0
	}
	n := 0
	for _, node := range nodes {
		if slices.Contains(node.Proxies, a.id) {
			n++
		}
	}
	return n
}

// startAccessd starts a cluster with one node and one user.
func (l *lab) startAccessd(ctx context.Context, p place, c cluster) (*side, error) {
	a, err := l.startAuthority(ctx, p, c)
	if err != nil {
		return nil, err
	}
	s := &side{name: "accessd", proxy: a.proxy, addr: a.addr, user: "bench", login: l.login, target: "n1:22"}
	if err := a.addNode(ctx, p, c, s); err != nil {
		return nil, err
	}
	return s, a.addUser(ctx, s)
}

func (a *authority) addNode(ctx context.Context, p place, c cluster, s *side) error {
	join, err := a.joinArgs(ctx, "node", 1)
	if err != nil {
		return err
	}
	dir, err := a.lab.folder()
	if err != nil {
		return err
	}
	args := p.beside(a.lab.accessd, "start", "--data-dir", dir, "--roles", "node", "--node-name", "n1")
	if s.node, err = a.lab.launch(spec{what: "accessd node", args: append(append(args, join...), a.options(c)...)}); err != nil {
		return err
	}
	if _, err := s.node.awaitReady(ctx); err != nil {
		return err
	}
	return await(ctx, "the node is online", func() bool { return a.online(ctx) == 1 })
}

// addUser adds somebody, signs a key for them and writes the files that the stock
// client needs.
func (a *authority) addUser(ctx context.Context, s *side) error {
	id, err := newIdentity(filepath.Join(a.home, "id"))
	if err != nil {
		return err
	}
	if _, err := a.admin(ctx, "users", "add", s.user, "--roles", cmp.Or(s.role, "access"), "--logins", s.login); err != nil {
		return err
	}
	if _, err := a.admin(ctx, "users", "sign", s.user, "--public-key", id.file+".pub", "--ttl", "2h", "--out", id.file+"-cert.pub"); err != nil {
		return err
	}
	hosts := filepath.Join(a.home, "known_hosts")
	config, err := a.admin(ctx, "ssh-config", "--identity", id.file, "--proxy", a.addr, "--login", s.login, "--known-hosts", hosts)
	if err != nil {
		return err
	}
	s.config, s.gcm = filepath.Join(a.home, "config"), filepath.Join(a.home, "config-gcm")
	for file, head := range map[string]string{s.config: "", s.gcm: onlyGCM} {
		if err := os.WriteFile(file, []byte(clientHead+head+config+"\n"), 0o600); err != nil {
			return err
		}
	}
	if s.key, err = id.certified(); err != nil {
		return err
	}
	s.known, err = trust(hosts)
	return err
}
