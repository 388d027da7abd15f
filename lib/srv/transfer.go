package srv

// scpCommand is a placeholder.
type scpCommand struct {
	Write bool
	Argv  []string
}

func parseSCP(string) (scpCommand, bool) { return scpCommand{}, false }

// transfer carries a session of files.
type transfer struct{ input, output func() }

func (h *channel) transfer(*session, Pipes) *transfer { return nil }
