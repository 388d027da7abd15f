package seal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	"golang.org/x/sync/errgroup"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/seal"
)

func open(t testing.TB, url, file string) *seal.Sealer {
	t.Helper()
	s, err := seal.Open(t.Context(), url, file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

func sealed(t testing.TB, s *seal.Sealer, purpose, plain string) []byte {
	t.Helper()
	box, err := s.Seal(t.Context(), purpose, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func TestRoundTrip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys", "seal.key")
	url := "base64key://" + base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	for name, reopen := range map[string]func() *seal.Sealer{
		"file": func() *seal.Sealer { return open(t, "", file) },
		"url":  func() *seal.Sealer { return open(t, url, "") },
	} {
		t.Run(name, func(t *testing.T) {
			for _, plain := range []string{"", "secret", strings.Repeat("x", 1<<16)} {
				box := sealed(t, reopen(), "ca/user", plain)
				if plain != "" && bytes.Contains(box, []byte(plain)) {
					t.Error("the sealed data holds the secret")
				}
				got, err := reopen().Unseal(t.Context(), "ca/user", box)
				if err != nil || string(got) != plain {
					t.Errorf("Unseal = %.20q, %v, want %.20q", got, err, plain)
				}
			}
		})
	}
}

func TestSealingTwiceDiffers(t *testing.T) {
	s := open(t, "", filepath.Join(t.TempDir(), "key"))
	if bytes.Equal(sealed(t, s, "p", "secret"), sealed(t, s, "p", "secret")) {
		t.Error("two seals of one secret are the same")
	}
}

// Disk thief: a record that is put in another's place, or opened with another
// key, fails closed.
func TestUnsealRefuses(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, "", filepath.Join(dir, "a")), open(t, "", filepath.Join(dir, "b"))
	box := sealed(t, s, "ca/user", "secret")
	cases := []struct {
		name    string
		sealer  *seal.Sealer
		purpose string
		box     []byte
		want    string
	}{
		{"other purpose", s, "ca/host", box, "for something else"},
		{"other key", other, "ca/user", box, "not the key it was sealed with"},
		{"nothing", s, "ca/user", nil, "damaged"},
		{"other version", s, "ca/user", append([]byte{2}, box[1:]...), "damaged"},
		{"length beyond the end", s, "ca/user", append([]byte{1, 0xff, 0xff}, box[3:]...), "damaged"},
		{"appended to", s, "ca/user", append(bytes.Clone(box), 0), "damaged"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.sealer.Unseal(t.Context(), c.purpose, c.box)
			if got != nil || !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Unseal = %q, %v, want bad input about %q", got, err, c.want)
			}
		})
	}
	for i := range box {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if got, err := s.Unseal(t.Context(), "ca/user", bad); err == nil {
			t.Errorf("Unseal with byte %d changed = %q, want an error", i, got)
		}
		if got, err := s.Unseal(t.Context(), "ca/user", box[:i]); err == nil {
			t.Errorf("Unseal of the first %d bytes = %q, want an error", i, got)
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, make([]byte, size), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, c := range []struct{ name, file, want string }{
		{"readable by others", write("open", 32, 0o644), "others may read it"},
		{"short", write("short", 31, 0o600), "31 bytes"},
		{"long", write("long", 33, 0o600), "33 bytes"},
		{"directory", dir, "others may read it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := seal.Open(t.Context(), "", c.file); !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open = %v, want bad input about %q", err, c.want)
			}
		})
	}
	t.Run("made", func(t *testing.T) {
		file := filepath.Join(dir, "new", "seal.key")
		open(t, "", file)
		info, err := os.Stat(file)
		if err != nil || info.Mode() != 0o600 || info.Size() != 32 {
			t.Errorf("the key file is %+v, %v, want 32 bytes of mode 0600", info, err)
		}
		entries, err := os.ReadDir(filepath.Dir(file))
		if err != nil || len(entries) != 1 {
			t.Errorf("beside the key there are %v, %v, want nothing", entries, err)
		}
	})
}

// Two authorities that start at once on one directory get one key.
func TestKeyFileRace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	const openers = 8
	var boxes [openers][]byte
	var g errgroup.Group
	for i := range openers {
		g.Go(func() error {
			s, err := seal.Open(t.Context(), "", file)
			if err != nil {
				return err
			}
			boxes[i], err = s.Seal(t.Context(), "p", []byte("secret"))
			return errors.Join(err, s.Close())
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s := open(t, "", file)
	for i, box := range boxes {
		if _, err := s.Unseal(t.Context(), "p", box); err != nil {
			t.Errorf("opener %d had another key: %v", i, err)
		}
	}
}

func TestURLRefusalsHoldNoKey(t *testing.T) {
	const secret = "c2VjcmV0a2V5"
	for _, c := range []struct{ url, want string }{
		{"base64key://", "at every start"},
		{"base64key://" + secret, "cannot be opened"},
		{"base64key://" + secret + "?x=y", "cannot be opened"},
		{"base64ky://" + secret, "want one that begins with"},
		{"%" + secret, "want one that begins with"},
	} {
		_, err := seal.Open(t.Context(), c.url, "")
		if !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%q) = %v, want bad input about %q", c.url, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("Open(%q) = %v, which tells the key", c.url, err)
		}
	}
}

// service is a key management service that may be away or refuse.
type service struct{ err error }

func (s *service) Encrypt(_ context.Context, b []byte) ([]byte, error) { return b, s.err }
func (s *service) Decrypt(_ context.Context, b []byte) ([]byte, error) { return b, s.err }
func (s *service) Close() error                                        { return nil }
func (s *service) ErrorAs(error, any) bool                             { return false }
func (s *service) ErrorCode(error) gcerrors.ErrorCode {
	if errors.Is(s.err, os.ErrPermission) {
		return gcerrors.PermissionDenied
	}
	return gcerrors.Unknown
}

func (s *service) OpenKeeperURL(context.Context, *url.URL) (*secrets.Keeper, error) {
	return secrets.NewKeeper(s), nil
}

// kms is the service behind testkms:// URLs; a scheme is registered once.
var kms = func() *service {
	s := &service{}
	secrets.DefaultURLMux().RegisterKeeper("testkms", s)
	return s
}()

func TestServiceFailures(t *testing.T) {
	t.Cleanup(func() { kms.err = nil })
	s := open(t, "testkms://key", "")
	box := sealed(t, s, "p", "secret")
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{os.ErrDeadlineExceeded, fault.Unavailable},
		{os.ErrPermission, fault.BadInput},
	} {
		kms.err = c.err
		if _, err := s.Unseal(t.Context(), "p", box); !fault.Is(err, c.want) {
			t.Errorf("Unseal while the service says %v = %v, want %v", c.err, err, c.want)
		}
		if _, err := s.Seal(t.Context(), "p", nil); !fault.Is(err, c.want) {
			t.Errorf("Seal while the service says %v = %v, want %v", c.err, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Unseal(ctx, "p", box); !errors.Is(err, context.Canceled) {
		t.Errorf("Unseal = %v, want the caller's cancellation", err)
	}
}

func FuzzUnseal(f *testing.F) {
	s := open(f, "base64key://"+base64.URLEncoding.EncodeToString(make([]byte, 32)), "")
	box := sealed(f, s, "p", "secret")
	f.Add(box)
	f.Add(box[:40])
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		// Seeds come from several processes, which sealed the same secret.
		if plain, err := s.Unseal(t.Context(), "p", data); err == nil && string(plain) != "secret" {
			t.Errorf("Unseal(%x) = %q, want a refusal of what was not sealed", data, plain)
		}
	})
}
