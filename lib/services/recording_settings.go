package services

import (
	"context"
	"encoding/json"
	"slices"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// Bounds of what every recorder is told.
const (
	maxRecipients = 32
	maxRecipient  = 1 << 10 // bytes; a key of 4096 bits has 750
)

// recordingSettings names the one resource of its kind.
const recordingSettings = "recording"

// RecordingSettings are what the authority tells every recorder.
type RecordingSettings struct {
	Recipients []string `json:"recipients,omitempty"`  // public keys that parts are sealed for; none: not sealed
	MaxSession int64    `json:"max_session,omitempty"` // bytes of one session's recording; 0: no bound

	Revision int64 `json:"-"`
}

// Same reports whether s and o say the same.
func (s RecordingSettings) Same(o RecordingSettings) bool {
	return slices.Equal(s.Recipients, o.Recipients) && s.MaxSession == o.MaxSession
}

// check leaves the keys themselves to who seals for them.
func (s RecordingSettings) check() error {
	if len(s.Recipients) > maxRecipients {
		return fault.New(fault.BadInput, "recordings: %d recipients, want at most %d", len(s.Recipients), maxRecipients)
	}
	for i, r := range s.Recipients {
		if r == "" || len(r) > maxRecipient {
			return fault.New(fault.BadInput, "recordings: recipient %d has %d bytes, want 1 to %d", i+1, len(r), maxRecipient)
		}
	}
	if s.MaxSession < 0 {
		return fault.New(fault.BadInput, "recordings: at most %d bytes of a session: want none or more", s.MaxSession)
	}
	return nil
}

// putSettings reads settings from a stream. Those of another name are of a newer
// version.
func putSettings(r *accessdv1.Resource) (change, error) {
	name := r.GetKey().GetName()
	if name != recordingSettings {
		return change{func(*policy) {}, fleeting}, nil
	}
	var v RecordingSettings
	if err := json.Unmarshal(r.GetJson(), &v); err != nil {
		return change{}, fault.New(fault.BadInput, "policy: settings %q: %w", name, err)
	}
	v.Revision = r.GetRevision()
	return change{func(p *policy) { p.settings[name] = v }, kept}, v.check()
}

// RecordingSettings returns what recorders are told; the zero value before
// anything was.
func (s *Store) RecordingSettings(ctx context.Context) (RecordingSettings, error) {
	v, revision, err := get[RecordingSettings](ctx, s, dirOf(KindSettings)+recordingSettings, "settings")
	if fault.Is(err, fault.NotFound) {
		return RecordingSettings{}, nil
	}
	v.Revision = revision
	return v, err
}

// PutRecordingSettings replaces the settings at their revision, or returns
// [fault.Conflict].
func (s *Store) PutRecordingSettings(ctx context.Context, v RecordingSettings) error {
	if err := v.check(); err != nil {
		return err
	}
	_, err := s.b.CompareAndSwap(ctx, dirOf(KindSettings)+recordingSettings, encode(v), v.Revision)
	if fault.Is(err, fault.Conflict) {
		return changed("settings", recordingSettings)
	}
	return err
}

// RecordingSettings returns what recorders are told; the zero value before
// anything was.
func (c *Cache) RecordingSettings() RecordingSettings {
	v, _ := lookup(c, func(p *policy) map[string]RecordingSettings { return p.settings }, recordingSettings)
	return v
}
