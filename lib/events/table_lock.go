package events

// lock is what an event carries whose outcome a lock decided.
func lock() Field {
	return Field{Name: "lock", Type: String, Meaning: "the lock that refused it or ended it", Example: "7b0e3c58-5d0c-4d0a-9f9e-52a1f0f5b6d1"}
}

// locks are about locks themselves; what they end is among the events of that.
func locks() []Spec {
	about := fields(
		by(),
		Field{Name: "lock", Type: String, Meaning: "the lock's id", Example: "7b0e3c58-5d0c-4d0a-9f9e-52a1f0f5b6d1"},
		Field{Name: "target", Type: String, Meaning: "whom or what it keeps out", Example: "user alice, node web-1"},
		Field{Name: "message", Type: String, Meaning: "what they are told", Example: "the laptop was stolen"},
		Field{Name: "expires", Type: String, Meaning: "when it ends; absent when never", Example: "2026-03-01T10:30:00Z"},
		reason(),
	)
	return []Spec{
		{Name: LockCreate, Code: "A7000", Outcome: Either, Meaning: "somebody was locked out, or something", Fields: about},
		{Name: LockDelete, Code: "A7001", Outcome: Either, Meaning: "a lock was removed", Fields: about},
	}
}
