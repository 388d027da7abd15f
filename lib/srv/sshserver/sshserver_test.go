package sshserver

import (
	"testing"

	"github.com/accessd/accessd/lib/names"
)

func userName(s string) names.UserName { return names.UserName(s) }

func TestEcho(t *testing.T) {
	w := newWorld(t, nil)
	c := w.login()
	ch, reqs, err := c.OpenChannel("echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range reqs {
		}
	}()
	ch.Write([]byte("hi"))
	b := make([]byte, 2)
	ch.Read(b)
	if string(b) != "hi" {
		t.Fatal(string(b))
	}
	ch.Close()
	c.Close()
	if err := <-w.errs; err != nil {
		t.Fatal(err)
	}
}
