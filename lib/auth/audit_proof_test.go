package auth

import (
	"encoding/json"
	"strings"
	"testing"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// An auditor gets a proof of an event, keeps a checkpoint, and later sees that the
// log continues it.
func TestAuditProofs(t *testing.T) {
	w := newWorld(t, plan{})
	w.addUser("alice", "access")
	list := must(t, w.admin().ListEvents, &accessdv1.ListEventsRequest{Filter: &accessdv1.EventFilter{Event: "user.create"}})
	var ev events.Event
	if err := json.Unmarshal(list.GetEvents()[0], &ev); err != nil {
		t.Fatal(err)
	}
	proof := must(t, w.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: ev.UID})
	got, err := events.CheckProof([]byte(proof.GetProof()), w.cfg.Keys.AuditVerifierKey())
	if err != nil || string(got.Event) != string(list.GetEvents()[0]) {
		t.Errorf("CheckProof = %s, %v; want %s", got.Event, err, list.GetEvents()[0])
	}
	_, err = call(t, w.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: "0195510c-9a40-7bb2-8c51-000000000000"})
	wantFault(t, err, fault.NotFound, "no event 0195510c-9a40-7bb2-8c51-000000000000 in this authority's log")
	_, err = call(t, w.admin().ProveEvent, &accessdv1.ProveEventRequest{Uid: "x"})
	wantFault(t, err, fault.BadInput, `uid "x": want a UUID`)

	kept := must(t, w.admin().VerifyLog, &accessdv1.VerifyLogRequest{}).GetCheckpoint()
	w.addUser("bob", "access")
	res := must(t, w.admin().VerifyLog, &accessdv1.VerifyLogRequest{Since: kept})
	if res.GetFault() != "" || res.GetCheckpoint() == kept {
		t.Errorf("the log does not continue its own checkpoint: %v", res)
	}
	res = must(t, w.admin().VerifyLog, &accessdv1.VerifyLogRequest{Since: strings.Replace(kept, "\n", "\n9", 1)})
	if !strings.Contains(res.GetFault(), "earlier checkpoint 1: its signature by") {
		t.Errorf("a checkpoint that was edited was taken: %v", res)
	}
}
