package web

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// clock is a clock that tests set.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func leaf(t *testing.T, c *Certificate) *x509.Certificate {
	t.Helper()
	cert, err := c.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

func TestSelfSignedIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	clk := &clock{time.Now()}
	cfg := CertificateConfig{Dir: dir, Names: []string{"proxy.example", "192.0.2.7"}, Now: clk.Now}
	first, err := NewCertificate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"proxy.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"} {
		if err := leaf(t, first).VerifyHostname(name); err != nil {
			t.Errorf("VerifyHostname(%q) = %v", name, err)
		}
	}
	for _, name := range []string{"tls.key", "tls.crt"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, fi.Mode().Perm())
		}
	}
	second, err := NewCertificate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !leaf(t, first).Equal(leaf(t, second)) {
		t.Error("a second start made another certificate")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("the directory holds %v, %v, want two files", entries, err)
	}

	clk.now = clk.now.Add(selfSignedTTL - renewBefore + time.Minute)
	if leaf(t, first).Equal(leaf(t, second)) {
		t.Error("the certificate was not renewed in time")
	}
	if end := leaf(t, first).NotAfter; end.Before(clk.now.Add(renewBefore)) {
		t.Errorf("the renewed certificate ends at %v", end)
	}
}

func TestSelfSignedIsMended(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"no key":            func(dir string) error { return os.Remove(filepath.Join(dir, "tls.key")) },
		"no certificate":    func(dir string) error { return os.Remove(filepath.Join(dir, "tls.crt")) },
		"half a key":        func(dir string) error { return os.Truncate(filepath.Join(dir, "tls.key"), 40) },
		"empty certificate": func(dir string) error { return os.Truncate(filepath.Join(dir, "tls.crt"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := NewCertificate(CertificateConfig{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			c, err := NewCertificate(CertificateConfig{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			leaf(t, c)
		})
	}
}

func TestFilesAreReloaded(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if _, err := NewCertificate(CertificateConfig{Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	clk := &clock{time.Now()}
	cfg := CertificateConfig{CertFile: filepath.Join(a, "tls.crt"), KeyFile: filepath.Join(a, "tls.key"), Now: clk.Now}
	c, err := NewCertificate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	old := leaf(t, c)

	replace := func(name string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(b, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(a, name), append(data, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		clk.now = clk.now.Add(lookEvery)
	}
	replace("tls.key") // the two do not match: the old pair is shown on
	if !leaf(t, c).Equal(old) {
		t.Error("half a replacement was taken")
	}
	replace("tls.crt")
	if leaf(t, c).Equal(old) {
		t.Error("the new pair was not taken")
	}
	if err := os.Remove(cfg.CertFile); err != nil {
		t.Fatal(err)
	}
	clk.now = clk.now.Add(lookEvery)
	if leaf(t, c) == nil {
		t.Error("no certificate is shown once the file is gone")
	}
}

func TestBadCertificateConfig(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]CertificateConfig{
		"nothing":        {},
		"no key file":    {CertFile: junk},
		"no certificate": {KeyFile: junk},
		"missing files":  {CertFile: filepath.Join(dir, "a"), KeyFile: filepath.Join(dir, "b")},
		"junk":           {CertFile: junk, KeyFile: junk},
		"too large":      {CertFile: huge, KeyFile: huge},
		"not a dir":      {Dir: junk},
	} {
		if c, err := NewCertificate(cfg); err == nil {
			t.Errorf("%s: NewCertificate = %v, nil, want an error", name, c)
		}
	}
}
