package cli

import (
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/accessd/accessd/lib/fault"
)

// readAll reads r, which name stands for in errors, to its end.
func readAll(name string, r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fault.New(fault.BadInput, "read %q: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fault.New(fault.BadInput, "read %q: larger than %d bytes", name, limit)
	}
	return b, nil
}

// sortedKeys returns m's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// localTime shows t in the reader's zone; a zero t is nothing.
func localTime(t *timestamppb.Timestamp) string {
	if t == nil || !t.IsValid() || t.AsTime().IsZero() {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// parseWhen reads a point in time given to flag: RFC 3339, a date, or a
// duration back from now.
func parseWhen(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // an unset flag filters nothing
	}
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now.Add(-d.Abs())), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, fault.New(fault.BadInput, "--%s: %q: want a time such as 2026-01-31T15:04:05Z or 2026-01-31, or a duration back such as 2h", flag, s)
}
