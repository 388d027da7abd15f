package auth

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// Bounds of the archive's answers.
const (
	defaultRecordings = 100
	maxRecordings     = 1000
	maxHold           = 256 // bytes of a reason
	// abandoned is how long a recording must have been without a new part before a
	// person may remove it though its recorder never ended it.
	abandoned = 24 * time.Hour
)

type archiveService struct{ *Authority }

// ListRecordings lists recordings, newest first.
func (s archiveService) ListRecordings(ctx context.Context, req *connect.Request[accessdv1.ListRecordingsRequest]) (*connect.Response[accessdv1.ListRecordingsResponse], error) {
	m := req.Msg
	limit, err := limitOf(m.GetLimit(), defaultRecordings, maxRecordings)
	if err != nil {
		return nil, err
	}
	list, err := s.visible(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(r services.SessionRecording) bool {
		return m.GetBefore() != "" && place(r) >= m.GetBefore() || !wanted(m, r)
	})
	slices.SortFunc(list, func(a, b services.SessionRecording) int { return strings.Compare(place(b), place(a)) })
	res := &accessdv1.ListRecordingsResponse{}
	if len(list) > limit {
		list = list[:limit]
		res.NextBefore = place(list[limit-1])
	}
	for _, r := range list {
		res.Recordings = append(res.Recordings, recordingMessage(r))
	}
	return connect.NewResponse(res), nil
}

func limitOf(asked int32, usual, most int) (int, error) {
	if asked < 0 || int(asked) > most {
		return 0, fault.New(fault.BadInput, "limit %d: want 1 to %d", asked, most)
	}
	return cmp.Or(int(asked), usual), nil
}

// place orders recordings by their start, each at a place of its own.
func place(r services.SessionRecording) string {
	return fmt.Sprintf("%019d-%s", max(r.Started.UnixMicro(), 0), r.Session)
}

// visible returns the recordings that are not being removed.
func (a *Authority) visible(ctx context.Context) ([]services.SessionRecording, error) {
	list, err := a.cfg.Store.Recordings(ctx)
	return slices.DeleteFunc(list, func(r services.SessionRecording) bool { return r.Removing != nil }), err
}

func wanted(m *accessdv1.ListRecordingsRequest, r services.SessionRecording) bool {
	is := func(asked, have string) bool { return asked == "" || asked == have }
	since, until := timeOf(m.GetSince()), timeOf(m.GetUntil())
	switch {
	case !is(m.GetUser(), string(r.User)), !is(m.GetLogin(), string(r.Login)),
		!is(m.GetNode(), string(r.NodeID)) && !is(m.GetNode(), string(r.NodeName)),
		!since.IsZero() && r.Started.Before(since), !until.IsZero() && !r.Started.Before(until),
		m.Terminal != nil && m.GetTerminal() != r.Terminal,
		m.InProgress != nil && m.GetInProgress() != (r.End == nil),
		m.GetMinDuration().AsDuration() > length(r), m.GetMinSize() > r.Size:
		return false
	}
	return true
}

// length returns how long the session lasted, as far as that is known.
func length(r services.SessionRecording) time.Duration {
	if r.End != nil {
		return max(r.End.At.Sub(r.Started), 0)
	}
	return max(r.Last.Sub(r.Started), 0)
}

func recordingMessage(r services.SessionRecording) *accessdv1.Recording {
	m := &accessdv1.Recording{
		Session: string(r.Session),
		Of: &accessdv1.RecordingOf{
			User: string(r.User), Login: string(r.Login), NodeId: string(r.NodeID), NodeName: string(r.NodeName),
			Kind: r.Kind, Command: r.Command, Terminal: r.Terminal, Started: timestamppb.New(r.Started), Sealed: r.Sealed,
		},
		Duration: durationpb.New(length(r)), Parts: r.Parts, Size: r.Size, InProgress: r.End == nil,
		Hold: r.Hold, Fault: r.Fault,
	}
	if r.End != nil {
		m.Ended, m.Parts, m.Root, m.Recovered = timestamppb.New(r.End.At), r.End.Parts, r.End.Root, r.End.Recovered
	}
	return m
}

// find returns the recording of a session that is not being removed.
func (s archiveService) find(ctx context.Context, session string) (services.SessionRecording, error) {
	id, err := names.ParseSessionID(session)
	if err != nil {
		return services.SessionRecording{}, err
	}
	r, err := s.cfg.Store.Recording(ctx, id)
	if fault.Is(err, fault.NotFound) || err == nil && r.Removing != nil {
		err = fault.New(fault.NotFound, "no recording of session %s", id).WithHint("\"accessd recordings ls\" lists them")
	}
	return r, err
}

// ReadRecording sends what the recording is and then its parts. That it is read
// is in the log before.
func (s archiveService) ReadRecording(ctx context.Context, req *connect.Request[accessdv1.ReadRecordingRequest], stream *connect.ServerStream[accessdv1.ReadRecordingResponse]) error {
	m, c := req.Msg, callerOf(ctx)
	r, err := s.find(ctx, m.GetSession())
	if err != nil {
		return err
	}
	next := max(m.GetFrom(), 1)
	ev := about(events.RecordingRead, r)
	ev.Success, ev.AddrRemote, ev.Fields["by"] = true, c.addr, c.by
	ev.Fields["part"], ev.Fields["follow"] = int64(next), m.GetFollow()
	if err := s.record(ctx, ev); err != nil {
		return err
	}
	if err := stream.Send(&accessdv1.ReadRecordingResponse{Recording: recordingMessage(r)}); err != nil {
		return err
	}
	send := func() error {
		next, err = s.sendParts(ctx, r, next, stream.Send)
		return err
	}
	if !m.GetFollow() || r.End != nil {
		return send()
	}
	err = s.cfg.Store.WatchRecording(ctx, r.Session, func() error {
		now, err := s.find(ctx, m.GetSession())
		if err != nil {
			return err
		}
		if err := send(); err != nil || now.End == nil {
			return err
		}
		return errNoMore
	})
	if errors.Is(err, errNoMore) {
		return nil
	}
	return err
}

// errNoMore ends the following of a recording that is complete.
var errNoMore = errors.New("the recording is complete")

// sendParts sends the parts from a number on and returns the next one's.
func (s archiveService) sendParts(ctx context.Context, r services.SessionRecording, next uint32, send func(*accessdv1.ReadRecordingResponse) error) (uint32, error) {
	parts, err := s.cfg.Store.RecordingParts(ctx, r.Session, next)
	if err != nil {
		return next, err
	}
	for _, p := range parts {
		data, err := s.part(ctx, r, p)
		if err != nil {
			return next, err
		}
		if err := send(&accessdv1.ReadRecordingResponse{Part: p.Number, Data: data}); err != nil {
			return next, err
		}
		next = p.Number + 1
	}
	return next, nil
}

// part returns a part as it was put into the store, or says in the log that it is
// not there as such.
func (a *Authority) part(ctx context.Context, r services.SessionRecording, p services.RecordingPart) ([]byte, error) {
	data, err := a.cfg.Recordings.Store.Get(ctx, partKey(r.Session, p.Number))
	if err == nil && sha256.Sum256(data) == p.Sum {
		return data, nil
	}
	what := "was changed in the store"
	if err != nil {
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		what = "is gone from the store"
	}
	now, err := a.cfg.Store.Recording(ctx, r.Session)
	if err != nil || now.Removing != nil {
		return nil, fault.New(fault.NotFound, "recording %s was removed meanwhile", r.Session)
	}
	what = fmt.Sprintf("part %d %s", p.Number, what)
	ev := about(events.RecordingFault, r)
	ev.Fields["by"], ev.Fields["part"], ev.Fields["reason"] = byAuthority, int64(p.Number), what
	a.note(ctx, ev)
	_, err = a.cfg.Store.ChangeRecording(ctx, r.Session, func(now *services.SessionRecording) error {
		now.Fault = cmp.Or(now.Fault, what)
		return nil
	})
	return nil, fault.Wrap(fault.Conflict, err, fmt.Sprintf("recording %s: %s", r.Session, what)).
		WithHint("what follows it can still be read from the next part on")
}

// HoldRecording keeps a recording from being removed, or lets it go.
func (s archiveService) HoldRecording(ctx context.Context, req *connect.Request[accessdv1.HoldRecordingRequest]) (*connect.Response[accessdv1.HoldRecordingResponse], error) {
	reason := req.Msg.GetReason()
	if err := checkReason(reason); err != nil {
		return nil, err
	}
	r, err := s.find(ctx, req.Msg.GetSession())
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	ev := about(events.RecordingHold, r)
	ev.AddrRemote, ev.Fields["by"], ev.Fields["held"] = c.addr, c.by, reason != ""
	set(ev, "reason", reason)
	err = s.change(ctx, ev, func() error {
		_, err := s.cfg.Store.ChangeRecording(ctx, r.Session, func(now *services.SessionRecording) error {
			if now.Removing != nil {
				return fault.New(fault.Conflict, "recording %s is being removed", r.Session)
			}
			now.Hold = reason
			return nil
		})
		return err
	})
	return connect.NewResponse(&accessdv1.HoldRecordingResponse{}), err
}

func checkReason(reason string) error {
	if len(reason) > maxHold {
		return fault.New(fault.BadInput, "reason of %d bytes: want at most %d", len(reason), maxHold)
	}
	return nil
}

// RemoveRecording removes a recording that is neither on hold nor going on.
func (s archiveService) RemoveRecording(ctx context.Context, req *connect.Request[accessdv1.RemoveRecordingRequest]) (*connect.Response[accessdv1.RemoveRecordingResponse], error) {
	if err := checkReason(req.Msg.GetReason()); err != nil {
		return nil, err
	}
	r, err := s.find(ctx, req.Msg.GetSession())
	if err != nil {
		return nil, err
	}
	if r.End == nil && s.cfg.Now().Sub(r.Last) < abandoned {
		return nil, fault.New(fault.Conflict, "the recording of session %s goes on", r.Session).
			WithHint("one whose recorder does not come back can be removed a day after its last part")
	}
	c := callerOf(ctx)
	err = s.archive.remove(ctx, r, services.RecordingRemoval{By: c.by, Reason: req.Msg.GetReason()}, c.addr)
	return connect.NewResponse(&accessdv1.RemoveRecordingResponse{}), err
}
