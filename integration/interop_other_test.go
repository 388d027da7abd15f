package integration

func otherChecks() []check { return nil }
