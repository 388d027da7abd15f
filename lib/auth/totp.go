package auth

import (
	"crypto/subtle"
	"encoding/base32"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"

	"github.com/accessd/accessd/lib/names"
)

// Time-based one-time passwords (RFC 6238) with the figures that every
// authenticator app knows: SHA-1, six digits, 30 seconds.
const (
	totpStep   = 30 // seconds (RFC 6238, section 5.2)
	totpSkew   = 1  // steps before and after now that are taken (section 5.2)
	totpSecret = 20 // bytes (RFC 4226, section 4, R6)
)

var totpGrammar = regexp.MustCompile(`^[0-9]{6}$`)

// A totpKey is the shared secret of one person's authenticator.
type totpKey []byte

func newTOTPKey() totpKey { return randomBytes(totpSecret) }

// match returns the time step that code is for, near now. Which steps a person
// has used already is not its concern.
func (k totpKey) match(code string, now time.Time) (step int64, ok bool) {
	code = strings.ReplaceAll(strings.TrimSpace(code), " ", "")
	if !totpGrammar.MatchString(code) {
		return 0, false
	}
	current := now.Unix() / totpStep
	for s := current - totpSkew; s <= current+totpSkew; s++ {
		want, err := hotp.GenerateCodeCustom(k.base32(), uint64(s), hotp.ValidateOpts{Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1})
		if err == nil && subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = s, true
		}
	}
	return step, ok
}

// base32 returns the secret as people type it into an app.
func (k totpKey) base32() string {
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(k)
}

// uri returns the secret as apps read it from a QR code (Key URI Format of
// Google Authenticator).
func (k totpKey) uri(cluster string, user names.UserName) string {
	q := url.Values{"secret": {k.base32()}, "issuer": {cluster}}
	u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + cluster + ":" + string(user), RawQuery: strings.ReplaceAll(q.Encode(), "+", "%20")}
	return u.String()
}

// poster returns what a person is shown to set up an app: a QR code in half
// blocks, which any terminal with UTF-8 draws, and the secret for all others.
func (k totpKey) poster(cluster string, user names.UserName) string {
	var b strings.Builder
	qrterminal.GenerateWithConfig(k.uri(cluster, user), qrterminal.Config{
		Level: qrterminal.L, Writer: &b, HalfBlocks: true, QuietZone: 2,
		BlackChar: qrterminal.BLACK_BLACK, WhiteChar: qrterminal.WHITE_WHITE,
		BlackWhiteChar: qrterminal.BLACK_WHITE, WhiteBlackChar: qrterminal.WHITE_BLACK,
	})
	b.WriteString("Scan this with an authenticator app, or type the secret into it:\n")
	b.WriteString(k.base32() + "\n")
	return b.String()
}
