package events

func sessions() []Spec {
	return []Spec{
		{
			Name: AccessDecision, Code: "A2000", Outcome: Either, Meaning: "the rules were asked, and answered",
			Fields: fields(
				Field{Name: "action", Type: String, Meaning: "what was asked for", Example: "shell"},
				rule(),
				Field{Name: "resource", Type: String, Meaning: "the resource, when not a node", Example: "audit"},
				Field{Name: "verb", Type: String, Meaning: "what was to be done with it", Example: "read"},
				Field{Name: "target", Type: String, Meaning: "the destination as the client named it", Example: "web-1:22"},
				address(), roles(), reason(), lock(), node(), serial(), standsFor(), fingerprint(), apiToken(), connection(),
			),
		},
		{
			Name: SessionStart, Code: "A3000", Outcome: Success, Meaning: "a session began",
			Fields: fields(
				Field{Name: "kind", Type: String, Meaning: "shell, exec or subsystem", Example: "shell"},
				Field{Name: "pty", Type: Bool, Meaning: "whether it has a terminal", Example: "true"},
				Field{Name: "term", Type: String, Meaning: "type of that terminal", Example: "xterm-256color"},
				Field{Name: "terminal_size", Type: String, Meaning: "columns and rows of that terminal", Example: "80:24"},
				Field{Name: "subsystem", Type: String, Meaning: "the subsystem asked for", Example: "sftp"},
				Field{Name: "agent", Type: Bool, Meaning: "whether the client's agent is forwarded to it", Example: "true"},
				Field{Name: "x11", Type: Bool, Meaning: "whether the client's X11 display is forwarded to it", Example: "true"},
				Field{Name: "env", Type: Map, Meaning: "environment accepted from the client", Example: "LANG=C.UTF-8"},
				Field{Name: "record", Type: String, Meaning: "how it is recorded: strict, best_effort or off", Example: "strict"},
				Field{Name: "session_ttl", Type: String, Meaning: "how long it may last", Example: "8h0m0s"},
				Field{Name: "idle_timeout", Type: String, Meaning: "how long it may be idle", Example: "30m0s"},
				Field{Name: "expires", Type: String, Meaning: "when the certificate ends", Example: "2026-03-01T21:30:00Z"},
				Field{Name: "rule", Type: String, Meaning: "the rule that allowed it", Example: "developer.allow[0]"},
				Field{Name: "role", Type: String, Meaning: "the role that allowed it", Example: "developer"},
				command(), roles(), serial(), keyID(), fingerprint(), caFingerprint(), node(), connection(),
			),
		},
		{
			Name: SessionEnd, Code: "A3001", Outcome: Success, Meaning: "a session ended",
			Fields: fields(
				Field{Name: "kind", Type: String, Meaning: "shell, exec or subsystem", Example: "shell"},
				Field{Name: "exit_code", Type: Int, Meaning: "exit status of the process", Example: "0"},
				Field{Name: "exit_signal", Type: String, Meaning: "signal that ended it", Example: "TERM"},
				Field{Name: "duration_ms", Type: Int, Meaning: "how long it lasted, in milliseconds", Example: "81250"},
				Field{Name: "bytes_in", Type: Int, Meaning: "bytes the client sent", Example: "1204"},
				Field{Name: "bytes_out", Type: Int, Meaning: "bytes the client was sent", Example: "90112"},
				Field{Name: "recovered", Type: Bool, Meaning: "completed at the next start, after a crash", Example: "true"},
				Field{Name: "recording_parts", Type: Int, Meaning: "parts of its recording", Example: "3"},
				Field{Name: "recording_root", Type: String, Meaning: "last of the digest chain over those parts, SHA-256", Example: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
				Field{Name: "recording_bytes", Type: Int, Meaning: "size of those parts", Example: "70211"},
				Field{Name: "recording_sealed", Type: Bool, Meaning: "whether they are sealed for recipients", Example: "true"},
				Field{Name: "recording_open", Type: Bool, Meaning: "the disk did not let the recording be closed in time; recording.complete has its root, once it was", Example: "true"},
				reason(), lock(), node(), connection(),
			),
		},
		{
			Name: SessionRejected, Code: "A3002", Outcome: Failure, Meaning: "a session was asked for and refused",
			Fields: fields(
				Field{Name: "kind", Type: String, Meaning: "what was asked for: shell, exec, a channel or request type", Example: "shell"},
				Field{Name: "action", Type: String, Meaning: "the action the rules were asked about", Example: "shell"},
				Field{Name: "target", Type: String, Meaning: "the destination as the client named it", Example: "web-1:22"},
				Field{Name: "maximum", Type: Int, Meaning: "the limit that was reached", Example: "10"},
				command(), reason(), lock(), roles(), serial(), fingerprint(), node(), connection(),
			),
		},
		{
			Name: SessionKill, Code: "A3003", Outcome: Either, Meaning: "somebody ended another's session",
			Fields: fields(by(), reason(), node()),
		},
		{
			Name: Exec, Code: "A3004", Outcome: Either, Meaning: "a command is about to run, or could not be started",
			Fields: fields(
				command(),
				Field{Name: "exit_code", Type: Int, Meaning: "exit status, where it is known already", Example: "127"},
				Field{Name: "pty", Type: Bool, Meaning: "whether it has a terminal", Example: "false"},
				Field{Name: "shell", Type: String, Meaning: "the shell that runs it", Example: "/bin/bash"},
				reason(), node(), connection(),
			),
		},
		{
			Name: ClientDisconnect, Code: "A3005", Outcome: Success, Meaning: "a signed-in client's connection ended",
			Fields: fields(
				reason(), lock(),
				Field{Name: "duration_ms", Type: Int, Meaning: "how long it was up, in milliseconds", Example: "81250"},
				Field{Name: "bytes_in", Type: Int, Meaning: "bytes the client sent", Example: "1204"},
				Field{Name: "bytes_out", Type: Int, Meaning: "bytes the client was sent", Example: "90112"},
				serial(), fingerprint(), node(), connection(),
			),
		},
	}
}

// within are the events of what goes on beside the session's own process.
func within() []Spec {
	return []Spec{
		{
			Name: Port, Code: "A3006", Outcome: Either, Meaning: "a forwarded connection or a listener of one began, ended, or was refused",
			Fields: fields(
				Field{Name: "state", Type: String, Meaning: "open, closed, refused, listening, cancelled", Example: "closed"},
				Field{Name: "direction", Type: String, Meaning: "local: to the node's side, also what ssh -D and -W ask for; remote: to the client's", Example: "local"},
				Field{Name: "action", Type: String, Meaning: "the action the rules were asked about", Example: "forward:local"},
				Field{Name: "target", Type: String, Meaning: "the destination as the client named it: host:port, or the path of a socket", Example: "db.example.com:5432", Max: maxPath},
				address(),
				Field{Name: "listen", Type: String, Meaning: "where the node listens: host:port, or the path of a socket", Example: "127.0.0.1:8080", Max: maxPath},
				Field{Name: "bytes_in", Type: Int, Meaning: "bytes the client sent", Example: "1204"},
				Field{Name: "bytes_out", Type: Int, Meaning: "bytes the client was sent", Example: "90112"},
				Field{Name: "duration_ms", Type: Int, Meaning: "how long it was up, in milliseconds", Example: "81250"},
				rule(), reason(), lock(), roles(), node(), connection(),
			),
		},
		{
			Name: SFTP, Code: "A3007", Outcome: Either, Meaning: "a file operation over sftp was done, or refused",
			Fields: fields(fileOperation(), node(), connection()),
		},
		{
			Name: SCP, Code: "A3008", Outcome: Either, Meaning: "a file operation at the remote end of scp -O was done, or refused",
			Fields: fields(fileOperation(), node(), connection()),
		},
		{
			Name: SessionJoin, Code: "A3009", Outcome: Either, Meaning: "somebody began to take part in another's session, or was refused; sid is that session, user who joins",
			Fields: fields(participation(), rule(), roles(), serial(), fingerprint(), reason(), lock(), node(), connection()),
		},
		{
			Name: SessionLeave, Code: "A3010", Outcome: Either, Meaning: "somebody no longer takes part in another's session; sid is that session, user who leaves",
			Fields: fields(
				participation(),
				Field{Name: "duration_ms", Type: Int, Meaning: "how long they took part, in milliseconds", Example: "81250"},
				Field{Name: "bytes_in", Type: Int, Meaning: "bytes they put into the session", Example: "12"},
				Field{Name: "bytes_out", Type: Int, Meaning: "bytes of the session they were shown", Example: "90112"},
				roles(), serial(), fingerprint(), reason(), lock(), node(), connection(),
			),
		},
		{
			Name: RecordingGap, Code: "A3013", Outcome: Failure, Meaning: "a session goes on though a part of it is not recorded; its role allows that",
			Fields: fields(reason(), node(), connection()),
		},
		{
			Name: AccountCreate, Code: "A3011", Outcome: Either, Meaning: "a node made the account of a login, or could not",
			Fields: fields(account(), rule(), reason(), node(), connection()),
		},
		{
			Name: AccountDelete, Code: "A3012", Outcome: Either, Meaning: "a node removed the account of a login that it had made, or could not",
			Fields: fields(account(), reason(), node(), connection()),
		},
	}
}

// fileOperation is what sftp and scp say of a file.
func fileOperation() []Field {
	return []Field{
		{Name: "action", Type: String, Meaning: "open, close, remove, rename, mkdir, rmdir, setstat, symlink, link, readdir, ...", Example: "close"},
		{Name: "path", Type: String, Meaning: "the file, as the client named it", Example: "/srv/www/index.html", Max: maxPath},
		{Name: "target_path", Type: String, Meaning: "the other file of a rename or a link", Example: "/srv/www/index.html.old", Max: maxPath},
		{Name: "flags", Type: String, Meaning: "how it is opened", Example: "write,create,truncate"},
		{Name: "attributes", Type: String, Meaning: "the attributes it is given", Example: "mode=0644"},
		{Name: "write", Type: Bool, Meaning: "whether it takes the right to write", Example: "true"},
		{Name: "status", Type: Int, Meaning: "status code of the answer (SFTP version 3, section 7); 0 is success", Example: "0"},
		{Name: "bytes_read", Type: Int, Meaning: "bytes of the file the client was sent", Example: "0"},
		{Name: "bytes_written", Type: Int, Meaning: "bytes of the file the client sent", Example: "5120"},
		{Name: "sha256", Type: String, Meaning: "SHA-256 of the content transferred, hexadecimal, when sequential", Example: "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"},
		{Name: "sequential", Type: Bool, Meaning: "whether the content went through once, in order, from the file's beginning", Example: "true"},
		reason(),
	}
}

// participation is how somebody takes part in another's session.
func participation() []Field {
	return []Field{
		{Name: "mode", Type: String, Meaning: "watch: reads only; join: types, too", Example: "watch"},
		{Name: "participant", Type: String, Meaning: "whose session it is", Example: "bob"},
	}
}

// account is what a node is told of an account it makes.
func account() []Field {
	return []Field{
		{Name: "groups", Type: List, Meaning: "groups it is put into", Example: "docker,adm"},
		{Name: "sudoers", Type: List, Meaning: "lines of sudoers(5) it gets, without the user", Example: "ALL=(ALL) NOPASSWD: /usr/bin/systemctl"},
		{Name: "shell", Type: String, Meaning: "its shell", Example: "/bin/bash"},
		{Name: "keep", Type: Bool, Meaning: "whether it stays after its last session", Example: "true"},
	}
}
