package srv

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/names"
)

// A recording that its disk does not let be closed is said to be open, and its
// root, which is not known yet, is not said.
func TestUnclosedRecordingIsSaid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r, err := recording.New(recording.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() }) // there is nothing left to close
	tape, err := r.Begin(recording.Header{Session: names.NewSessionID(), User: "alice", Login: "root", NodeName: "n1", Kind: "exec"})
	if err == nil {
		err = tape.Print(accessdv1.Stream_STREAM_STDOUT, []byte("seen"))
	}
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &session{tape: tape, client: &Client{m: &Manager{cfg: Config{Log: zap.NewNop()}}}}
	if got := s.rewind(); len(got) != 1 || got["recording_open"] != true {
		t.Errorf("session.end says %v", got)
	}
}
