package recording

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// sealer makes what is stored of a part's frames. It is safe for concurrent use.
type sealer struct {
	encoder    *zstd.Encoder
	recipients func() []string
}

// window is how far back compression looks, in bytes; it decides what an encoder
// and a decoder hold.
const window = 256 << 10

// encoders is how many parts are compressed at once; each holds about 1 MB.
const encoders = 2

func newSealer(recipients func() []string) (*sealer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(encoders),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	if recipients == nil {
		recipients = func() []string { return nil }
	}
	return &sealer{encoder: enc, recipients: recipients}, nil
}

// seal returns frames as they are stored.
func (s *sealer) seal(frames []byte) (stored []byte, sealed bool, err error) {
	stored = s.encoder.EncodeAll(frames, nil)
	lines := s.recipients()
	if len(lines) == 0 {
		return stored, false, nil
	}
	recipients := make([]age.Recipient, 0, len(lines))
	for _, line := range lines {
		r, err := ParseRecipient(line)
		if err != nil {
			return nil, false, err
		}
		recipients = append(recipients, r)
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, recipients...)
	if err == nil {
		_, err = w.Write(stored)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, false, fault.Wrap(fault.Internal, err, "cannot seal a part of a recording")
	}
	return buf.Bytes(), true, nil
}

// ParseRecipient returns for whom recordings are sealed: "age1…", or a line as in
// an authorized_keys file of an ssh-ed25519 or ssh-rsa key.
func ParseRecipient(line string) (age.Recipient, error) {
	line = strings.TrimSpace(line)
	var r age.Recipient
	var err error
	if strings.HasPrefix(line, "ssh-") {
		r, err = agessh.ParseRecipient(line)
	} else {
		r, err = age.ParseX25519Recipient(line)
	}
	if err != nil {
		return nil, fault.Wrap(fault.BadInput, err, "a recipient of recordings is not an X25519 (age1…), ssh-ed25519 or ssh-rsa public key")
	}
	return r, nil
}

// ParseIdentities returns the identities in file: an age identity file, or an SSH
// private key. passphrase is asked, when it is not nil, once a part is met that a
// protected SSH key opens.
func ParseIdentities(file []byte, passphrase func() ([]byte, error)) ([]age.Identity, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(file), []byte("-----BEGIN")) {
		ids, err := age.ParseIdentities(bytes.NewReader(file))
		if err != nil {
			return nil, fault.Wrap(fault.BadInput, err, "the identity file holds neither age identities nor an SSH private key")
		}
		return ids, nil
	}
	id, err := agessh.ParseIdentity(file)
	if missing, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		switch {
		case passphrase == nil:
			return nil, fault.New(fault.BadInput, "the identity's SSH key has a passphrase")
		case missing.PublicKey == nil:
			return nil, fault.New(fault.BadInput, "the identity's SSH key has an old protected form").
				WithHint("ssh-keygen -p -f FILE brings it into the new one")
		}
		id, err = agessh.NewEncryptedSSHIdentity(missing.PublicKey, file, passphrase)
	}
	if err != nil {
		return nil, fault.Wrap(fault.BadInput, err, "the identity is not an ssh-ed25519 or ssh-rsa private key")
	}
	return []age.Identity{id}, nil
}

// agePrefix is what a sealed part begins with (C2SP age, "header").
const agePrefix = "age-encryption.org/v1\n"

// IsSealed reports whether an identity is needed to open a part as stored.
func IsSealed(part []byte) bool { return bytes.HasPrefix(part, []byte(agePrefix)) }

// unseal returns the frames of a part as stored. Beside an error it returns what
// came before it.
func unseal(part []byte, ids []age.Identity) ([]byte, error) {
	var r io.Reader = bytes.NewReader(part)
	if IsSealed(part) {
		if len(ids) == 0 {
			return nil, fault.New(fault.Denied, "the recording is sealed").WithHint("give the identity of one of its recipients with --identity FILE")
		}
		if _, err := age.ExtractHeader(bytes.NewReader(part)); err != nil {
			return nil, fault.Wrap(fault.BadInput, err, "a sealed part of the recording is damaged")
		}
		plain, err := age.Decrypt(r, ids...)
		if _, none := errors.AsType[*age.NoIdentityMatchError](err); err != nil && !none { // a passphrase that was not given, or is wrong
			return nil, fault.Wrap(fault.Denied, err, "the recording cannot be opened: "+err.Error())
		}
		if err != nil {
			return nil, fault.Wrap(fault.Denied, err, "no identity given opens the recording")
		}
		r = plain
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read a part of the recording")
	}
	defer z.Close()
	frames, err := io.ReadAll(io.LimitReader(z, partBytes+1))
	switch {
	case len(frames) > partBytes:
		return nil, fault.New(fault.BadInput, "a part of the recording holds more than %d bytes", partBytes)
	case err != nil:
		return frames, fault.Wrap(fault.BadInput, err, "a part of the recording is damaged")
	}
	return frames, nil
}

// maxWindow bounds the memory that a part's compression may ask for. Parts are
// made with a window of 256 KiB at most; a decoder needs 1 KiB.
const maxWindow = 1 << 20
