package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// recordingStore is where the parts of recordings are; *store.Store is one.
type recordingStore interface {
	// Put returns once the object is durable; other bytes under its key are a
	// Conflict.
	Put(ctx context.Context, key string, data []byte) error
	Get(ctx context.Context, key string) ([]byte, error)
	DeleteAll(ctx context.Context, dir string) error
}

// RecordingsConfig says where recordings are kept, and for how long.
type RecordingsConfig struct {
	Store recordingStore // required
	Dir   string         // of the search index, made when absent; required

	Settings services.RecordingSettings // what every recorder is told
	Retain   time.Duration              // remove what is older; 0 means for ever
	MaxSize  int64                      // bytes of all, past which the oldest go; 0 means no bound

	Mirror       recordingStore // has a copy of each; nil means none
	MirrorDelete bool           // what is removed from the store is removed from there, too

	Registerer prometheus.Registerer // nil means no metrics
}

// check refuses recipients that nothing could be sealed for.
func (c RecordingsConfig) check() error {
	if c.Store == nil || c.Dir == "" {
		return fault.New(fault.Internal, "authority: a store of recordings and a directory for their index are required")
	}
	for i, r := range c.Settings.Recipients {
		if _, err := recording.ParseRecipient(r); err != nil {
			return fault.Wrap(fault.BadInput, err, fmt.Sprintf("recordings.recipients[%d]: %.40q: %s", i, r, fault.Public(err)))
		}
	}
	if c.Retain < 0 || c.MaxSize < 0 {
		return fault.New(fault.BadInput, "recordings: retention by %v and %d bytes: negative", c.Retain, c.MaxSize)
	}
	return nil
}

// recordingDir is where the store has the parts of a recording.
func recordingDir(id names.SessionID) string { return "recordings/" + string(id) + "/" }

func partKey(id names.SessionID, number uint32) string {
	return recordingDir(id) + recording.PartFile(number)
}

// putSettings makes what recorders are told what the configuration says.
func (a *Authority) putSettings(ctx context.Context) error {
	want := a.cfg.Recordings.Settings
	old, err := a.cfg.Store.RecordingSettings(ctx)
	if err != nil || old.Same(want) {
		return err
	}
	want.Revision = old.Revision
	return a.change(ctx, events.Event{Name: events.RecordingSettings, Fields: map[string]any{
		"by":         byAuthority,
		"recipients": nonNil(want.Recipients), "recipients_before": nonNil(old.Recipients),
		"max_session": want.MaxSession, "max_session_before": old.MaxSession,
	}}, func() error { return a.cfg.Store.PutRecordingSettings(ctx, want) })
}

// byAuthority is who did what the configuration asks for.
const byAuthority = "authority"

func nonNil(list []string) []string { return append([]string{}, list...) }

type recordingService struct{ *Authority }

// UploadPart keeps one part of a recording of the member's own.
func (s recordingService) UploadPart(ctx context.Context, req *connect.Request[accessdv1.UploadPartRequest]) (*connect.Response[accessdv1.UploadPartResponse], error) {
	m, done := req.Msg, connect.NewResponse(&accessdv1.UploadPartResponse{})
	id, err := names.ParseSessionID(m.GetSession())
	if err != nil {
		return nil, err
	}
	data := m.GetData()
	if len(data) == 0 || len(data) > recording.MaxPart {
		return nil, fault.New(fault.BadInput, "part of %d bytes: want 1 to %d", len(data), recording.MaxPart)
	}
	if m.GetPart() == 0 {
		return nil, fault.New(fault.BadInput, "parts of a recording begin with 1")
	}
	part := services.RecordingPart{Number: m.GetPart(), Size: uint32(len(data)), Sum: sha256.Sum256(data)}
	r, err := s.own(ctx, id, part.Number, m.GetOf())
	if err != nil {
		return nil, err
	}
	switch known, err := s.cfg.Store.RecordingPart(ctx, id, part.Number); {
	case err == nil && known == part:
		return done, nil
	case err == nil:
		return nil, s.reject(ctx, r, part.Number, fmt.Sprintf("part %d is there already, with other content", part.Number))
	case !fault.Is(err, fault.NotFound):
		return nil, err
	}
	if err := s.open(ctx, r, part.Number); err != nil {
		return nil, err
	}
	if err := s.cfg.Recordings.Store.Put(ctx, partKey(id, part.Number), data); fault.Is(err, fault.Conflict) {
		return nil, s.reject(ctx, r, part.Number, fmt.Sprintf("part %d is in the store already, with other content", part.Number))
	} else if err != nil {
		return nil, err
	}
	part.Sealed = recording.IsSealed(data)
	err = s.cfg.Store.AddRecordingPart(ctx, id, part, func(now services.SessionRecording) error {
		return s.open(ctx, now, part.Number)
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// open refuses parts of a recording that takes no more.
func (s recordingService) open(ctx context.Context, r services.SessionRecording, number uint32) error {
	if r.End != nil || r.Removing != nil {
		return s.reject(ctx, r, number, fmt.Sprintf("it was complete before part %d came", number))
	}
	return nil
}

// reject records that the calling member's upload is refused, for ever.
func (s recordingService) reject(ctx context.Context, r services.SessionRecording, number uint32, why string) error {
	c := callerOf(ctx)
	ev := about(events.RecordingRejected, r)
	ev.AddrRemote, ev.Fields["by"], ev.Fields["reason"] = c.addr, c.by, why
	if number > 0 {
		ev.Fields["part"] = int64(number)
	}
	s.note(ctx, ev)
	return fault.New(fault.Conflict, "recording %s: %s", r.Session, why)
}

// about returns an event about a recording.
func about(name events.Name, r services.SessionRecording) events.Event {
	ev := events.Event{Name: name, SID: r.Session, User: r.User, Login: r.Login, Fields: map[string]any{}}
	set(ev, "node_id", string(r.NodeID))
	set(ev, "node_name", string(r.NodeName))
	return ev
}

// own returns the recording that the calling member has of a session, or makes it.
// Whoever comes first has it: ids of sessions are random, and known to who runs
// them.
func (s recordingService) own(ctx context.Context, id names.SessionID, number uint32, of *accessdv1.RecordingOf) (services.SessionRecording, error) {
	self := callerOf(ctx).member
	r, err := s.cfg.Store.Recording(ctx, id)
	if fault.Is(err, fault.NotFound) {
		r = services.SessionRecording{Session: id, Member: self.ID}
		if number > 0 { // or else there are no parts
			err = r.CheckNumber(number)
		} else {
			err = nil
		}
		if err == nil {
			err = s.describe(self, &r, of)
		}
		if err != nil {
			return r, err
		}
		r, err = s.cfg.Store.ClaimRecording(ctx, r)
	}
	if err != nil {
		return r, err
	}
	if r.Member != self.ID {
		return r, s.reject(ctx, r, number, "it is another member's")
	}
	if number > 0 {
		return r, r.CheckNumber(number)
	}
	return r, nil
}

// maxListed is how much of a command lists show, in bytes; the recording has the
// whole.
const maxListed = 512

// describe says in r what it is of. A node records its own sessions, a proxy those
// on plain sshd nodes.
func (s recordingService) describe(self *record, r *services.SessionRecording, of *accessdv1.RecordingOf) error {
	if of == nil {
		return fault.New(fault.BadInput, "the first part of a recording comes with what it is of")
	}
	var err error
	if r.User, err = names.ParseUserName(of.GetUser()); err != nil {
		return err
	}
	if r.Login, err = names.ParseLogin(of.GetLogin()); err != nil {
		return err
	}
	if r.NodeID, err = names.ParseNodeID(cmp.Or(of.GetNodeId(), string(self.ID))); err != nil {
		return err
	}
	if !s.mayTellOf(self, events.Event{Fields: map[string]any{"node_id": string(r.NodeID)}}, true) {
		return fault.New(fault.Denied, "session %s is on another node", r.Session)
	}
	if r.NodeName, err = names.ParseNodeName(of.GetNodeName()); err != nil {
		return err
	}
	if r.Kind = of.GetKind(); r.Kind != "shell" && r.Kind != "exec" {
		return fault.New(fault.BadInput, "session kind %q: want shell or exec", clip(r.Kind))
	}
	r.Command = of.GetCommand()
	if len(r.Command) > maxListed {
		r.Command = strings.ToValidUTF8(r.Command[:maxListed], "")
	}
	r.Terminal, r.Sealed = of.GetTerminal(), of.GetSealed()
	r.Last = s.cfg.Now()
	if r.Started = timeOf(of.GetStarted()); r.Started.IsZero() || r.Started.After(r.Last) {
		r.Started = r.Last
	}
	return nil
}

var rootGrammar = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CompleteRecording ends a recording of the member's own, and says in the log
// whether all of it is there.
func (s recordingService) CompleteRecording(ctx context.Context, req *connect.Request[accessdv1.CompleteRecordingRequest]) (*connect.Response[accessdv1.CompleteRecordingResponse], error) {
	m, done := req.Msg, connect.NewResponse(&accessdv1.CompleteRecordingResponse{})
	id, err := names.ParseSessionID(m.GetSession())
	if err != nil {
		return nil, err
	}
	end := services.RecordingEnd{Parts: m.GetParts(), Root: m.GetRoot(), At: timeOf(m.GetEnded()), Recovered: m.GetRecovered()}
	if !rootGrammar.MatchString(end.Root) {
		return nil, fault.New(fault.BadInput, "root of a recording: want 64 hexadecimal digits")
	}
	r, err := s.own(ctx, id, 0, m.GetOf())
	if err != nil {
		return nil, err
	}
	if now := s.cfg.Now(); end.At.IsZero() || end.At.After(now) {
		end.At = now
	}
	switch {
	case r.Removing != nil, r.End != nil && (r.End.Parts != end.Parts || r.End.Root != end.Root):
		return nil, s.reject(ctx, r, 0, "it was complete with another end before")
	case r.End != nil:
		return done, nil
	case end.Parts < r.Parts:
		return nil, s.reject(ctx, r, 0, fmt.Sprintf("it has %d parts, not %d", r.Parts, end.Parts))
	}
	parts, err := s.cfg.Store.RecordingParts(ctx, id, 1)
	if err != nil {
		return nil, err
	}
	wrong := cmp.Or(r.Fault, compare(parts, end))
	ev := about(events.RecordingComplete, r)
	end.Event = uuid.Must(uuid.NewV7()).String()
	ev.UID = end.Event
	ev.AddrRemote, ev.Fields["by"], ev.Fields["recording_bytes"] = callerOf(ctx).addr, callerOf(ctx).by, r.Size
	ev.Fields["recording_parts"], ev.Fields["recording_root"] = int64(end.Parts), end.Root
	ev.Fields["recording_sealed"], ev.Fields["recovered"] = r.Sealed, end.Recovered
	if ev.Success = wrong == ""; !ev.Success {
		ev.Error = wrong
	}
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	_, err = s.cfg.Store.ChangeRecording(ctx, id, func(now *services.SessionRecording) error {
		if now.Parts != r.Parts || now.End != nil || now.Removing != nil {
			return fault.New(fault.Unavailable, "recording %s has changed meanwhile", id).WithHint("try again")
		}
		now.End, now.Fault = &end, cmp.Or(now.Fault, wrong)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.archive.poke()
	return done, nil
}

// compare returns what is wrong with the parts of a recording that has come to its
// end, or "".
func compare(parts []services.RecordingPart, end services.RecordingEnd) string {
	if lost := int64(end.Parts) - int64(len(parts)); lost > 0 {
		first := uint32(1)
		for _, p := range parts {
			if p.Number != first {
				break
			}
			first++
		}
		return fmt.Sprintf("%d of %d parts never came, first part %d", lost, end.Parts, first)
	}
	var last [sha256.Size]byte
	for _, p := range parts {
		last = sha256.Sum256(append(last[:], p.Sum[:]...))
	}
	if root := hex.EncodeToString(last[:]); root != end.Root {
		return "the root of its parts is " + root + ", not the one it was given"
	}
	return ""
}
