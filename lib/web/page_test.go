package web

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestPageEscapesAndIsStrict(t *testing.T) {
	p, err := newPages(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	p.show(w, page{status: 403, name: "message", title: "<b>no</b>", data: message{Text: `"><script>alert(1)</script>`}})
	body := w.Body.String()
	if w.Code != 403 || strings.Contains(body, "<script") || strings.Contains(body, "<b>") {
		t.Errorf("show = %d %s", w.Code, body)
	}
	csp := w.Header().Get("Content-Security-Policy")
	for _, bad := range []string{"unsafe", "http", "*", "script-src"} {
		if strings.Contains(csp, bad) {
			t.Errorf("policy %q has %q in it", csp, bad)
		}
	}
	if strings.Contains(body, "http://") || strings.Contains(body, "https://") || strings.Contains(body, `="//`) {
		t.Errorf("the page takes something from elsewhere: %s", body)
	}
}

// A form counts only from our own page in the same browser: not from another
// site, not without the cookie, not with the token of another page or browser.
func TestFormsOfOthersAreRefused(t *testing.T) {
	const path = "/sso"
	w := httptest.NewRecorder()
	b := meet(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	cookie := w.Result().Cookies()[0]
	if !cookie.Secure || !cookie.HttpOnly || cookie.Path != "/" || cookie.Domain != "" || !strings.HasPrefix(cookie.Name, "__Host-") {
		t.Errorf("cookie = %+v", cookie)
	}
	other := meet(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	for name, row := range map[string]struct {
		token  string
		bare   bool              // without the cookie
		header map[string]string // what a browser says of where it comes from
		want   bool
	}{
		"ours":                  {token: b.token(path), want: true},
		"ours, says the origin": {token: b.token(path), header: map[string]string{"Sec-Fetch-Site": "same-origin"}, want: true},
		"another site":          {token: b.token(path), header: map[string]string{"Sec-Fetch-Site": "cross-site"}},
		"a neighbour":           {token: b.token(path), header: map[string]string{"Sec-Fetch-Site": "same-site"}},
		"another origin":        {token: b.token(path), header: map[string]string{"Origin": "https://evil.example"}},
		"no token":              {},
		"another page's token":  {token: b.token("/sso/other")},
		"another browser's":     {token: other.token(path)},
		"no cookie":             {token: b.token(path), bare: true},
		"an endless form":       {token: b.token(path) + "&x=" + strings.Repeat("x", maxForm)},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(tokenField+"="+row.token))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			for k, v := range row.header {
				r.Header.Set(k, v)
			}
			if !row.bare {
				r.AddCookie(cookie)
			}
			got, err := sent(httptest.NewRecorder(), r, r.URL.Path)
			if (err == nil) != row.want || (row.want && got != b) {
				t.Errorf("sent = %v, %v", got == b, err)
			}
		})
	}
	if b.secret() == string(b) || strings.Contains(url.QueryEscape(b.secret()), string(b)) {
		t.Error("the authority is told the cookie")
	}
}
