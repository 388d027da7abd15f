//go:build unix

package recording

import (
	"bytes"
	"testing"
)

// FuzzSalvage: what is read from a journal after a crash is whole records, and of
// an undamaged one a prefix of it.
func FuzzSalvage(f *testing.F) {
	journal := golden(f, "journal")
	for _, n := range []int{0, 7, 8, 100, len(journal) - 1, len(journal)} {
		f.Add(journal[:n])
	}
	f.Add(append(make([]byte, 64), journal...))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, damaged := salvage(data, 0)
		if !damaged && !bytes.HasPrefix(data, records) {
			t.Fatal("the records are not what was written")
		}
		if len(records) > partBytes-100 {
			t.Fatalf("%d bytes of records leave no room for the end", len(records))
		}
		for rest := records; len(rest) > 0; {
			_, n, err := nextRecord(rest)
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if _, err := parseFrames(unjournal(records)); err != nil {
			t.Fatal(err)
		}
	})
}

// The state of a session has the bytes that it always had.
func TestGoldenState(t *testing.T) {
	s := goldenFrames()[0].GetStart()
	state := appendStart(nil, s)
	for n := range uint32(3) {
		p := partRecord{number: n + 1, flags: []byte{0, flagSealed, flagLast | flagRecovered}[n], size: int64(n) + 1000, at: uint64(n) * 1e6}
		p.digest[0], p.digest[31] = byte(n), 0xff
		state = p.append(state)
	}
	state = appendMark(appendMark(state, stateCompleted), stateReleased)
	if !bytes.Equal(state, golden(t, "state")) {
		t.Error("the state has other bytes")
	}
	w := &wreck{session: &session{id: "5d1c5dd0-9e4b-4d53-8cde-3f4d5c3a0c01"}, records: map[uint32]partRecord{}}
	for len(state) > 0 {
		content, n, err := nextRecord(state)
		if err == nil {
			err = w.stateRecord(content)
		}
		if err != nil {
			t.Fatal(err)
		}
		state = state[n:]
	}
	if !w.session.completed || !w.session.released || w.session.start.GetCommand() != "top é" || w.last != 3 || w.records[3].at != 2e6 || w.records[2].flags != flagSealed {
		t.Errorf("the golden state is %+v", w)
	}
}
