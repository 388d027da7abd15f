//go:build unix

package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/store"
)

// archiveFirst archives the first period of the log in dir, as the verb does, beside
// the log.
func archiveFirst(ctx context.Context, dir string, l *Log) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	to, err := store.Open(ctx, store.Folder(filepath.Join(dir, "archive")))
	if err != nil {
		return err
	}
	_, err = l.Archive(ctx, Archiving{Period: FirstPeriod, Store: to, Prefix: "one", Young: true, Record: func(a Archived) error {
		ev := Event{Name: AuditArchive, UID: uuid.NewString(), Time: time.Now(), Success: true, Fields: map[string]any{"entries": a.Size}}
		data, err := newSchema().encode(ev, MaxEvent)
		if err != nil {
			return err
		}
		return l.Append(ctx, [][]byte{data})
	}})
	return errors.Join(err, to.Close())
}

// archiveChild archives the log's first period and says when that is done.
func archiveChild(dir string) error {
	p, err := openCrashParts(context.Background(), dir)
	if err != nil {
		return err
	}
	if err := archiveFirst(context.Background(), dir, p.log); err != nil {
		return err
	}
	fmt.Println("archived")
	return errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close())
}

// F04: killed when a thread enters any of the calls that sync, name or remove
// something while a period is archived. Each time the next start finds the period
// here, whole, or in the archive, whole, and nothing of it here; and what was begun
// can be done again. Which of the calls, differs from run to run; "make fault" takes
// each.
func TestF04KilledWhileArchiving(t *testing.T) {
	t.Parallel()
	was := crashDir(t)
	p, err := openCrashParts(t.Context(), was)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, p.log, numbered(t, 0, 3)...)
	mustRotate(t, p.log)
	mustAppend(t, p.log, numbered(t, 3, 2)...)
	if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
		t.Fatal(err)
	}
	first, step := 1+rand.N(7), 7
	if os.Getenv("ACCESSD_FAULT_ROUNDS") != "" {
		first, step = 1, 1
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		found = map[bool]int{} // whether it was gone from here
	)
	for _, calls := range []string{"fsync", "rename,renameat,renameat2,link,linkat,mkdir,mkdirat", "rmdir,unlink,unlinkat"} {
		wg.Go(func() {
			for n := first; ; n += step {
				dir := filepath.Join(t.TempDir(), "copy")
				if err := os.CopyFS(dir, os.DirFS(was)); err != nil {
					t.Error(err)
					return
				}
				cmd, out := startChild(t, "archive", dir, "strace", "-f", "-qq", "-o", os.DevNull,
					"-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, n))
				said, _ := io.ReadAll(out)
				_ = cmd.Wait()
				gone := checkArchived(t, dir)
				mu.Lock()
				found[gone]++
				mu.Unlock()
				if strings.Contains(string(said), "archived") {
					if !gone {
						t.Error("it was archived, and is here")
					}
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("gone after a kill: %v", found)
	if found[true] < 3 || found[false] == 0 {
		t.Errorf("the period was gone %d times and here %d times, want each", found[true], found[false])
	}
}

// checkArchived opens what a kill left, archives what is not, and reports whether it
// had been.
func checkArchived(t *testing.T, dir string) (gone bool) {
	t.Helper()
	p, err := openCrashParts(t.Context(), dir)
	if err != nil {
		t.Errorf("after a kill: %v", err)
		return false
	}
	defer func() {
		if err := errors.Join(p.ledger.Close(), p.emitter.Close(), p.log.Close()); err != nil {
			t.Error(err)
		}
	}()
	key := string(read(t, filepath.Join(dir, "vkey")))
	here := filepath.Join(dir, "log")
	if gone = len(p.log.view().present().trees) == 1; !gone {
		if r, err := Verify(t.Context(), here, key); err != nil || len(r.Before) != 1 || r.Before[0].Size != 3 {
			t.Errorf("after a kill: the log is %q, %v; want it whole", sizes(r), err)
		}
		err = archiveFirst(t.Context(), dir, p.log)
	} else if err = archiveFirst(t.Context(), dir, p.log); fault.Is(err, fault.Conflict) {
		err = nil // there is nothing left to archive
	}
	if err != nil {
		t.Errorf("archiving it again: %v", err)
	}
	if r, err := Verify(t.Context(), filepath.Join(dir, "archive", "one"), key); err != nil || r.Size != 3 {
		t.Errorf("the archive is %q, %v", sizes(r), err)
	}
	if r, err := VerifyArchived(t.Context(), here, key); err != nil || r.Absent == nil || r.Absent.Size != 3 || len(r.Before) != 0 {
		t.Errorf("what is left here is %q, %v", sizes(r), err)
	}
	list, err := os.ReadDir(here)
	if err != nil || slices.ContainsFunc(list, func(f os.DirEntry) bool {
		return slices.Contains([]string{"checkpoint", "tile", ".state", removing}, f.Name())
	}) {
		t.Errorf("left are %v, %v", list, err)
	}
	recorded, commands := 0, 0
	for _, data := range contents(t, p.log, Filter{}) {
		switch e, err := ParseEvent(data); {
		case err != nil:
			t.Error(err)
		case e.Name == AuditArchive:
			recorded++
		case e.Name == Exec:
			commands++
		}
	}
	if recorded < 1 || recorded > 2 || commands != 2 {
		t.Errorf("the log has %d archive events and %d of the 2 others", recorded, commands)
	}
	return gone
}
