package cli

import (
	"maps"
	"slices"
	"strings"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// absence is what an answer lacks.
type absence struct {
	logs     map[string]*accessdv1.MissingLog // of authorities, by their id
	archived map[string]bool                  // origins of periods that were moved away
}

// note notes periods of logs that were looked for and are not there, and says so
// the first time: somebody has moved them away, so it is no fault.
func (a *absence) note(e *env, archived []string) {
	for _, origin := range archived {
		if a.archived[origin] {
			continue
		}
		if a.archived == nil {
			a.archived = map[string]bool{}
		}
		a.archived[origin] = true
		e.say("not here: the period %s and what was before it", events.Display(origin))
	}
}

// add notes logs that one page of an answer lacks.
func (a *absence) add(list []*accessdv1.MissingLog) {
	if a.logs == nil {
		a.logs = map[string]*accessdv1.MissingLog{}
	}
	for _, m := range list {
		a.logs[m.GetId()] = m
	}
}

// only notes that these logs are lacking now and no others.
func (a *absence) only(list []*accessdv1.MissingLog) {
	a.logs = nil
	a.add(list)
}

// tell is only, and tells of those that went and of those that came back.
func (a *absence) tell(e *env, list []*accessdv1.MissingLog) {
	before := a.logs
	a.only(list)
	for _, id := range slices.Sorted(maps.Keys(a.logs)) {
		if before[id] == nil {
			e.say("missing: %s", lacking(a.logs[id]))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(before)) {
		if a.logs[id] == nil {
			e.say("there again: the events of %s", events.Display(before[id].GetName()))
		}
	}
}

// err returns nil, or that the answer is not whole.
func (a *absence) err() error {
	if len(a.logs) == 0 {
		return nil
	}
	parts := make([]string, 0, len(a.logs))
	for _, id := range slices.Sorted(maps.Keys(a.logs)) {
		parts = append(parts, lacking(a.logs[id]))
	}
	return fault.New(fault.NotFound, "missing: %s", strings.Join(parts, "; ")).
		WithHint("what the other authorities have is shown; their own place is kept for those that are missing")
}

// lacking says in words whose events are lacking, and why.
func lacking(m *accessdv1.MissingLog) string {
	return events.Display("the events of " + m.GetName() + ": " + m.GetReason())
}
