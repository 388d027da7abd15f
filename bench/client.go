//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// clientConfig is the load client's configuration for one server of a side.
func (s *side) clientConfig(name string) *ssh.ClientConfig {
	return &ssh.ClientConfig{User: name, Auth: []ssh.AuthMethod{ssh.PublicKeys(s.key)}, HostKeyCallback: s.known}
}

// trust returns a callback that takes the host certificates of the CAs that a
// known_hosts file names. (x/crypto's own reads "*" as "port 22 of any host".)
func trust(file string) (ssh.HostKeyCallback, error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var authorities []string
	for {
		var marker string
		var key ssh.PublicKey
		marker, _, key, _, rest, err = ssh.ParseKnownHosts(rest)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if marker == "cert-authority" {
			authorities = append(authorities, string(key.Marshal()))
		}
	}
	checker := &ssh.CertChecker{IsHostAuthority: func(ca ssh.PublicKey, _ string) bool {
		return slices.Contains(authorities, string(ca.Marshal()))
	}}
	return checker.CheckHostKey, nil
}

// connect makes one authenticated connection to the proxy with the load client.
func (s *side) connect(ctx context.Context) (*ssh.Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	return handshake(conn, s.addr, s.clientConfig(s.user))
}

func handshake(conn net.Conn, addr string, cfg *ssh.ClientConfig) (*ssh.Client, error) {
	stop := time.AfterFunc(patience, func() { conn.Close() })
	defer stop.Stop()
	c, channels, requests, err := ssh.NewClientConn(conn, addr, cfg)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	return ssh.NewClient(c, channels, requests), nil
}

// chain is the whole way to the node: a connection to the proxy, a channel
// through the tunnel, and a connection to the node in it.
type chain struct{ outer, inner *ssh.Client }

func (s *side) chain(ctx context.Context) (chain, error) {
	outer, err := s.connect(ctx)
	if err != nil {
		return chain{}, err
	}
	conn, err := outer.DialContext(ctx, "tcp", s.target)
	if err != nil {
		outer.Close()
		return chain{}, fmt.Errorf("jump to %s: %w", s.target, err)
	}
	inner, err := handshake(conn, s.target, s.clientConfig(s.login))
	if err != nil {
		outer.Close()
		return chain{}, err
	}
	return chain{outer, inner}, nil
}

func (c chain) close() {
	c.inner.Close()
	c.outer.Close()
}

// exec runs a command on the node over a chain of its own.
func (s *side) exec(ctx context.Context, command string) error {
	c, err := s.chain(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	defer time.AfterFunc(patience, c.close).Stop()
	session, err := c.inner.NewSession()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	if err := session.Run(command); err != nil {
		return fmt.Errorf("run %q: %w", command, err)
	}
	return nil
}

// stock returns the stock client about to run a command on the node.
func stock(ctx context.Context, config string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ssh", append([]string{"-F", config}, args...)...)
}

// runStock runs a command on the node with the stock client.
func runStock(ctx context.Context, config, command string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stderr strings.Builder
	cmd := stock(ctx, config, "n1", command)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ssh n1 %q: %w: %s", command, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// algorithms names what the load client and the proxy agreed on.
func (s *side) algorithms(ctx context.Context) (string, error) {
	c, err := s.connect(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	m, ok := c.Conn.(ssh.AlgorithmsConnMetadata)
	if !ok {
		return "", errors.New("the connection does not tell its algorithms")
	}
	a := m.Algorithms()
	return a.KeyExchange + ", " + a.HostKey + ", " + a.Read.Cipher, nil
}

// pipes connects a command to blocking pipes, which wake their reader without the
// way through Go's poller.
func pipes(cmd *exec.Cmd) (in, out *os.File, err error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, nil, err
	}
	defer theirOut.Close()
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, nil, err
	}
	in.Fd() // makes it block
	out.Fd()
	return in, out, nil
}
