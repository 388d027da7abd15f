package events

// Name names a kind of event, "noun.verb".
type Name string

// The events. [Table] says what each means and what it carries.
const (
	UserLogin         Name = "user.login"
	UserCreate        Name = "user.create"
	UserUpdate        Name = "user.update"
	UserDelete        Name = "user.delete"
	UserKeyCreate     Name = "user.key.create"
	UserKeyDelete     Name = "user.key.delete"
	InviteUse         Name = "invite.use"
	CertCreate        Name = "cert.create"
	FactorVerify      Name = "factor.verify"
	FactorCreate      Name = "factor.create"
	FactorDelete      Name = "factor.delete"
	PasswordUpdate    Name = "password.update"
	AuthRejected      Name = "auth.rejected"
	AccessDecision    Name = "access.decision"
	SessionStart      Name = "session.start"
	SessionEnd        Name = "session.end"
	SessionRejected   Name = "session.rejected"
	SessionKill       Name = "session.kill"
	Exec              Name = "exec"
	ClientDisconnect  Name = "client.disconnect"
	Port              Name = "port"
	SFTP              Name = "sftp"
	SCP               Name = "scp"
	SessionJoin       Name = "session.join"
	SessionLeave      Name = "session.leave"
	RecordingGap      Name = "recording.gap"
	RecordingSettings Name = "recording.settings"
	RecordingComplete Name = "recording.complete"
	RecordingRejected Name = "recording.rejected"
	RecordingRead     Name = "recording.read"
	RecordingSearch   Name = "recording.search"
	RecordingHold     Name = "recording.hold"
	RecordingDelete   Name = "recording.delete"
	RecordingFault    Name = "recording.fault"
	AccountCreate     Name = "account.create"
	AccountDelete     Name = "account.delete"
	NodeJoin          Name = "node.join"
	NodeUpdate        Name = "node.update"
	NodeDelete        Name = "node.delete"
	AuthorityDelete   Name = "authority.delete"
	NodeCreate        Name = "node.create"
	NodeHostKey       Name = "node.hostkey"
	ClockJump         Name = "clock.jump"
	ProxyJoin         Name = "proxy.join"
	TunnelUp          Name = "tunnel.up"
	TunnelDown        Name = "tunnel.down"
	RoleCreate        Name = "role.create"
	RoleUpdate        Name = "role.update"
	RoleDelete        Name = "role.delete"
	TokenCreate       Name = "token.create"
	TokenDelete       Name = "token.delete"
	TokenRejected     Name = "token.rejected"
	CACreate          Name = "ca.create"
	ConnectorCreate   Name = "connector.create"
	ConnectorUpdate   Name = "connector.update"
	ConnectorDelete   Name = "connector.delete"

	AuthenticatorsUpdate Name = "authenticators.update"
	CARotate             Name = "ca.rotate"
	AuditRotate          Name = "audit.rotate"
	AuditArchive         Name = "audit.archive"
	ProcessStart         Name = "process.start"
	ProcessStop          Name = "process.stop"
	LockCreate           Name = "lock.created"
	LockDelete           Name = "lock.deleted"

	APITokenCreate Name = "api_token.create"
	APITokenDelete Name = "api_token.delete"

	AccessRequestCreate Name = "access_request.create"
	AccessRequestReview Name = "access_request.review"
	AccessRequestEnd    Name = "access_request.end"
)

// Type is the JSON type of a field.
type Type string

// The field types.
const (
	String Type = "string" // text, bounded, escaped
	Int    Type = "int"    // 64-bit signed
	Bool   Type = "bool"
	List   Type = "list" // of strings
	Map    Type = "map"  // string to string
)

// Outcome says what success may be on an event.
type Outcome string

// The outcomes.
const (
	Either  Outcome = "either"  // the emitter says; code ends in I or W
	Success Outcome = "success" // always true; code ends in I
	Failure Outcome = "failure" // always false; code ends in W
)

// Spec describes one kind of event.
type Spec struct {
	Name    Name
	Code    string // letter and number; "I" follows on success, "W" on failure
	Outcome Outcome
	Meaning string
	Fields  []Field
}

// Field describes a field that an event carries beside the common ones.
type Field struct {
	Name    string
	Type    Type
	Meaning string
	Example string
	Max     int // bytes of text kept; 0 means 1 KiB
}

// Common describes the fields every event may carry, in the order they are
// written.
func Common() []Field {
	return []Field{
		{Name: "event", Type: String, Meaning: "what happened", Example: "session.start"},
		{Name: "code", Type: String, Meaning: "the event's number; ends in I when it went well, in W when not", Example: "A3000I"},
		{Name: "time", Type: String, Meaning: "when, by the clock of the process that saw it; UTC, microseconds", Example: "2026-03-01T09:30:00.000000Z"},
		{Name: "uid", Type: String, Meaning: "the event's own id, a UUID; the log holds each once", Example: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"},
		{Name: "cluster_name", Type: String, Meaning: "the cluster", Example: "example"},
		{Name: "user", Type: String, Meaning: "the person or bot, as proven; as claimed when success is false, and (unknown:HASH) when nothing is called so", Example: "alice"},
		{Name: "login", Type: String, Meaning: "the operating-system account on the node", Example: "root"},
		{Name: "sid", Type: String, Meaning: "the session", Example: "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11"},
		{Name: "server_id", Type: String, Meaning: "the process that emitted the event", Example: "b1946ac9-2492-4d23-94c6-235b4d2611e5"},
		{Name: "server_hostname", Type: String, Meaning: "that process's name", Example: "web-1"},
		{Name: "addr.remote", Type: String, Meaning: "the client's address and port", Example: "203.0.113.7:50122"},
		{Name: "proto", Type: String, Meaning: "the protocol spoken", Example: "ssh"},
		{Name: "success", Type: Bool, Meaning: "whether it went well", Example: "true"},
		{Name: "error", Type: String, Meaning: "why not, for the auditor", Example: "certificate expired"},
		{Name: "truncated", Type: List, Meaning: "the fields that were cut because they were too long", Example: "command"},
	}
}

// Fields that several events share.
func serial() Field {
	return Field{Name: "cert_serial", Type: String, Meaning: "serial number of the certificate, decimal", Example: "4711"}
}

func standsFor() Field {
	return Field{Name: "stands_for", Type: List, Meaning: "serial numbers of the certificates on whose strength it was issued, decimal: locks on these hold for it", Example: "4710"}
}

func keyID() Field {
	return Field{Name: "key_id", Type: String, Meaning: "key id of the certificate", Example: "alice"}
}

func fingerprint() Field {
	return Field{Name: "fingerprint", Type: String, Meaning: "SHA-256 of the public key", Example: "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"}
}

func caFingerprint() Field {
	return Field{Name: "ca", Type: String, Meaning: "SHA-256 of the key that signed the certificate", Example: "SHA256:uNiVztksCsDhcc0u9e8BgrJXVGUpZRgIrPJ3VwqWcJU"}
}

func roles() Field {
	return Field{Name: "roles", Type: List, Meaning: "the user's roles", Example: "access"}
}

func logins() Field {
	return Field{Name: "logins", Type: List, Meaning: "the logins granted", Example: "root,deploy"}
}

func reason() Field {
	return Field{Name: "reason", Type: String, Meaning: "why", Example: "idle for 30m0s"}
}

func address() Field {
	return Field{Name: "addr", Type: String, Meaning: "the address dialled for the destination", Example: "10.0.0.5"}
}

// rule names the rule that decided.
func rule() []Field {
	return []Field{
		{Name: "rule", Type: String, Meaning: "the rule that decided", Example: "developer.allow[0]"},
		{Name: "role", Type: String, Meaning: "the role that decided", Example: "developer"},
	}
}

func node() []Field {
	return []Field{
		{Name: "node_id", Type: String, Meaning: "the node meant", Example: "b1946ac9-2492-4d23-94c6-235b4d2611e5"},
		{Name: "node_name", Type: String, Meaning: "its name", Example: "web-1"},
		{Name: "node_labels", Type: Map, Meaning: "its labels", Example: "env=prod"},
	}
}

func connection() []Field {
	return []Field{
		{Name: "connection", Type: String, Meaning: "id of the connection, the same on all its events", Example: "c-58213"},
		{Name: "addr.peer", Type: String, Meaning: "address of the TCP peer, when a PROXY header named another client", Example: "10.0.0.2:41000"},
		{Name: "addr.local", Type: String, Meaning: "address connected to", Example: "10.0.0.1:3022"},
		{Name: "client", Type: String, Meaning: "version string the client sent", Example: "SSH-2.0-OpenSSH_9.2"},
	}
}

func change(what string) []Field {
	return []Field{
		by(),
		{Name: "name", Type: String, Meaning: "the " + what, Example: "developer"},
		{Name: "before", Type: String, Meaning: "the " + what + " as it was", Example: "kind: role ...", Max: maxDocument},
		{Name: "after", Type: String, Meaning: "the " + what + " as it is now", Example: "kind: role ...", Max: maxDocument},
	}
}

func by() Field {
	return Field{Name: "by", Type: String, Meaning: "who did it: a user, or local:uid at the admin socket", Example: "local:0"}
}

func command() Field {
	return Field{Name: "command", Type: String, Meaning: "the command line asked for", Example: "systemctl restart nginx", Max: maxCommand}
}

func fields(groups ...any) []Field {
	var out []Field
	for _, g := range groups {
		switch g := g.(type) {
		case Field:
			out = append(out, g)
		case []Field:
			out = append(out, g...)
		}
	}
	return out
}

// Table returns every kind of event, in the order of their codes. It is the one
// source of names, codes and fields.
func Table() []Spec {
	var all []Spec
	for _, part := range [][]Spec{people(), sessions(), within(), members(), administration(), archive(), locks(), requests()} {
		all = append(all, part...)
	}
	return all
}

func people() []Spec {
	return []Spec{
		{
			Name: UserLogin, Code: "A1000", Outcome: Either, Meaning: "somebody signed in, or tried to",
			Fields: fields(
				Field{Name: "method", Type: String, Meaning: "certificate, key (an enrolled one), password, totp, invite, sso, passkey", Example: "certificate"},
				Field{Name: "connector", Type: String, Meaning: "the connector somebody signed in through", Example: "corp"},
				Field{Name: "subject", Type: String, Meaning: "who the connector's provider says it was", Example: "248289761001"},
				Field{Name: "addr.browser", Type: String, Meaning: "where the browser of the sign-in was", Example: "203.0.113.7:50122"},
				Field{Name: "mfa", Type: String, Meaning: "second factor given", Example: "totp"},
				serial(), keyID(), fingerprint(), caFingerprint(), roles(), logins(), reason(), connection(),
			),
		},
		{
			Name: AuthRejected, Code: "A1001", Outcome: Failure, Meaning: "a credential was refused",
			Fields: fields(
				Field{Name: "refusal", Type: String, Meaning: "stable code of the refusal", Example: "expired"},
				Field{Name: "method", Type: String, Meaning: "how the peer tried: publickey, key (an enrolled one), password, ...", Example: "publickey"},
				Field{Name: "cert_type", Type: String, Meaning: "type of the certificate shown", Example: "user"},
				Field{Name: "principals", Type: List, Meaning: "principals of the certificate shown", Example: "root"},
				serial(), standsFor(), keyID(), fingerprint(), caFingerprint(), reason(), lock(), apiToken(), connection(),
			),
		},
		{
			Name: InviteUse, Code: "A1002", Outcome: Either, Meaning: "a one-time invite was used, or tried",
			Fields: fields(fingerprint(), reason(), connection()),
		},
		{
			Name: CertCreate, Code: "A1003", Outcome: Either, Meaning: "a certificate was issued, or refused",
			Fields: fields(
				Field{Name: "cert_type", Type: String, Meaning: "user, host, node, proxy, auth, sshd", Example: "user"},
				serial(), standsFor(), keyID(), fingerprint(), caFingerprint(), roles(), by(), reason(), lock(),
				Field{Name: "principals", Type: List, Meaning: "principals of the certificate", Example: "user:alice,root"},
				Field{Name: "valid_after", Type: String, Meaning: "start of its life", Example: "2026-03-01T09:29:00Z"},
				Field{Name: "valid_before", Type: String, Meaning: "end of its life", Example: "2026-03-01T21:30:00Z"},
				Field{Name: "source_addresses", Type: List, Meaning: "addresses it is pinned to", Example: "203.0.113.7/32"},
				Field{Name: "method", Type: String, Meaning: "how it was asked for", Example: "login"},
				Field{Name: "requests", Type: List, Meaning: "the access requests that gave some of the roles", Example: "7b0e3c58-5d0c-4d0a-9f9e-52a1f0f5b6d1"},
				Field{Name: "mfa", Type: String, Meaning: "second factor given", Example: "totp"},
				Field{Name: "force_command", Type: String, Meaning: "all that a plain sshd may run for it", Example: "uptime"},
				node(), connection(),
			),
		},
		{
			Name: FactorVerify, Code: "A1010", Outcome: Either, Meaning: "a second factor was given for one connection, or tried",
			Fields: fields(
				factorMethod(), by(), fingerprint(),
				Field{Name: "touched", Type: String, Meaning: "fingerprint of the security key that was touched", Example: "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"},
				reason(), node(), connection(),
			),
		},
		{
			Name: FactorCreate, Code: "A1011", Outcome: Either, Meaning: "a person set up a second factor, in place of the one of that kind before, or a further passkey",
			Fields: fields(factorMethod(), by(), reason()),
		},
		{
			Name: FactorDelete, Code: "A1012", Outcome: Either, Meaning: "a person gave up a second factor",
			Fields: fields(factorMethod(), by(), reason()),
		},
		{
			Name: PasswordUpdate, Code: "A1013", Outcome: Either, Meaning: "a person changed their password, or tried",
			Fields: fields(by(), reason()),
		},
	}
}

func apiToken() Field {
	return Field{Name: "api_token", Type: String, Meaning: "id of the API token, never its secret", Example: "mfrggzdfmztw"}
}

func factorMethod() Field {
	return Field{Name: "method", Type: String, Meaning: "totp, recovery, passkey, sso or touch (of a security key)", Example: "totp"}
}

func members() []Spec {
	tokenID := Field{Name: "token_id", Type: String, Meaning: "the token's id, never its secret", Example: "t-7f3a"}
	return []Spec{
		{
			Name: NodeJoin, Code: "A4000", Outcome: Either, Meaning: "a node joined the cluster",
			Fields: fields(tokenID, member(), fingerprint(), reason(), connection()),
		},
		{
			Name: NodeDelete, Code: "A4001", Outcome: Either, Meaning: "a node was removed",
			Fields: fields(by(), node(), reason()),
		},
		{
			Name: ProxyJoin, Code: "A4002", Outcome: Either, Meaning: "a proxy joined the cluster",
			Fields: fields(tokenID, member(), fingerprint(), reason(), connection()),
		},
		{
			Name: TunnelUp, Code: "A4003", Outcome: Either, Meaning: "a node's tunnel was attached, or refused",
			Fields: fields(tunnel(), serial(), fingerprint(), node(), reason(), connection()),
		},
		{
			Name: TunnelDown, Code: "A4004", Outcome: Success, Meaning: "a node's tunnel ended",
			Fields: fields(
				tunnel(), node(), reason(), lock(), connection(),
				Field{Name: "duration_ms", Type: Int, Meaning: "how long it was up, in milliseconds", Example: "3600000"},
			),
		},
		{
			Name: TokenRejected, Code: "A4005", Outcome: Failure, Meaning: "a join token was refused",
			Fields: fields(tokenID, member(), fingerprint(), reason(), lock(), connection()),
		},
		{
			Name: ProcessStart, Code: "A4006", Outcome: Success, Meaning: "a process of the cluster began to serve",
			Fields: fields(
				Field{Name: "roles", Type: List, Meaning: "what the process does", Example: "auth,proxy"},
				Field{Name: "version", Type: String, Meaning: "its version", Example: "v1.0.0"},
				Field{Name: "addresses", Type: List, Meaning: "where it listens", Example: "0.0.0.0:3022"},
			),
		},
		{
			Name: ProcessStop, Code: "A4007", Outcome: Success, Meaning: "a process of the cluster stopped in good order",
			Fields: fields(
				Field{Name: "roles", Type: List, Meaning: "what the process did", Example: "auth,proxy"},
				Field{Name: "version", Type: String, Meaning: "its version", Example: "v1.0.0"},
				reason(),
			),
		},
		{
			Name: NodeUpdate, Code: "A4008", Outcome: Either, Meaning: "a node's labels changed",
			Fields: fields(
				member(), by(), reason(), connection(),
				Field{Name: "labels_before", Type: Map, Meaning: "its labels as they were", Example: "env=dev"},
			),
		},
		{
			Name: NodeCreate, Code: "A4009", Outcome: Either, Meaning: "a plain sshd node was registered",
			Fields: fields(
				by(), member(),
				Field{Name: "address", Type: String, Meaning: "where it is reached; absent when it dials home", Example: "10.0.0.7:22"},
				Field{Name: "fingerprints", Type: List, Meaning: "SHA-256 of the host keys it is expected to show", Example: "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"},
				tokenID, reason(), connection(),
			),
		},
		{
			Name: NodeHostKey, Code: "A4010", Outcome: Either,
			Meaning: "the host key of a plain sshd node was pinned; when success is false, it showed another key than the ones expected",
			Fields: fields(
				Field{Name: "action", Type: String, Meaning: "pinned, refused", Example: "refused"},
				node(), fingerprint(),
				Field{Name: "expected", Type: List, Meaning: "SHA-256 of the host keys it is expected to show", Example: "SHA256:uNiVztksCsDhcc0u9e8BgrJXVGUpZRgIrPJ3VwqWcJU"},
				Field{Name: "address", Type: String, Meaning: "where it was reached", Example: "10.0.0.7:22"},
				by(), reason(), connection(),
			),
		},
		clockJump(),
		{
			Name: AuthorityDelete, Code: "A4020", Outcome: Either, Meaning: "an authority that is gone for good was taken off the record; nobody asks for its log any more",
			Fields: fields(
				by(), node(),
				Field{Name: "log_lost", Type: Bool, Meaning: "whether nothing was shown of how its log ended", Example: "true"},
				Field{Name: "entries", Type: Int, Meaning: "how many entries that checkpoint signs", Example: "1203"},
				Field{Name: "checkpoint", Type: String, Meaning: "the last checkpoint of its log that was shown", Example: "example/audit/5630a42e-5177-4ce8-a3c3-4ed24708b577 ...", Max: maxDocument},
				reason(),
			),
		},
	}
}

// clockJump is the row of an event that the emitter itself emits.
func clockJump() Spec {
	return Spec{
		Name: ClockJump, Code: "A4011", Outcome: Failure,
		Meaning: "the clock of a process was set, by more than the two seconds that are let pass: events behind this one carry the new time, those before it the old. Sleep of the machine is no jump, except where its system has no clock that counts it (macOS)",
		Fields: []Field{
			{Name: "moved_ms", Type: Int, Meaning: "by how much, in milliseconds; negative when it went back", Example: "-3600000"},
			{Name: "before", Type: String, Meaning: "what it would say at this moment, had it not been set; UTC, microseconds", Example: "2026-03-01T10:30:00.000000Z"},
			{Name: "after", Type: String, Meaning: "what it says", Example: "2026-03-01T09:30:00.000000Z"},
			{Name: "jumps", Type: Int, Meaning: "how many jumps this tells of: each of the first ten in an hour has an event, the others of that hour have one", Example: "1"},
			{Name: "stopped", Type: Bool, Meaning: "whether the process did not run when the clock was set; then it is found only when it went back behind the last event, and may have gone further", Example: "false"},
		},
	}
}

func member() []Field {
	return []Field{
		{Name: "role", Type: String, Meaning: "what it joins as", Example: "node"},
		{Name: "name", Type: String, Meaning: "its name", Example: "web-1"},
		{Name: "member_id", Type: String, Meaning: "its id", Example: "b1946ac9-2492-4d23-94c6-235b4d2611e5"},
		{Name: "labels", Type: Map, Meaning: "its labels", Example: "env=prod"},
		{Name: "version", Type: String, Meaning: "its version", Example: "v1.0.0"},
	}
}

func tunnel() []Field {
	return []Field{
		{Name: "proxy_id", Type: String, Meaning: "the proxy that holds it", Example: "0a4d55a8-d778-4502-9dd3-8a1b5b0c7c11"},
		{Name: "proxy_name", Type: String, Meaning: "its name", Example: "edge-1"},
	}
}

func administration() []Spec {
	token := fields(
		by(),
		Field{Name: "token_id", Type: String, Meaning: "the token's id, never its secret", Example: "t-7f3a"},
		Field{Name: "role", Type: String, Meaning: "what it lets join", Example: "node"},
		Field{Name: "expires", Type: String, Meaning: "when it ends", Example: "2026-03-01T10:30:00Z"},
		Field{Name: "uses", Type: Int, Meaning: "how often it can be used", Example: "1"},
		Field{Name: "names", Type: List, Meaning: "names it allows", Example: "web-1"},
		Field{Name: "labels", Type: Map, Meaning: "labels it allows", Example: "env=prod"},
		reason(),
	)
	user := fields(change("user"), roles(), logins(), reason())
	apiTokens := fields(
		by(), apiToken(),
		Field{Name: "expires", Type: String, Meaning: "when it ends", Example: "2026-03-01T10:30:00Z"},
		Field{Name: "note", Type: String, Meaning: "what its person says it is for", Example: "nightly report"},
		reason(),
	)
	role := fields(change("role"), reason())
	key := fields(
		by(),
		Field{Name: "name", Type: String, Meaning: "the user whose key it is", Example: "alice"},
		fingerprint(),
		Field{Name: "comment", Type: String, Meaning: "the comment that came with the key", Example: "alice@router"},
		Field{Name: "aaguid", Type: String, Meaning: "the model of a security key, for which its maker vouches", Example: "cb69481e-8ff7-4039-93ec-0a2729a154a8"},
		Field{Name: "pin", Type: Bool, Meaning: "whether it signs only after it has made sure who touches it", Example: "true"},
		reason(),
	)
	authenticators := fields(
		by(),
		Field{Name: "before", Type: String, Meaning: "models and makers' certificates before", Example: "aaguids:", Max: maxDocument},
		Field{Name: "after", Type: String, Meaning: "the same now", Example: "aaguids: cb69481e-8ff7-4039-93ec-0a2729a154a8", Max: maxDocument},
		reason(),
	)
	return []Spec{
		{Name: UserCreate, Code: "A5000", Outcome: Either, Meaning: "a user was added", Fields: user},
		{Name: UserUpdate, Code: "A5001", Outcome: Either, Meaning: "a user or a credential of theirs was changed", Fields: user},
		{Name: UserDelete, Code: "A5002", Outcome: Either, Meaning: "a user was removed", Fields: user},
		{Name: RoleCreate, Code: "A5003", Outcome: Either, Meaning: "a role was added", Fields: role},
		{Name: RoleUpdate, Code: "A5004", Outcome: Either, Meaning: "a role was changed", Fields: role},
		{Name: RoleDelete, Code: "A5005", Outcome: Either, Meaning: "a role was removed", Fields: role},
		{Name: ConnectorCreate, Code: "A5030", Outcome: Either, Meaning: "a connector was added", Fields: fields(change("connector"), reason())},
		{Name: ConnectorUpdate, Code: "A5031", Outcome: Either, Meaning: "a connector was changed", Fields: fields(change("connector"), reason())},
		{Name: ConnectorDelete, Code: "A5032", Outcome: Either, Meaning: "a connector was removed", Fields: fields(change("connector"), reason())},
		{Name: AuthenticatorsUpdate, Code: "A5042", Outcome: Either, Meaning: "which security keys count was changed", Fields: authenticators},
		{Name: TokenCreate, Code: "A5006", Outcome: Either, Meaning: "a join token was made", Fields: token},
		{Name: APITokenCreate, Code: "A5040", Outcome: Either, Meaning: "a person made a token for calls over HTTPS", Fields: apiTokens},
		{Name: APITokenDelete, Code: "A5041", Outcome: Either, Meaning: "a token for calls over HTTPS was removed", Fields: apiTokens},
		{Name: TokenDelete, Code: "A5007", Outcome: Either, Meaning: "a join token was removed", Fields: token},
		{
			Name: CACreate, Code: "A5008", Outcome: Either, Meaning: "a certificate authority's key was made",
			Fields: fields(
				by(),
				Field{Name: "ca_type", Type: String, Meaning: "user, host, node, sshd or audit", Example: "user"},
				fingerprint(), reason(),
			),
		},
		{
			Name: CARotate, Code: "A5011", Outcome: Either, Meaning: "a certificate authority went to another phase of its rotation, or was not let",
			Fields: fields(
				by(),
				Field{Name: "ca_type", Type: String, Meaning: "user, host, node or sshd", Example: "user"},
				Field{Name: "phase", Type: String, Meaning: "where it goes: init, clients, servers, standby or rollback", Example: "clients"},
				Field{Name: "before", Type: String, Meaning: "how it was: phase, the key that signs, all that are trusted", Example: "phase=init signs=SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8 trusts=SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8,SHA256:uNiVztksCsDhcc0u9e8BrTyfMXGdnFGcZBQ/TuZzr0s"},
				Field{Name: "after", Type: String, Meaning: "how it is", Example: "phase=clients signs=SHA256:uNiVztksCsDhcc0u9e8BrTyfMXGdnFGcZBQ/TuZzr0s trusts=SHA256:uNiVztksCsDhcc0u9e8BrTyfMXGdnFGcZBQ/TuZzr0s,SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"},
				Field{Name: "behind", Type: List, Meaning: "who is left behind, or keeps it from going; at most 20", Example: "node:web-1"},
				Field{Name: "behind_total", Type: Int, Meaning: "how many those are", Example: "1"},
				Field{Name: "forced", Type: Bool, Meaning: "whether they are left behind", Example: "true"},
				reason(),
			),
		},
		{Name: UserKeyCreate, Code: "A5009", Outcome: Either, Meaning: "a public key was enrolled for a user", Fields: key},
		{Name: UserKeyDelete, Code: "A5010", Outcome: Either, Meaning: "a user's enrolled public key was removed", Fields: key},
	}
}

// archive is about recordings as they are kept; what happens while one is made
// is among the events of its session.
func archive() []Spec {
	parts := []Field{
		{Name: "recording_parts", Type: Int, Meaning: "parts of the recording", Example: "3"},
		{Name: "recording_root", Type: String, Meaning: "last of the digest chain over those parts, SHA-256", Example: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
		{Name: "recording_bytes", Type: Int, Meaning: "size of those parts", Example: "70211"},
	}
	part := Field{Name: "part", Type: Int, Meaning: "number of the part", Example: "2"}
	return []Spec{
		{
			Name: RecordingSettings, Code: "A6000", Outcome: Either, Meaning: "what recorders are told was changed, by the authority's configuration",
			Fields: fields(
				by(),
				Field{Name: "recipients", Type: List, Meaning: "public keys that recordings are sealed for", Example: "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"},
				Field{Name: "recipients_before", Type: List, Meaning: "those before", Example: "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"},
				Field{Name: "max_session", Type: Int, Meaning: "bytes of one session's recording; 0 is no bound", Example: "1073741824"},
				Field{Name: "max_session_before", Type: Int, Meaning: "those before", Example: "0"},
			),
		},
		{
			Name: RecordingComplete, Code: "A6001", Outcome: Either, Meaning: "a recording has come to its end; when that fails, not all of it is in the store",
			Fields: fields(
				by(), parts,
				Field{Name: "recording_sealed", Type: Bool, Meaning: "whether it is sealed for recipients", Example: "true"},
				Field{Name: "recovered", Type: Bool, Meaning: "completed at the next start, after a crash", Example: "true"},
				reason(), node(),
			),
		},
		{
			Name: RecordingRejected, Code: "A6002", Outcome: Failure, Meaning: "a member's upload was refused: it is another's, or not what it was",
			Fields: fields(by(), part, reason(), node()),
		},
		{
			Name: RecordingRead, Code: "A6003", Outcome: Either, Meaning: "somebody is about to be given a recording",
			Fields: fields(
				by(), part,
				Field{Name: "follow", Type: Bool, Meaning: "whether also what comes", Example: "true"},
				node(), connection(),
			),
		},
		{
			Name: RecordingSearch, Code: "A6004", Outcome: Either, Meaning: "somebody is about to be given lines of recordings",
			Fields: fields(
				by(),
				Field{Name: "words", Type: String, Meaning: "what was searched for", Example: "passwd root"},
				connection(),
			),
		},
		{
			Name: RecordingHold, Code: "A6005", Outcome: Either, Meaning: "a recording is kept from removal, or no longer",
			Fields: fields(by(), Field{Name: "held", Type: Bool, Meaning: "whether it is", Example: "true"}, reason(), node()),
		},
		{
			Name: RecordingDelete, Code: "A6006", Outcome: Either, Meaning: "a recording was removed; what it was is proven by its root",
			Fields: fields(
				by(), parts,
				Field{Name: "mirrored", Type: Bool, Meaning: "whether the mirror, where there is one, has all of it and keeps it", Example: "true"},
				reason(), node(),
			),
		},
		{
			Name: RecordingFault, Code: "A6007", Outcome: Failure, Meaning: "a part of a recording is not in the store as it was put there",
			Fields: fields(by(), part, reason(), node()),
		},
		{
			Name: AuditRotate, Code: "A6100", Outcome: Success, Meaning: "the log goes on in a new period; this is its first entry",
			Fields: fields(
				by(),
				Field{Name: "period", Type: String, Meaning: "the new period; it stands behind the log's origin", Example: "2026-12"},
				Field{Name: "base", Type: Int, Meaning: "number of its first entry among those of all periods", Example: "1280"},
				Field{Name: "checkpoint", Type: String, Meaning: "the last checkpoint of the period before, as it was signed", Example: "example/audit/5630a42e-5177-4ce8-a3c3-4ed24708b577 ...", Max: maxDocument},
				reason(),
			),
		},
		{
			Name: AuditArchive, Code: "A6101", Outcome: Either, Meaning: "the oldest period of the log is in an archive, and is about to be removed here",
			Fields: fields(
				by(),
				Field{Name: "period", Type: String, Meaning: "the period, first for the first", Example: "2026-11"},
				Field{Name: "to", Type: String, Meaning: "the archive, without credentials", Example: "s3://bucket?region=eu-central-1"},
				Field{Name: "entries", Type: Int, Meaning: "how many entries it has", Example: "1203"},
				Field{Name: "checkpoint", Type: String, Meaning: "its last checkpoint, as it was signed", Example: "example/audit/5630a42e-5177-4ce8-a3c3-4ed24708b577 ...", Max: maxDocument},
				reason(),
			),
		},
	}
}
