package auth

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestTOTPVectors takes the SHA-1 vectors of RFC 6238, appendix B, of which
// people type the last six digits.
func TestTOTPVectors(t *testing.T) {
	key := totpKey("12345678901234567890")
	for _, c := range []struct {
		unix int64
		code string
	}{
		{59, "287082"}, {1111111109, "081804"}, {1111111111, "050471"}, {1234567890, "005924"}, {2000000000, "279037"},
	} {
		step, ok := key.match(c.code, time.Unix(c.unix, 0))
		if !ok || step != c.unix/30 {
			t.Errorf("at %d: match(%q) = %d, %v, want step %d", c.unix, c.code, step, ok, c.unix/30)
		}
	}
}

// TestTOTPWindow: a code is good in its own step and one to either side, which
// is what a clock may be off, and no further (F06).
func TestTOTPWindow(t *testing.T) {
	key := totpKey("12345678901234567890")
	const code, step = "005924", 1234567890 / 30
	for off := int64(-4); off <= 4; off++ {
		got, ok := key.match(code, time.Unix((step+off)*30, 0))
		if want := off >= -1 && off <= 1; ok != want {
			t.Errorf("%d steps off: match = %v, want %v", off, ok, want)
		} else if ok && got != step {
			t.Errorf("%d steps off: step %d, want %d", off, got, int64(step))
		}
	}
}

func TestTOTPCodeForm(t *testing.T) {
	key := totpKey("12345678901234567890")
	for _, c := range []struct {
		code string
		want bool
	}{
		{" 005 924\n", true}, {"5924", false}, {"0005924", false}, {"", false}, {"-05924", false}, {"００５９２４", false}, {"005925", false},
	} {
		if _, ok := key.match(c.code, time.Unix(1234567890, 0)); ok != c.want {
			t.Errorf("match(%q) = %v, want %v", c.code, ok, c.want)
		}
	}
}

func TestTOTPPoster(t *testing.T) {
	key := newTOTPKey()
	u, err := url.Parse(key.uri("example", "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if got := u.Query().Get("secret"); u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/example:alice" || got != key.base32() {
		t.Errorf("uri = %q", u)
	}
	poster := key.poster("example", "alice")
	if !strings.Contains(poster, "\n"+key.base32()+"\n") {
		t.Error("the poster lacks the secret for those who cannot scan")
	}
	qr, _, _ := strings.Cut(poster, "Scan")
	if lines := strings.Split(strings.TrimSpace(qr), "\n"); len(lines) < 15 {
		t.Errorf("the QR code has %d lines", len(lines))
	}
	if bad := strings.Trim(qr, "█▀▄ \n"); bad != "" {
		t.Errorf("the QR code holds %q, which is no half block", bad)
	}
}
