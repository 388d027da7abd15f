//go:build unix

package recording

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/names"
)

// stallChild records a session on a disk that does not answer for a while, and says
// what became of it.
func stallChild() error {
	const patience = time.Second
	r, err := New(Config{Dir: "spool", Patience: patience})
	if err != nil {
		return err
	}
	told := make(chan error, 8)
	w, err := r.Begin(Header{Session: faultSession, OnFail: func(err error) { told <- err }})
	if errors.Is(err, ErrStalled) {
		began := time.Now()
		if _, err := r.Begin(Header{Session: names.NewSessionID()}); !errors.Is(err, ErrStalled) || time.Since(began) > patience {
			return fmt.Errorf("another Begin took %v: %w", time.Since(began), err)
		}
		fmt.Println("refused")
		return r.Close()
	} else if err != nil {
		return err
	}
	printed := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 200 && err == nil; i++ { // of 4 MB
			if err = w.Print(stdout, line(i, 20_000)); err == nil {
				fmt.Println("print", i)
			}
		}
		printed <- err
	}()
	if err := <-told; !errors.Is(err, ErrStalled) {
		return fmt.Errorf("OnFail got: %w", err)
	}
	sum, err := w.Close()
	if !errors.Is(err, ErrStalled) {
		return fmt.Errorf("Close returned %w", err)
	}
	fmt.Println("told")
	for errors.Is(err, ErrStalled) { // until the disk answers
		sum, err = w.Close()
	}
	if err != nil {
		return err
	}
	if err := <-printed; err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("Print returned %w", err)
	}
	fmt.Println("end", sum.Parts, sum.Root, sum.Bytes)
	return r.Close()
}

// F05: the disk does not answer to one call for a while. Whoever begins, prints or
// ends is told in bounded time; what was acknowledged is there once it answers, and
// of a session that was refused there is nothing.
func TestF05HangingDisk(t *testing.T) {
	type child struct {
		name, spool, want string
		cmd               *exec.Cmd
		out               io.Reader
	}
	var all []child // which wait at once
	for _, c := range []struct{ file, call, want string }{
		{"state", "openat", "refused"},
		{"000001.journal", "openat", "told"},
		{"000001.journal", "write", "told"},
		{"000001.part.tmp", "fsync", "told"},
		{"000002.journal", "openat", "told"},
	} {
		dir := t.TempDir()
		spool := filepath.Join(dir, "spool")
		cmd, out := startChild(t, "stall", dir, "strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"),
			"-P", filepath.Join(spool, string(faultSession), c.file), "-P", c.file, "-e", "trace="+c.call, "-e", "inject="+c.call+":delay_enter=3s:when=1")
		all = append(all, child{c.file + " " + c.call, spool, c.want, cmd, out})
	}
	for _, c := range all {
		text, err := io.ReadAll(c.out)
		if err := errors.Join(err, c.cmd.Wait()); err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, text)
			continue
		}
		if said := string(text); !strings.Contains(said, c.want+"\n") {
			t.Errorf("%s: the child did not say %q: %.300s", c.name, c.want, said)
			continue
		}
		if c.want != "refused" {
			t.Run(c.name, func(t *testing.T) { checkFaulty(t, c.spool, strings.ReplaceAll(string(text), "told\n", ""), nil) })
		} else if left := spooled(t, c.spool); len(left) > 0 {
			t.Errorf("%s: of a session that did not begin there is %v", c.name, left)
		}
	}
}
