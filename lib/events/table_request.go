package events

// maxStatement bounds what a reviewer signed and what proves it: a reason and a
// note of 1 KiB each, escaped, and a certificate.
const maxStatement = 16 << 10

// request is what an event carries that is about an access request.
func request() Field {
	return Field{Name: "request", Type: String, Meaning: "the access request's id", Example: "7b0e3c58-5d0c-4d0a-9f9e-52a1f0f5b6d1"}
}

// requests are about access requests; the certificates they lead to are among
// the events of certificates.
func requests() []Spec {
	about := fields(
		by(), request(),
		Field{Name: "roles", Type: List, Meaning: "the roles asked for", Example: "dba"},
		Field{Name: "node_id", Type: String, Meaning: "the only node they are for", Example: "b1946ac9-2492-4d23-94c6-235b4d2611e5"},
		Field{Name: "node_name", Type: String, Meaning: "its name", Example: "db-1"},
		Field{Name: "request_reason", Type: String, Meaning: "why they are asked for", Example: "restore of ticket 4711"},
		Field{Name: "ttl", Type: String, Meaning: "for how long, from the approval", Example: "2h0m0s"},
	)
	state := Field{Name: "state", Type: String, Meaning: "the request after that: pending, approved, denied, dropped or expired", Example: "approved"}
	return []Spec{
		{Name: AccessRequestCreate, Code: "A8000", Outcome: Either, Meaning: "somebody asked for roles for a while", Fields: fields(about, reason())},
		{
			Name: AccessRequestReview, Code: "A8001", Outcome: Either, Meaning: "an access request was approved or denied by one person, or that was refused",
			Fields: fields(
				about, state,
				Field{Name: "requester", Type: String, Meaning: "who asks; user is the reviewer", Example: "alice"},
				Field{Name: "verdict", Type: String, Meaning: "approve or deny", Example: "approve"},
				Field{Name: "note", Type: String, Meaning: "what the reviewer says to it", Example: "until noon only"},
				Field{Name: "proof", Type: String, Meaning: "signature (of the statement), connection (the certificate that let it in), or api_token (made with that)", Example: "signature"},
				Field{Name: "statement", Type: String, Meaning: "exactly what the reviewer says", Example: "accessd access request 1 ...", Max: maxStatement},
				Field{Name: "signature", Type: String, Meaning: "over the statement, as ssh-keygen -Y verify takes it", Example: "-----BEGIN SSH SIGNATURE----- ...", Max: maxStatement},
				Field{Name: "certificate", Type: String, Meaning: "the reviewer's, by which the key is theirs", Example: "ssh-ed25519-cert-v01@openssh.com AAAA...", Max: maxStatement},
				Field{Name: "public_key", Type: String, Meaning: "the key that signed, or that the certificate is for", Example: "ssh-ed25519 AAAA...", Max: maxStatement},
				fingerprint(), serial(), reason(),
			),
		},
		{Name: AccessRequestEnd, Code: "A8002", Outcome: Either, Meaning: "an access request was dropped or has expired, and what it gave with it", Fields: fields(about, state, reason())},
	}
}
