//go:build unix

package recording

import "github.com/accessd/accessd/lib/names"

// Recover closes what an earlier process left open, marked recovered, and returns
// the summaries of all that an earlier process wrote and whose session.end may not
// be in the log. Every call returns the same.
func (r *Recorder) Recover() (map[names.SessionID]Summary, error) {
	return r.recovered, nil
}
