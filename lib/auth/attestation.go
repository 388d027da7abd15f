package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/passkey"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// An attestation is what the maker of an authenticator says of a key at the moment
// when it is made: a certificate of the maker's, whose key has signed what the
// authenticator tells of the new one and a challenge of ours. It is the "packed"
// form (WebAuthn level 2, section 8.2), as ssh-keygen writes it down (OpenSSH
// PROTOCOL.u2f, "ssh-sk-attest-v01"). That of U2F devices is another, which names
// no model, and is refused like everything else.
type attestation struct {
	cert      *x509.Certificate
	signature []byte
	data      []byte // what the authenticator tells, as it is signed

	model  []byte // AAGUID
	aaguid string // the same as a UUID
	pin    bool   // the key signs for nobody whom it has not verified
}

const (
	attestMagic = "ssh-sk-attest-v01"
	// maxAttestation bounds an attestation, in bytes. Most have 1 to 2 KiB.
	maxAttestation = 16 << 10
	// maxChallenge bounds a challenge, in bytes.
	maxChallenge = 1 << 10
	// challengeTTL is how long a challenge is good: it is sent to a person, who has
	// to find their key.
	challengeTTL = 24 * time.Hour
)

// fidoAAGUID is the certificate's extension with the model (section 8.2.1).
var fidoAAGUID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 45724, 1, 1, 4} //nolint:gochecknoglobals // a constant of a type that has none

// parseAttestation reads what ssh-keygen wrote of key, a security key. Nothing of
// it is proven until verify says so.
func parseAttestation(b []byte, key ssh.PublicKey) (*attestation, error) {
	if len(b) > maxAttestation {
		return nil, fmt.Errorf("it has %d bytes, want at most %d", len(b), maxAttestation)
	}
	var w struct {
		Magic                        string
		Certificate, Signature, Data []byte
		Flags                        uint32
		Reserved                     []byte
	}
	if err := ssh.Unmarshal(b, &w); err != nil || w.Magic != attestMagic {
		return nil, errors.New("want the file that ssh-keygen -O write-attestation writes (" + attestMagic + ")")
	}
	if len(w.Certificate) == 0 {
		return nil, errors.New("no maker vouches for the key: the authenticator attests itself")
	}
	a := &attestation{signature: w.Signature}
	var err error
	if a.cert, err = x509.ParseCertificate(w.Certificate); err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	r := &cborReader{rest: w.Data} // libfido2 has the data in a byte string
	wrapped, err := r.value(0)
	data, ok := wrapped.([]byte)
	if err != nil || !ok || len(r.rest) > 0 {
		return nil, errors.New("its authenticator data is malformed")
	}
	a.data = data
	return a, a.read(key)
}

// read reads the authenticator data (WebAuthn level 2, sections 6.1 and 6.5.1)
// and holds it against key.
func (a *attestation) read(key ssh.PublicKey) error {
	malformed := errors.New("its authenticator data is malformed")
	want, application, err := coseOf(key)
	if err != nil {
		return err
	}
	d, ok := passkey.ParseData(a.data)
	model, _, made, hasKey := d.NewKey()
	sum := sha256.Sum256([]byte(application))
	switch {
	case !ok:
		return malformed
	case !bytes.Equal(d.Hash, sum[:]):
		return errors.New("it is for another application than the key")
	case !d.Present():
		return errors.New("nobody touched the authenticator when the key was made")
	case !hasKey:
		return malformed
	}
	r := &cborReader{rest: made}
	cose, err := r.mapping()
	if err != nil {
		return malformed
	}
	for label, v := range want {
		if got, ok := cose[label]; !ok || !sameValue(got, v) {
			return errors.New("it is of another key")
		}
	}
	if d.Extended() {
		extensions, err := r.mapping()
		if err != nil {
			return malformed
		}
		const required = 3 // userVerificationRequired (CTAP 2.1, section 12.1)
		a.pin = extensions["credProtect"] == int64(required)
	}
	if len(r.rest) > 0 {
		return malformed
	}
	a.model, a.aaguid = model, uuid.UUID(model).String()
	return nil
}

func sameValue(a, b any) bool {
	x, isBytes := a.([]byte)
	y, areBytes := b.([]byte)
	if isBytes || areBytes {
		return isBytes && areBytes && bytes.Equal(x, y)
	}
	return a == b
}

// coseOf returns the parts of key as an authenticator names them (RFC 9053,
// section 7), and the application it is for.
func coseOf(key ssh.PublicKey) (cose map[any]any, application string, err error) {
	c, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil, "", errors.New("the key is no security key")
	}
	const kty, alg, crv, x, y = int64(1), int64(3), int64(-1), int64(-2), int64(-3)
	switch k := c.CryptoPublicKey().(type) {
	case ed25519.PublicKey:
		var w struct{ Type, Key, Application string }
		err = ssh.Unmarshal(key.Marshal(), &w)
		return map[any]any{kty: int64(1), alg: int64(-8), crv: int64(6), x: []byte(k)}, w.Application, err
	case *ecdsa.PublicKey:
		var w struct{ Type, Curve, Key, Application string }
		if err = ssh.Unmarshal(key.Marshal(), &w); err != nil {
			return nil, "", err
		}
		point, err := k.Bytes()
		if err != nil || len(point) != 65 {
			return nil, "", errors.New("the key is malformed")
		}
		return map[any]any{kty: int64(2), alg: int64(-7), crv: int64(1), x: point[1:33], y: point[33:]}, w.Application, nil
	}
	return nil, "", errors.New("the key is no security key")
}

// verify checks that one of makers has signed a for the challenge (section 8.2.1).
func (a *attestation) verify(makers *x509.CertPool, challenge []byte, now time.Time) error {
	if a.cert.IsCA || !slices.Contains(a.cert.Subject.OrganizationalUnit, "Authenticator Attestation") {
		return errors.New("its certificate is not one for attestation")
	}
	for _, e := range a.cert.Extensions {
		if !e.Id.Equal(fidoAAGUID) {
			continue
		}
		var model []byte
		if rest, err := asn1.Unmarshal(e.Value, &model); err != nil || len(rest) > 0 || !bytes.Equal(model, a.model) {
			return errors.New("its certificate is of another model")
		}
	}
	opts := x509.VerifyOptions{Roots: makers, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := a.cert.Verify(opts); err != nil {
		return fmt.Errorf("its certificate is of no maker that counts: %w", err)
	}
	algorithm := x509.ECDSAWithSHA256
	switch a.cert.PublicKeyAlgorithm { //nolint:exhaustive // the rest is refused by the check
	case x509.Ed25519:
		algorithm = x509.PureEd25519
	case x509.RSA:
		algorithm = x509.SHA256WithRSA
	}
	sum := sha256.Sum256(challenge)
	if err := a.cert.CheckSignature(algorithm, slices.Concat(a.data, sum[:]), a.signature); err != nil {
		return errors.New("it is not signed, or for another challenge")
	}
	return nil
}

// challenge is what a security key is made with; it is sealed, and kept only once it
// was used.
type challenge struct {
	Nonce   string    `json:"nonce"`
	Expires time.Time `json:"expires"`
}

func challengePurpose(user names.UserName) string { return "key challenge/" + string(user) }

// newChallenge returns a challenge for a key of user.
func (a *Authority) newChallenge(ctx context.Context, user names.UserName) ([]byte, time.Time, error) {
	c := challenge{names.NewSecret(), a.cfg.Now().Add(challengeTTL).UTC()}
	plain, err := json.Marshal(c)
	if err != nil {
		return nil, time.Time{}, err
	}
	sealed, err := a.cfg.Sealer.Seal(ctx, challengePurpose(user), plain)
	return []byte(base64.RawURLEncoding.EncodeToString(sealed)), c.Expires, err
}

// checkChallenge returns the challenge for a key of user that text is, of lately and
// not used yet.
func (a *Authority) checkChallenge(ctx context.Context, user names.UserName, text []byte) (services.KeyChallenge, error) {
	bad := fault.New(fault.Denied, "the challenge is none that was given out for this user")
	if len(text) > maxChallenge {
		return services.KeyChallenge{}, bad
	}
	sealed, err := base64.RawURLEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return services.KeyChallenge{}, bad
	}
	plain, err := a.cfg.Sealer.Unseal(ctx, challengePurpose(user), sealed)
	if err != nil {
		return services.KeyChallenge{}, bad
	}
	var c challenge
	if err := json.Unmarshal(plain, &c); err != nil {
		return services.KeyChallenge{}, bad
	}
	if !a.cfg.Now().Before(c.Expires) {
		return services.KeyChallenge{}, fault.New(fault.Denied, "the challenge has expired")
	}
	// Not of the text: the same may be written in several ways.
	used := services.KeyChallenge{ID: hashSecret("key challenge " + c.Nonce), Expires: c.Expires}
	return used, a.cfg.Store.CheckKeyChallenge(ctx, user, used)
}

// attest notes in k, a key that is to be enrolled for user, what its maker says of
// it in m, and refuses a security key that does not count. It returns the challenge
// that the key was made with, nil of a key without an attestation.
func (a *Authority) attest(ctx context.Context, user names.UserName, k *services.UserKey, m *accessdv1.AddUserKeyRequest) (*services.KeyChallenge, error) {
	text, challenge := m.GetAttestation(), m.GetChallenge()
	key, err := parseKeyLine(k.Public)
	if err != nil {
		return nil, err
	}
	settings, err := a.cfg.Store.Authenticators(ctx)
	if err != nil {
		return nil, err
	}
	refuse := func(why string) (*services.KeyChallenge, error) {
		return nil, fault.New(fault.Denied, "the attestation of key %s is refused: %s", k.Fingerprint, why)
	}
	switch {
	case !services.IsSecurityKey(key) && len(text) > 0:
		return nil, fault.New(fault.BadInput, "key %s is no security key, and has no attestation", k.Fingerprint)
	case !services.IsSecurityKey(key) || !settings.Set() && len(text) == 0:
		return nil, nil //nolint:nilnil // as documented
	case !settings.Set():
		return nil, fault.New(fault.Conflict, "it is not said whose attestations count").WithHint("\"accessd users authenticators set\" says it")
	case len(text) == 0:
		return nil, fault.New(fault.Denied, "security key %s has no attestation", k.Fingerprint).
			WithHint("make it with \"ssh-keygen -O challenge=FILE -O write-attestation=FILE\"; \"accessd users keys challenge %s\" prints a challenge", user)
	}
	att, err := parseAttestation(text, key)
	if err != nil {
		return refuse(err.Error())
	}
	made, err := a.checkChallenge(ctx, user, challenge)
	if fault.Is(err, fault.Denied) {
		return refuse(fault.Public(err))
	}
	if err != nil {
		return nil, err
	}
	makers, err := settings.Makers()
	if err != nil {
		return nil, err
	}
	if err := att.verify(makers, challenge, a.cfg.Now()); err != nil {
		return refuse(err.Error())
	}
	if !settings.TakeModel(att.aaguid) {
		return refuse("model " + att.aaguid + " is not among those that count")
	}
	k.AAGUID, k.PIN = att.aaguid, att.pin
	return &made, nil
}

// securityKey returns what counts of key, with which user signs.
func (a *Authority) securityKey(ctx context.Context, user names.UserName, key ssh.PublicKey) (sshca.SecurityKey, error) {
	if !services.IsSecurityKey(key) {
		return "", nil
	}
	u, err := a.cfg.Store.User(ctx, user)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return "", err
	}
	return a.securityKeyOf(ctx, u, key)
}

// securityKeyOf is securityKey for who has read the user.
func (a *Authority) securityKeyOf(ctx context.Context, u services.User, key ssh.PublicKey) (sshca.SecurityKey, error) {
	if !services.IsSecurityKey(key) {
		return "", nil
	}
	settings, err := a.cfg.Store.Authenticators(ctx)
	if err != nil {
		return "", err
	}
	k, _ := u.SecurityKey(ssh.FingerprintSHA256(key))
	switch {
	case !settings.Take(k):
		return "", nil
	case k.PIN:
		return sshca.SecurityKeyPIN, nil
	}
	return sshca.SecurityKeyTouch, nil
}
