package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// copyFlags say that recordings are read from a copy of their store.
type copyFlags struct{ dir, keyFile string }

func (o *copyFlags) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.dir, "copy", "", "directory with a copy of what recordings.mirror has, in place of the cluster")
	c.Flags().StringVar(&o.keyFile, "key", "", "with --copy: file with the log's verifier key")
}

// keys returns the log's keys, or nothing.
func (o *copyFlags) keys() (string, error) {
	if o.keyFile == "" {
		return "", nil
	}
	keys, err := readBounded(o.keyFile, maxKeyFile)
	return string(keys), err
}

// copied is a copy of one recording.
type copied struct {
	files *os.Root
	sid   names.SessionID
	parts []uint32 // that are there
	of    recording.Copied
	open  bool // it was not complete when it was copied

	proven bool   // the log has
	root   string // this
	reason string // why it was not whole when it came to its end
	where  string // is that
}

// openCopied opens the copy of a recording below dir. It reads what may be hostile;
// with keys it must be what the log says.
func openCopied(dir string, sid names.SessionID, keys string) (*copied, error) {
	at := filepath.Join(dir, "recordings", string(sid))
	files, err := os.OpenRoot(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no recording of session %s in %q", sid, dir)
	}
	if err != nil {
		return nil, fault.New(fault.BadInput, "read %q: %w", at, err)
	}
	c := &copied{files: files, sid: sid}
	if err := c.load(keys); err != nil {
		return nil, errors.Join(err, files.Close())
	}
	return c, nil
}

var partGrammar = regexp.MustCompile(`^([0-9]{6,9})\.part$`)

func (c *copied) load(keys string) error {
	list, err := fs.ReadDir(c.files.FS(), ".")
	if err != nil {
		return fault.New(fault.BadInput, "read the copy of %s: %w", c.sid, err)
	}
	for _, f := range list {
		if m := partGrammar.FindStringSubmatch(f.Name()); m != nil {
			if n, err := strconv.ParseUint(m[1], 10, 32); err == nil && recording.PartFile(uint32(n)) == f.Name() {
				c.parts = append(c.parts, uint32(n))
			}
		}
	}
	slices.Sort(c.parts)
	of, err := c.read(recording.CopyOf, recording.MaxCopied)
	if c.open = fault.Is(err, fault.NotFound); c.open {
		return nil
	}
	if err == nil {
		c.of, err = recording.ParseCopied(of, c.sid)
	}
	if err != nil || keys == "" {
		return err
	}
	return c.prove(keys)
}

// prove reads what the log says of the recording.
func (c *copied) prove(keys string) error {
	data, err := c.read(recording.CopyProof, events.MaxProof)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := events.CheckProof(data, keys)
	if err != nil {
		return err
	}
	ev, err := events.ParseEvent(p.Event)
	if err != nil {
		return err
	}
	if ev.Name != events.RecordingComplete || ev.SID != c.sid {
		return fault.New(fault.Conflict, "the proof beside the recording of %s is of another event, %s of %q", c.sid, ev.Name, ev.SID)
	}
	c.root, c.proven = fmt.Sprint(ev.Fields["recording_root"]), true
	c.where = fmt.Sprintf("entry %d of %s", p.Entry, events.Display(p.Origin))
	if !ev.Success {
		c.reason = cmp.Or(ev.Error, "it was not whole")
	}
	if c.root != c.of.Root {
		return fault.New(fault.Conflict, "%s says that the root of %s is %s, the log has %s", recording.CopyOf, c.sid, c.of.Root, c.root)
	}
	return nil
}

func (c *copied) read(name string, limit int64) ([]byte, error) {
	f, err := c.files.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "the copy of %s has no %s", c.sid, name)
	}
	if err != nil {
		return nil, fault.New(fault.BadInput, "read the copy of %s: %w", c.sid, err)
	}
	defer f.Close()
	return readAll(name, f, limit)
}

// each yields the parts that are there.
func (c *copied) each(yield func(part, error) bool) {
	for _, n := range c.parts {
		data, err := c.read(recording.PartFile(n), recording.MaxPart)
		if !yield(part{n, data}, err) || err != nil {
			return
		}
	}
}

// verify checks the whole recording against what the log says of it, without
// opening a part. A [fault.NotFound] says that there is nothing to check it
// against.
func (c *copied) verify() error {
	if c.open {
		return fault.New(fault.NotFound, "%s went on when it was copied: %d parts", c.sid, len(c.parts))
	}
	if !c.proven {
		return fault.New(fault.NotFound, "%s has no proof that the log has its end", c.sid)
	}
	var chain recording.Chain
	for p, err := range c.each {
		if err != nil {
			return err
		}
		chain.Add(p.data)
	}
	switch got := chain.Root(); {
	case got == c.root:
		return nil
	case c.reason != "":
		return fault.New(fault.NotFound, "%s was not whole when it ended, as the log has it: %s", c.sid, events.Display(c.reason))
	default:
		return fault.New(fault.Conflict, "%s is not the recording in the log: the root over its %d parts is %s, the log has %s; %s names the part",
			c.sid, len(c.parts), got, c.root, recording.CopySums)
	}
}

func recordingsVerify(e *env) *cobra.Command {
	var o copyFlags
	c := &cobra.Command{
		Use:   "verify --copy DIR --key FILE [SESSION]",
		Short: "Check copies of recordings against the log, without the cluster",
		Long: "Check a copy of what recordings.mirror has: each recording, or that of one session,\n" +
			"against the proof beside it that the log has its end. DIR is what has the\n" +
			"directory \"recordings\"; --key takes what \"accessd ca export --type audit\" prints.\n" +
			"Nothing is opened, so sealed recordings need no key of their own.\n\n" +
			"Which recordings there should be, the log says: its recording.complete events.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return want("SESSION")(cmd, args)
		},
		RunE: verb(func(ctx context.Context, args []string) error {
			keys, err := o.keys()
			if err != nil {
				return err
			}
			list, err := o.sessions(args)
			if err != nil {
				return err
			}
			return e.verifyCopies(ctx, o.dir, keys, list)
		}),
	}
	o.flags(c)
	_ = c.MarkFlagRequired("copy") // the flag exists
	_ = c.MarkFlagRequired("key")  // the same
	return c
}

// sessions returns the session that is named, or all in the copy.
func (o *copyFlags) sessions(args []string) ([]names.SessionID, error) {
	if len(args) > 0 {
		sid, err := names.ParseSessionID(args[0])
		return []names.SessionID{sid}, err
	}
	list, err := os.ReadDir(filepath.Join(o.dir, "recordings"))
	if err != nil {
		return nil, fault.New(fault.BadInput, "read the copy: %w", err)
	}
	var out []names.SessionID
	for _, f := range list {
		if sid, err := names.ParseSessionID(f.Name()); err == nil && f.IsDir() {
			out = append(out, sid)
		}
	}
	return out, nil
}

// verifyCopies checks each copy and says what it found. The worst decides the exit
// code.
func (e *env) verifyCopies(ctx context.Context, dir, keys string, list []names.SessionID) error {
	wrong, unproven := 0, 0
	for _, sid := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := openCopied(dir, sid, keys)
		if err == nil {
			err = errors.Join(c.verify(), c.files.Close())
		}
		var line string
		switch {
		case err == nil:
			line = fmt.Sprintf("verified %s: %d parts, %s", sid, len(c.parts), c.where)
		case fault.Is(err, fault.NotFound):
			unproven++
			line = "not verified: " + fault.Public(err)
		default:
			wrong++
			line = "WRONG: " + fault.Public(err)
		}
		if _, err := fmt.Fprintln(e.stdout, line); err != nil {
			return err
		}
	}
	switch {
	case wrong > 0:
		return fault.New(fault.Conflict, "%d of %d recordings are not what the log says", wrong, len(list))
	case unproven > 0:
		return fault.New(fault.NotFound, "%d of %d recordings could not be held against the log", unproven, len(list))
	}
	return nil
}
