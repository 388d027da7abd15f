// Package storetest runs a server that speaks S3's protocol, for the tests of what
// is kept in a bucket.
package storetest

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Key and Secret are the credentials of a [Server]'s only account; they are in the
// environment of the test that starts it.
const (
	Key    = "tester"
	Secret = "not-a-secret"
)

// Server is the program of tools/s3. Its buckets are directories of Dir.
type Server struct {
	Dir     string
	Address string // host and port

	t       testing.TB
	program string
	sidecar string // a directory for what objects have beside their content
	stop    func()
}

// Start starts a server without buckets, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	find := exec.CommandContext(t.Context(), "go", "tool", "-n", "versitygw") // builds it once
	find.Dir = filepath.Join(filepath.Dir(here), "..", "..", "..", "tools", "s3")
	find.Stderr = os.Stderr
	program, err := find.Output()
	if err != nil {
		t.Fatalf("build the S3 server: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: t.TempDir(), Address: ln.Addr().String(), t: t, program: strings.TrimSpace(string(program)), sidecar: t.TempDir()}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", Secret)
	s.Again()
	t.Cleanup(func() { s.Stop() })
	return s
}

// Stop ends the server as kill -9 does.
func (s *Server) Stop() { s.stop() }

// Again starts the server at its address, with what it had.
func (s *Server) Again() {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(s.t.Context()))
	cmd := exec.CommandContext(ctx, s.program, "--port", s.Address, "posix", "--sidecar", s.sidecar, s.Dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Key, "ROOT_SECRET_KEY="+Secret)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		stop()
		s.t.Fatal(err)
	}
	read, up := make(chan struct{}), make(chan struct{})
	s.stop = func() {
		stop()
		<-read
		_ = cmd.Wait() // it was killed
	}
	go func() {
		defer close(read)
		told := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if !told && strings.Contains(lines.Text(), "http://"+s.Address) {
				told = true
				close(up)
			}
		}
	}()
	select {
	case <-up:
	case <-read:
		s.t.Fatal("the S3 server ended before it listened")
	}
}

// URL makes a bucket and returns what names it in a configuration.
func (s *Server) URL(bucket string) string {
	s.t.Helper()
	if err := os.Mkdir(filepath.Join(s.Dir, bucket), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return "s3://" + bucket + "?region=us-east-1&use_path_style=true&endpoint=http://" + s.Address
}
