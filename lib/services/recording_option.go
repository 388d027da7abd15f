package services

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// Recording says whether a session is recorded, and what happens when it cannot
// be. The empty one says nothing of it; see [RoleOptions.Recording].
type Recording string

// What a role may say of recording.
const (
	RecordStrict     Recording = "strict"      // no session without a recording
	RecordBestEffort Recording = "best_effort" // the session goes on, and the log says what is missing
	RecordOff        Recording = "off"
)

// recordings lists what a role may say, the strictest first.
func recordings() []Recording {
	return []Recording{RecordStrict, RecordBestEffort, RecordOff}
}

// Recording returns what o asks for: strict unless it says otherwise in a word
// that is known.
func (o RoleOptions) Recording() Recording {
	switch o.Record {
	case RecordBestEffort, RecordOff:
		return o.Record
	case RecordStrict:
	}
	return RecordStrict
}

// strictest returns the stricter of r and p. An empty one says nothing of it.
func (r Recording) strictest(p Recording) Recording {
	switch {
	case r == "":
		return p
	case p == "":
		return r
	}
	return recordings()[min(r.rank(), p.rank())]
}

// rank is the place of r among [recordings]; a word that is not known counts as
// the strictest.
func (r Recording) rank() int {
	return max(slices.Index(recordings(), r), 0)
}

func (p *roleParser) recording(n *yaml.Node) Recording {
	if r := Recording(n.Value); p.is(n, yaml.ScalarNode, "!!str") && slices.Contains(recordings(), r) {
		return r
	}
	p.fail(n, "record: want strict, best_effort or off, got %s", describe(n))
	return ""
}
