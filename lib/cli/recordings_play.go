package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// How a recording is written; the values of --format.
const (
	castJSON = "json"
	castText = "text"
	castFile = "asciicast"
	castPlay = "tty"
)

// maxIdentity bounds an identity file, in bytes.
const maxIdentity = 1 << 20

// identities are the files whose keys open sealed recordings.
type identities []string

func (i *identities) flag(c *cobra.Command) {
	c.Flags().StringArrayVarP((*[]string)(i), "identity", "i", nil, "file with an age identity or an SSH private key, for a sealed recording; repeatable")
}

func (i *identities) read(e *env) ([]age.Identity, error) {
	var all []age.Identity
	for _, name := range *i {
		file, err := readBounded(name, maxIdentity)
		if err != nil {
			return nil, err
		}
		ids, err := recording.ParseIdentities(file, func() ([]byte, error) { return e.passphrase(name) })
		if err != nil {
			return nil, fault.Wrap(fault.BadInput, err, fmt.Sprintf("%q: %s", name, fault.Public(err)))
		}
		all = append(all, ids...)
	}
	return all, nil
}

// passphrase asks for the passphrase of a key.
func (e *env) passphrase(name string) ([]byte, error) {
	in, ok := e.stdin.(*os.File)
	if !ok || !isTerminal(in) {
		return nil, fault.New(fault.BadInput, "the key in %q has a passphrase, and there is no terminal to ask for it", name)
	}
	fmt.Fprintf(e.stderr, "Passphrase for %s: ", events.Display(name))
	defer fmt.Fprintln(e.stderr)
	return term.ReadPassword(int(in.Fd()))
}

// onTerminal reports whether what is written is shown by a terminal.
func (e *env) onTerminal() bool {
	if e.call != nil {
		return e.call.Terminal
	}
	return isTerminal(e.stdout)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func recordingsPlay(e *env) *cobra.Command {
	var (
		ids    identities
		from   copyFlags
		pace   recording.Pace
		format string
		follow bool
	)
	c := &cobra.Command{
		Use:   "play SESSION [--speed N] [--skip-idle D] [--follow] [--format tty|text|json] [--identity FILE] [--copy DIR]",
		Short: "Play the recording of a session",
		Long: "Play the recording of a session at the pace in which it happened. What could drive\n" +
			"your terminal, beyond drawing on it, is left out.\n\n" +
			"Without a terminal, and with --format text, it is written as text; with --format\n" +
			"json as one object per frame, with the time since the one before and the bytes in\n" +
			"base64. At the end the recording is held against the digest in the audit log.\n\n" +
			"With --copy it is read from a copy of what recordings.mirror has, without the\n" +
			"cluster, and with --key held against the log by the proof that is there.",
		Args: want("SESSION"),
		RunE: verb(func(ctx context.Context, args []string) error {
			if format == "" {
				format = castText
				if e.onTerminal() {
					format = castPlay
				}
			}
			if pace.Speed <= 0 {
				return fault.New(fault.BadInput, "--speed: want more than 0")
			}
			t, err := e.openTape(ctx, args[0], &ids, from, follow)
			if err != nil {
				return err
			}
			defer t.close()
			switch format {
			case castPlay:
				err = recording.Play(ctx, e.stdout, t.frames(), pace)
			case castText:
				err = recording.WriteText(e.stdout, t.frames())
			case castJSON:
				err = recording.WriteJSON(e.stdout, t.frames())
			default:
				return fault.New(fault.BadInput, "--format: %q: want tty, text or json", format)
			}
			return t.verified(ctx, err)
		}),
	}
	c.Flags().Float64Var(&pace.Speed, "speed", 1, "how many times as fast as it happened")
	c.Flags().DurationVar(&pace.MaxIdle, "skip-idle", 0, "longest time in which nothing happens, such as 1s")
	c.Flags().BoolVar(&follow, "follow", false, "go on while the session does")
	c.Flags().StringVar(&format, "format", "", "tty, text or json (default tty on a terminal, else text)")
	_ = c.Flags().SetAnnotation("format", valuesAnnotation, []string{castPlay, castText, castJSON}) // the flag exists
	ids.flag(c)
	from.flags(c)
	return c
}

func recordingsExport(e *env) *cobra.Command {
	var (
		ids         identities
		from        copyFlags
		format, out string
	)
	c := &cobra.Command{
		Use:   "export SESSION --format asciicast|text|json [--out FILE] [--identity FILE] [--copy DIR]",
		Short: "Write the recording of a session for other programs",
		Long: "Write the recording of a session: asciicast (version 2, for asciinema) holds what\n" +
			"was printed as it was, text what a person would have read.",
		Args: want("SESSION"),
		RunE: verb(func(ctx context.Context, args []string) error {
			writer := map[string]func(io.Writer, recording.Frames) error{
				castFile: recording.WriteAsciicast, castText: recording.WriteText, castJSON: recording.WriteJSON,
			}[format]
			if writer == nil {
				return fault.New(fault.BadInput, "--format: %q: want asciicast, text or json", format)
			}
			t, err := e.openTape(ctx, args[0], &ids, from, false)
			if err != nil {
				return err
			}
			defer t.close()
			if out == "" || out == "-" {
				return t.verified(ctx, writer(e.stdout, t.frames()))
			}
			file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return fault.New(fault.BadInput, "write %q: %w", out, err)
			}
			err = writer(file, t.frames())
			if closed := file.Close(); err == nil && closed != nil {
				err = fault.New(fault.BadInput, "write %q: %w", out, closed)
			}
			return t.verified(ctx, err)
		}),
	}
	c.Flags().StringVar(&format, "format", castFile, "asciicast, text or json")
	_ = c.Flags().SetAnnotation("format", valuesAnnotation, []string{castFile, castText, castJSON}) // the flag exists
	c.Flags().StringVarP(&out, "out", "o", "", "where to put it (default stdout)")
	ids.flag(c)
	from.flags(c)
	return c
}

// part is a part of a recording as stored.
type part struct {
	number uint32
	data   []byte
}

// tape is a recording on its way from the authority, or from a copy.
type tape struct {
	e         *env
	sid       names.SessionID
	stream    *connect.ServerStreamForClient[accessdv1.ReadRecordingResponse]
	copied    *copied // in place of the stream
	reader    *recording.Reader
	recording *accessdv1.Recording
}

// openTape begins to read the recording of a session.
func (e *env) openTape(ctx context.Context, session string, files *identities, from copyFlags, follow bool) (*tape, error) { //nolint:revive // what the flags of a verb are
	sid, err := names.ParseSessionID(session)
	if err != nil {
		return nil, err
	}
	ids, err := files.read(e)
	if err != nil {
		return nil, err
	}
	if from.dir != "" {
		keys, err := from.keys()
		if err != nil {
			return nil, err
		}
		c, err := openCopied(from.dir, sid, keys)
		return &tape{e: e, sid: sid, copied: c, reader: recording.NewReader(ids)}, err
	}
	stream, err := e.archive().ReadRecording(ctx, connect.NewRequest(&accessdv1.ReadRecordingRequest{Session: string(sid), Follow: follow}))
	if err != nil {
		return nil, err
	}
	return &tape{e: e, sid: sid, stream: stream, reader: recording.NewReader(ids)}, nil
}

// close ends the use of a tape.
func (t *tape) close() {
	if t.copied != nil {
		_ = t.copied.files.Close() // it was read only
	}
}

// received yields the parts as they come from the authority.
func (t *tape) received(yield func(part, error) bool) {
	defer func() { _ = t.stream.Close() }() // what went wrong is in Err
	for t.stream.Receive() {
		m := t.stream.Msg()
		if m.GetRecording() != nil {
			t.recording = m.GetRecording()
		}
		if len(m.GetData()) > 0 && !yield(part{m.GetPart(), m.GetData()}, nil) {
			return
		}
	}
	if err := t.stream.Err(); err != nil {
		yield(part{}, err)
	}
}

// frames returns the frames as they come.
func (t *tape) frames() recording.Frames {
	parts := t.received
	if t.copied != nil {
		parts = t.copied.each
	}
	return func(yield func(*accessdv1.Frame, error) bool) {
		for p, err := range parts {
			var frames []*accessdv1.Frame
			if err == nil {
				frames, err = t.reader.Part(p.number, p.data)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, f := range frames {
				if !yield(f, nil) {
					return
				}
			}
		}
	}
}

// verified holds what was read against the log, where the caller may read that,
// and else against what the store says of it. err is how reading ended.
func (t *tape) verified(ctx context.Context, err error) error {
	if err != nil || ctx.Err() != nil {
		return err
	}
	if t.copied != nil {
		if !t.copied.proven {
			t.e.say("This copy was not held against the log: there is no --key, or no proof beside it.")
			return nil
		}
		return t.reader.Verify(t.copied.root)
	}
	root := t.recording.GetRoot()
	var away []*accessdv1.MissingLog
	// A session whose recording could not be closed in time ended without a root, and
	// the authority's event has it.
	for _, name := range []events.Name{events.SessionEnd, events.RecordingComplete} {
		said, missing, err := t.logged(ctx, name)
		if fault.Is(err, fault.Denied) {
			break
		}
		if err != nil {
			return err
		}
		away = missing
		if said != nil {
			root = *said
		}
		if said == nil || *said != "" {
			break
		}
	}
	if root == "" && len(away) > 0 {
		t.e.say("It cannot be said whether the log vouches for this recording: %d authorities with events are away.", len(away))
		return nil
	}
	if root == "" {
		t.e.say("The log does not vouch for this recording yet: no session.end names it.")
		return nil
	}
	return t.reader.Verify(root)
}

// logged returns the root that the event of that name gives the recording, "" when
// it gives none; nil is that the log has no such event.
func (t *tape) logged(ctx context.Context, name events.Name) (root *string, missing []*accessdv1.MissingLog, err error) {
	res, err := t.e.audit().ListEvents(ctx, connect.NewRequest(&accessdv1.ListEventsRequest{
		Filter: &accessdv1.EventFilter{Session: string(t.sid), Event: string(name)}, Limit: 1,
	}))
	if err != nil {
		return nil, nil, err
	}
	if len(res.Msg.GetEvents()) != 1 {
		return nil, res.Msg.GetMissing(), nil
	}
	ev, err := events.ParseEvent(res.Msg.GetEvents()[0])
	if err != nil {
		return nil, nil, err
	}
	text, _ := ev.Fields["recording_root"].(string)
	return &text, res.Msg.GetMissing(), nil
}
