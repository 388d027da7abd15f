package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"regexp"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

const (
	// browserCookie holds a secret that stands for one browser. Its prefix keeps
	// anybody but this very host from setting it (RFC 6265bis, section 4.1.3.2).
	browserCookie = "__Host-accessd"
	// browserAge is how long a browser is the same, in seconds: longer than any
	// sign-in takes.
	browserAge = 3600
	// tokenField is the field in which a form carries its token.
	tokenField = "token"
	// maxForm bounds the body of a form, in bytes.
	maxForm = 64 << 10
)

// browserGrammar is what [names.NewSecret] makes.
var browserGrammar = regexp.MustCompile(`^[a-z2-7]{52}$`)

// A browser is known by a secret of its own, in a cookie. It is nobody's login:
// it says only that two requests came from one browser.
type browser string

// browserOf returns the browser that made r, if it has made itself known.
func browserOf(r *http.Request) (browser, bool) {
	c, err := r.Cookie(browserCookie)
	if err != nil || !browserGrammar.MatchString(c.Value) {
		return "", false
	}
	return browser(c.Value), true
}

// meet returns the browser that made r, which has the cookie from then on. The
// cookie comes along when another site leads the browser here, as a provider
// does at the end of a sign-in, and not with what another site's page sends.
func meet(w http.ResponseWriter, r *http.Request) browser {
	b, known := browserOf(r)
	if !known {
		b = browser(names.NewSecret())
	}
	http.SetCookie(w, &http.Cookie{
		Name: browserCookie, Value: string(b), Path: "/", MaxAge: browserAge,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	return b
}

// token returns what a form of path must carry. Another site can have a browser
// send a form, but can neither read the cookie nor make its token.
func (b browser) token(path string) string {
	mac := hmac.New(sha256.New, []byte(b))
	mac.Write([]byte("form " + path))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// secret returns what the authority knows a browser by; the cookie cannot be
// made from it.
func (b browser) secret() string {
	sum := sha256.Sum256([]byte("browser " + string(b)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sent checks that r is a form of one of our own pages, or made of the form of path
// by its script, and returns its browser.
func sent(w http.ResponseWriter, r *http.Request, path string) (browser, error) {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return "", fault.New(fault.Denied, "the form comes from another site: %w", err)
	}
	b, known := browserOf(r)
	if !known {
		return "", fault.New(fault.Denied, "the browser keeps no cookies").WithHint("allow cookies of this site and open the link again")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return "", fault.New(fault.BadInput, "the form cannot be read: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(r.PostForm.Get(tokenField)), []byte(b.token(path))) != 1 {
		return "", fault.New(fault.Denied, "the form is not one of ours").WithHint("open the link again")
	}
	return b, nil
}
