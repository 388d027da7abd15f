package services_test

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// What the authority says of recording reaches every cache, is there after a
// restart without the authority, and is replaced only by who has seen it.
func TestRecordingSettings(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	none, err := s.RecordingSettings(ctx)
	check(t, err)
	if !none.Same(services.RecordingSettings{}) {
		t.Errorf("settings before any = %+v, want none", none)
	}
	want := services.RecordingSettings{Recipients: []string{"age1x", "ssh-ed25519 AAAA"}, MaxSession: 1 << 30}
	check(t, s.PutRecordingSettings(ctx, want))
	wantKind(t, "settings put by who has not seen the newest", s.PutRecordingSettings(ctx, want), fault.Conflict)
	got, err := s.RecordingSettings(ctx)
	check(t, err)
	if !got.Same(want) || got.Revision == 0 {
		t.Errorf("settings = %+v, want %+v with a revision", got, want)
	}

	c := services.NewCache()
	stop := errors.New("synced")
	if err := s.Watch(ctx, nil, func(u *accessdv1.PolicyUpdate) error {
		check(t, c.Apply(u))
		if u.GetSynced() {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Fatalf("Watch = %v", err)
	}
	if !reflect.DeepEqual(c.RecordingSettings(), got) {
		t.Errorf("in the cache: %+v, want %+v", c.RecordingSettings(), got)
	}
	path := filepath.Join(t.TempDir(), "policy")
	check(t, c.Save(path))
	loaded := services.NewCache()
	check(t, loaded.Load(path))
	if !reflect.DeepEqual(loaded.RecordingSettings(), got) {
		t.Errorf("from the snapshot: %+v, want %+v", loaded.RecordingSettings(), got)
	}
	check(t, loaded.Apply(&accessdv1.PolicyUpdate{Remove: []*accessdv1.ResourceKey{{Kind: services.KindSettings, Name: "recording"}}}))
	if !loaded.RecordingSettings().Same(none) {
		t.Errorf("after the removal: %+v, want none", loaded.RecordingSettings())
	}
	check(t, loaded.Apply(&accessdv1.PolicyUpdate{Put: []*accessdv1.Resource{
		{Key: &accessdv1.ResourceKey{Kind: services.KindSettings, Name: "of a newer version"}, Json: []byte(`[]`)},
	}}))

	for what, bad := range map[string]services.RecordingSettings{
		"an empty recipient":    {Recipients: []string{""}},
		"a long recipient":      {Recipients: []string{strings.Repeat("x", 1025)}},
		"too many recipients":   {Recipients: make([]string, 33)},
		"a bound below nothing": {MaxSession: -1},
	} {
		wantKind(t, what, s.PutRecordingSettings(ctx, bad), fault.BadInput)
	}
}
