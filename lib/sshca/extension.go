package sshca

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// The extensions accessd adds (OpenSSH PROTOCOL.certkeys, "Extensions": a name
// that is not OpenSSH's own is of the form name@domain).
const (
	extRoles  = "roles@accessd"    // JSON list of role names, sorted; always present
	extTraits = "traits@accessd"   // JSON object of lists of texts
	extMFA    = "mfa@accessd"      // JSON text
	extFactor = "factor@accessd"   // JSON text
	extKey    = "key@accessd"      // JSON text, a SecurityKey; absent of other keys
	extReqs   = "requests@accessd" // JSON list of access requests, sorted; absent when there are none
	extFor    = "for@accessd"      // JSON object, an Origin; absent when the certificate stands for itself
	extName   = "name@accessd"     // JSON text, the member's name
	extKind   = "kind@accessd"     // JSON text, the member's kind
)

// Bounds on what an extension may hold.
const (
	maxExtension   = 32 << 10 // bytes of JSON; OpenSSH takes certificates of 256 KiB at most
	maxRoles       = 128
	maxTraits      = 64
	maxTraitValues = 128
	maxTraitText   = 256 // bytes of a trait's name or of one value
	maxMFA         = 32  // bytes of a method's name
	maxRequests    = 16
)

// encodeUser writes a person's extensions into c.
func encodeUser(c *ssh.Certificate, r UserRequest) error {
	if r.Roles == nil {
		r.Roles = []names.RoleName{} // "[]", not "null"
	}
	set := map[string]any{extRoles: r.Roles}
	if len(r.Traits) > 0 {
		set[extTraits] = r.Traits
	}
	if r.MFA != "" {
		set[extMFA] = r.MFA
	}
	if r.Factor != "" {
		set[extFactor] = r.Factor
	}
	if r.SecurityKey != "" {
		set[extKey] = r.SecurityKey
	}
	if len(r.Requests) > 0 {
		set[extReqs] = r.Requests
	}
	if !r.For.isZero() {
		set[extFor] = r.For
	}
	return encode(c, set)
}

// encodeMember writes a member's extensions into c.
func encodeMember(c *ssh.Certificate, name names.NodeName, kind Kind) error {
	return encode(c, map[string]any{extName: name, extKind: kind})
}

func encode(c *ssh.Certificate, set map[string]any) error {
	for ext, v := range set {
		b, err := json.Marshal(v)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "encode "+ext)
		}
		c.Extensions[ext] = string(b)
	}
	return nil
}

// decode reads the extension ext of c into v. Only the form that encode writes
// is taken, so an extension has one meaning for every reader: no repeated
// names, no spaces, no bytes that are not UTF-8.
func decode(c *ssh.Certificate, ext string, v any) error {
	text := c.Extensions[ext]
	if len(text) > maxExtension {
		return refuse(CodeBadExtension, "%s has %d bytes, want at most %d", ext, len(text), maxExtension)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return refuse(CodeBadExtension, "%s: %v", ext, err)
	}
	if again, err := json.Marshal(v); err != nil || string(again) != text {
		return refuse(CodeBadExtension, "%s is not in canonical form", ext)
	}
	return nil
}

func decodeRoles(c *ssh.Certificate) ([]names.RoleName, error) {
	var roles []names.RoleName
	if err := decode(c, extRoles, &roles); err != nil {
		return nil, err
	}
	if roles == nil || len(roles) > maxRoles || !slices.IsSorted(roles) {
		return nil, refuse(CodeBadExtension, "%s: want a sorted list of at most %d", extRoles, maxRoles)
	}
	for i, r := range roles {
		if _, err := names.ParseRoleName(string(r)); err != nil {
			return nil, refuse(CodeBadExtension, "%s: %v", extRoles, err)
		}
		if i > 0 && roles[i-1] == r {
			return nil, refuse(CodeBadExtension, "%s: role %q stands twice", extRoles, r)
		}
	}
	return roles, nil
}

func decodeTraits(c *ssh.Certificate) (map[string][]string, error) {
	if _, ok := c.Extensions[extTraits]; !ok {
		return nil, nil //nolint:nilnil // a person without traits
	}
	var traits map[string][]string
	if err := decode(c, extTraits, &traits); err != nil {
		return nil, err
	}
	if len(traits) == 0 || len(traits) > maxTraits {
		return nil, refuse(CodeBadExtension, "%s: want 1 to %d traits", extTraits, maxTraits)
	}
	for name, values := range traits {
		if name == "" || !isText(name) || len(values) > maxTraitValues || !allTexts(values) {
			return nil, refuse(CodeBadExtension, "%s: trait %.80q is malformed", extTraits, name)
		}
	}
	return traits, nil
}

// decodeMethod reads the extension ext, the method of a second factor.
func decodeMethod(c *ssh.Certificate, ext string) (string, error) {
	if _, ok := c.Extensions[ext]; !ok {
		return "", nil
	}
	var method string
	if err := decode(c, ext, &method); err != nil {
		return "", err
	}
	if method == "" || len(method) > maxMFA || !isText(method) {
		return "", refuse(CodeBadExtension, "%s: method %.80q is malformed", ext, method)
	}
	return method, nil
}

func decodeKey(c *ssh.Certificate) (SecurityKey, error) {
	if _, ok := c.Extensions[extKey]; !ok {
		return "", nil
	}
	var k SecurityKey
	if err := decode(c, extKey, &k); err != nil {
		return "", err
	}
	if k != SecurityKeyTouch && k != SecurityKeyPIN {
		return "", refuse(CodeBadExtension, "%s: %.80q is unknown", extKey, string(k))
	}
	return k, nil
}

func decodeRequests(c *ssh.Certificate) ([]string, error) {
	if _, ok := c.Extensions[extReqs]; !ok {
		return nil, nil
	}
	var ids []string
	if err := decode(c, extReqs, &ids); err != nil {
		return nil, err
	}
	if len(ids) == 0 || len(ids) > maxRequests || !slices.IsSorted(ids) {
		return nil, refuse(CodeBadExtension, "%s: want a sorted list of 1 to %d", extReqs, maxRequests)
	}
	for i, id := range ids {
		if err := names.CheckRequestID(id); err != nil {
			return nil, refuse(CodeBadExtension, "%s: %v", extReqs, err)
		}
		if i > 0 && ids[i-1] == id {
			return nil, refuse(CodeBadExtension, "%s: %q stands twice", extReqs, id)
		}
	}
	return ids, nil
}

func decodeMember(c *ssh.Certificate) (names.NodeName, Kind, error) {
	var text string
	if err := decode(c, extName, &text); err != nil {
		return "", "", err
	}
	name, err := names.ParseNodeName(text)
	if err != nil {
		return "", "", refuse(CodeBadExtension, "%s: %v", extName, err)
	}
	var kind Kind
	if err := decode(c, extKind, &kind); err != nil {
		return "", "", err
	}
	if kind != KindNode && kind != KindProxy && kind != KindAuth {
		return "", "", refuse(CodeBadExtension, "%s: kind %.80q is unknown", extKind, string(kind))
	}
	return name, kind, nil
}

func allTexts(values []string) bool {
	return !slices.ContainsFunc(values, func(s string) bool { return !isText(s) })
}

// isText reports whether s is short, valid UTF-8 and free of control and format
// characters.
func isText(s string) bool {
	return len(s) <= maxTraitText && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool {
		return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp)
	}) < 0
}
