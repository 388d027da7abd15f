package sshca

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// Code says in one stable word why a certificate was refused. It appears in
// audit events: append, never rename.
type Code string

// The codes.
const (
	CodeNotCertificate  Code = "not_certificate"  // a plain key, or nothing
	CodeWeakKey         Code = "weak_key"         // key of a kind or size not accepted
	CodeNested          Code = "nested"           // signed by a certificate, or for one
	CodeHostAsUser      Code = "host_as_user"     // a host certificate where a person's or member's belongs
	CodeUserAsHost      Code = "user_as_host"     // the reverse
	CodeWrongType       Code = "wrong_type"       // neither user nor host certificate
	CodeWrongCA         Code = "wrong_ca"         // signed by no authority trusted for this
	CodeWeakSignature   Code = "weak_signature"   // signature algorithm not accepted, such as SHA-1
	CodeBadSignature    Code = "bad_signature"    // forged or altered
	CodeBadValidity     Code = "bad_validity"     // no end, or an end before the start
	CodeNotYetValid     Code = "not_yet_valid"    // starts more than Tolerance from now
	CodeExpired         Code = "expired"          // ended
	CodeCriticalOption  Code = "critical_option"  // an option this package does not know
	CodeSourceAddress   Code = "source_address"   // malformed, or the peer is elsewhere
	CodeEmptyPrincipals Code = "empty_principals" // no principals: would be anybody
	CodeBadPrincipal    Code = "bad_principal"    // malformed principal, or too many
	CodeWrongPrincipal  Code = "wrong_principal"  // not valid for the name asked for
	CodeBadKeyID        Code = "bad_key_id"       // not what its authority writes
	CodeBadExtension    Code = "bad_extension"    // malformed accessd extension
)

// Refusal is the error of every check. It is of kind [fault.Denied] and its
// public text is "permission denied". The fields are for the log and the audit
// event; they quote a certificate that was refused, so they are claims.
type Refusal struct { //nolint:errname // a refusal is the answer of a check, as fault.Error is an error
	Code          Code
	Detail        string // one sentence
	Serial        uint64
	KeyID         string // at most maxClaim bytes of it
	Fingerprint   string // of the certified key
	CAFingerprint string // of the key it claims to be signed by
}

// maxClaim bounds what a refusal repeats of a stranger's key id, in bytes.
const maxClaim = 256

// Error returns the reason, for the log.
func (r *Refusal) Error() string {
	return fmt.Sprintf("certificate refused (%s): %s", r.Code, r.Detail)
}

// Unwrap makes a refusal an error of kind [fault.Denied] that tells the peer
// nothing.
func (r *Refusal) Unwrap() error {
	return &fault.Error{Kind: fault.Denied, Public: "permission denied"}
}

// refuse returns a refusal that does not name its certificate yet.
func refuse(code Code, format string, args ...any) error {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// about fills in which certificate the refusal err is about; a nil c leaves it.
func about(c *ssh.Certificate, err error) error {
	r, ok := errors.AsType[*Refusal](err)
	if !ok || c == nil {
		return err
	}
	r.Serial = c.Serial
	r.KeyID = c.KeyId[:min(len(c.KeyId), maxClaim)]
	if c.Key != nil {
		r.Fingerprint = ssh.FingerprintSHA256(c.Key)
	}
	if c.SignatureKey != nil {
		r.CAFingerprint = ssh.FingerprintSHA256(c.SignatureKey)
	}
	return r
}
