//go:build unix

package events

const childEnv = "ACCESSD_EVENTS_TEST_CHILD"

func child(what string) int { return 2 }
