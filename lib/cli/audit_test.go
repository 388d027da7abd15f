package cli

import (
	"testing"

	"github.com/accessd/accessd/lib/events"
)

// One line says what an event is about, and on which node it was, even where
// that node is a plain sshd and a proxy wrote the event.
func TestEventRow(t *testing.T) {
	for _, c := range []struct {
		event        events.Event
		node, detail string
	}{
		{
			events.Event{Name: events.SFTP, ServerHostname: "proxy-1", Fields: map[string]any{
				"node_name": "old-1", "action": "close", "path": "/srv/a b", "bytes_read": 0, "bytes_written": 7, "sha256": "x", "connection": "y",
			}},
			"old-1", "action=close path=/srv/a b bytes_read=0 bytes_written=7",
		},
		{
			events.Event{Name: events.Port, ServerHostname: "web-1", Fields: map[string]any{
				"state": "refused", "action": "forward:local", "target": "db:5432", "reason": "no role",
			}},
			"web-1", "state=refused action=forward:local target=db:5432 reason=no role",
		},
		{
			events.Event{Name: events.SessionJoin, ServerHostname: "web-1", Fields: map[string]any{"mode": "watch", "participant": "alice", "node_name": ""}},
			"web-1", "mode=watch participant=alice",
		},
		{
			events.Event{Name: events.SessionEnd, Error: "lost", Fields: map[string]any{"exit_code": 255, "node_name": "web-2"}},
			"web-2", "lost exit_code=255",
		},
	} {
		row := eventRow(c.event)
		if row[5] != c.node || row[7] != c.detail {
			t.Errorf("%s: node %q, detail %q; want %q, %q", c.event.Name, row[5], row[7], c.node, c.detail)
		}
	}
}
