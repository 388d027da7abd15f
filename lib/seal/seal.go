// Package seal protects private keys and other secrets at rest.
//
// A [Sealer] turns a secret into bytes that only the same key opens, and only for
// the same purpose: the purpose is authenticated with the secret, so one sealed
// record cannot be put in another's place. The key is 32 random bytes in a file,
// or one that a key management service keeps (a gocloud.dev/secrets URL).
// Binaries that are built with the tags awskms and hashivault know those services.
//
// # Form
//
// Sealed data is an envelope: each secret has a fresh key of its own, which the
// service, or the file's key, wraps. So the service sees neither secrets nor
// their sizes.
//
//	byte    1                the version of this form
//	uint16  n                big endian
//	byte[n] wrapped key      as the service returns it
//	byte[]  nonce, secret    XChaCha20-Poly1305 with the purpose as
//	                         additional data
package seal

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"net/url"
	"strings"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/accessd/accessd/lib/fault"
)

// version is the first byte of sealed data.
const version = 1

// header is the length of what goes before the wrapped key.
const header = 3

// Sealer seals and unseals with one key. It is safe for concurrent use.
type Sealer struct {
	keeper *secrets.Keeper
	local  bool // the keeper asks no service
}

// Open returns a Sealer with the key that rawURL names or, when that is empty,
// with the key in keyFile, which is made when there is none.
func Open(ctx context.Context, rawURL, keyFile string) (*Sealer, error) {
	if rawURL != "" {
		return openURL(ctx, rawURL)
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, err
	}
	return &Sealer{keeper: localsecrets.NewKeeper(key), local: true}, nil
}

// openURL opens a service's key. A URL may hold the key itself, so errors name
// its scheme only.
func openURL(ctx context.Context, rawURL string) (*Sealer, error) {
	mux := secrets.DefaultURLMux()
	u, err := url.Parse(rawURL)
	if err != nil || !mux.ValidKeeperScheme(u.Scheme) {
		return nil, fault.New(fault.BadInput, "seal URL: want one that begins with %s://", strings.Join(mux.KeeperSchemes(), ":// or ")).
			WithHint("awskms:// and hashivault:// are in binaries that are built with these tags")
	}
	local := u.Scheme == localsecrets.Scheme
	if local && u.Host == "" {
		return nil, fault.New(fault.BadInput, "seal URL: %s:// without a key would make a new one at every start", u.Scheme)
	}
	keeper, err := mux.OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, fault.New(fault.BadInput, "seal URL: the key behind %s:// cannot be opened", u.Scheme)
	}
	return &Sealer{keeper: keeper, local: local}, nil
}

// Close ends the connection to the service.
func (s *Sealer) Close() error { return s.keeper.Close() }

// Seal returns plain so that only [Sealer.Unseal] with the same key and purpose
// returns it.
func (s *Sealer) Seal(ctx context.Context, purpose string, plain []byte) ([]byte, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key) // never fails
	wrapped, err := s.keeper.Encrypt(ctx, key)
	if err != nil {
		return nil, s.classify(ctx, "seal", err)
	}
	if len(wrapped) > 0xffff {
		return nil, fault.New(fault.Internal, "seal: the service wrapped a key into %d bytes", len(wrapped))
	}
	out := binary.BigEndian.AppendUint16([]byte{version}, uint16(len(wrapped)))
	out = append(out, wrapped...)
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	rand.Read(nonce) // never fails
	return newAEAD(key).Seal(append(out, nonce...), nonce, plain, additional(purpose)), nil
}

// Unseal returns what was sealed for purpose. Damaged data and another key or
// purpose are [fault.BadInput]; a service that is away is [fault.Unavailable].
func (s *Sealer) Unseal(ctx context.Context, purpose string, sealed []byte) ([]byte, error) {
	wrapped, box, ok := split(sealed)
	if !ok {
		return nil, fault.New(fault.BadInput, "unseal %q: the sealed data is damaged", purpose)
	}
	key, err := s.keeper.Decrypt(ctx, wrapped)
	if err != nil {
		return nil, s.classify(ctx, "unseal", err)
	}
	if len(key) != chacha20poly1305.KeySize {
		return nil, fault.New(fault.BadInput, "unseal %q: the sealed data is damaged", purpose)
	}
	nonce, box := box[:chacha20poly1305.NonceSizeX], box[chacha20poly1305.NonceSizeX:]
	plain, err := newAEAD(key).Open(nil, nonce, box, additional(purpose))
	if err != nil {
		return nil, fault.New(fault.BadInput, "unseal %q: the sealed data is damaged or was sealed for something else", purpose)
	}
	return plain, nil
}

// split takes sealed data apart. The box is at least a nonce and a tag.
func split(sealed []byte) (wrapped, box []byte, ok bool) {
	if len(sealed) < header || sealed[0] != version {
		return nil, nil, false
	}
	n := header + int(binary.BigEndian.Uint16(sealed[1:]))
	if len(sealed) < n+chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return nil, nil, false
	}
	return sealed[header:n], sealed[n:], true
}

func newAEAD(key []byte) cipher.AEAD {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic("seal: internal error: " + err.Error()) // the key's length is right
	}
	return aead
}

// additional is what is authenticated beside the secret.
func additional(purpose string) []byte { return []byte("accessd seal\x00" + purpose) }

// classify tells a wrong key from a service that does not answer.
func (s *Sealer) classify(ctx context.Context, act string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	wrong := s.local
	switch gcerrors.Code(err) { //nolint:exhaustive // the others may pass
	case gcerrors.NotFound, gcerrors.InvalidArgument, gcerrors.FailedPrecondition, gcerrors.PermissionDenied:
		wrong = true
	}
	if wrong {
		return fault.Wrap(fault.BadInput, err, act+": this is not the key it was sealed with").
			WithHint("give the seal key this cluster was made with")
	}
	return fault.Wrap(fault.Unavailable, err, act+": the key management service does not answer")
}
