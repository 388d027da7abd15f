package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
)

// fakeSignOn is an authority with one sign-in under way; it notes what it is
// asked.
type fakeSignOn struct {
	accessdv1connect.SignOnServiceClient // what no page asks

	err      error
	confirms []*accessdv1.ConfirmRequest
	finishes []*accessdv1.FinishRequest
	onward   string
}

func (f *fakeSignOn) Show(_ context.Context, r *connect.Request[accessdv1.ShowRequest]) (*connect.Response[accessdv1.ShowResponse], error) {
	if f.err != nil || r.Msg.GetLink() != "the-link" {
		return nil, fault.New(fault.NotFound, "this link is not, or no longer, good").WithHint("begin again in the terminal")
	}
	return connect.NewResponse(&accessdv1.ShowResponse{
		Cluster: "<i>one</i>", User: "alice", Connector: "corp", Fingerprint: "SHA256:abc", Client: "[2001:db8::7]:1", Code: true,
	}), nil
}

func (f *fakeSignOn) Confirm(_ context.Context, r *connect.Request[accessdv1.ConfirmRequest]) (*connect.Response[accessdv1.ConfirmResponse], error) {
	f.confirms = append(f.confirms, r.Msg)
	if r.Msg.GetCode() != "BCDF-GHJK" {
		return nil, fault.New(fault.BadInput, "that is not the code your terminal shows")
	}
	return connect.NewResponse(&accessdv1.ConfirmResponse{Url: "https://id.example/authorize?a=b&c=d"}), nil
}

func (f *fakeSignOn) Finish(_ context.Context, r *connect.Request[accessdv1.FinishRequest]) (*connect.Response[accessdv1.FinishResponse], error) {
	f.finishes = append(f.finishes, r.Msg)
	return connect.NewResponse(&accessdv1.FinishResponse{User: "alice", Fingerprint: "SHA256:abc", Onward: f.onward}), f.err
}

// A tab is a browser's, with its cookies.
type tab struct {
	t       *testing.T
	s       *Server
	cookies []*http.Cookie
}

func openTab(t *testing.T, f *fakeSignOn) *tab {
	t.Helper()
	s, err := New(Config{SignOn: f})
	if err != nil {
		t.Fatal(err)
	}
	return &tab{t: t, s: s}
}

func (b *tab) do(method, path string, form url.Values) *httptest.ResponseRecorder {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), method, path, strings.NewReader(form.Encode()))
	r.RemoteAddr = "203.0.113.9:5"
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range b.cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	b.s.Handler().ServeHTTP(w, r)
	if c := w.Result().Cookies(); len(c) > 0 {
		b.cookies = c
	}
	return w
}

var formField = regexp.MustCompile(`name="(token|link)" value="([^"]*)"`)

func formOf(body string) url.Values {
	form := url.Values{}
	for _, m := range formField.FindAllStringSubmatch(body, -1) {
		form.Set(m[1], m[2])
	}
	return form
}

func TestSignOnPages(t *testing.T) {
	f := &fakeSignOn{}
	b := openTab(t, f)
	page := b.do(http.MethodGet, "/sso?link=the-link", nil)
	for _, want := range []string{"alice", "corp", "SHA256:abc", "2001:db8::7<", "&lt;i&gt;one"} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("the page lacks %q: %s", want, page.Body)
		}
	}
	if len(f.confirms)+len(f.finishes) > 0 {
		t.Fatal("to look at the page does something")
	}
	form := formOf(page.Body.String())
	form.Set("code", "nonsense")
	if wrong := b.do(http.MethodPost, "/sso", form); wrong.Code != http.StatusForbidden || !strings.Contains(wrong.Body.String(), "not the code") || wrong.Header().Get("Refresh") != "" {
		t.Errorf("a wrong code = %d %s", wrong.Code, wrong.Body)
	}
	form.Set("code", " BCDF-GHJK ")
	sent := b.do(http.MethodPost, "/sso", form)
	if sent.Code != http.StatusOK || sent.Header().Get("Refresh") != "0; url=https://id.example/authorize?a=b&c=d" {
		t.Errorf("confirmed = %d %q", sent.Code, sent.Header())
	}
	if back := b.do(http.MethodGet, "/sso/callback?state=s&code=c&iss=https%3A%2F%2Fid.example", nil); back.Code != http.StatusOK || !strings.Contains(back.Body.String(), "Signed in as alice") {
		t.Errorf("back = %d %s", back.Code, back.Body)
	}
	last := f.finishes[len(f.finishes)-1]
	if last.GetState() != "s" || last.GetCode() != "c" || last.GetIssuer() != "https://id.example" || last.GetClient() != "203.0.113.9:5" {
		t.Errorf("finish = %v", last)
	}
	if last.GetBrowser() == "" || last.GetBrowser() != f.confirms[1].GetBrowser() || strings.Contains(b.cookies[0].Value, last.GetBrowser()) {
		t.Errorf("the browser is told as %q, then as %q", f.confirms[1].GetBrowser(), last.GetBrowser())
	}
	f.onward = "http://127.0.0.1:4711/cb?receipt=r"
	if back := b.do(http.MethodGet, "/sso/callback?state=s&code=c", nil); back.Header().Get("Refresh") != "0; url="+f.onward {
		t.Errorf("back with a program = %q", back.Header())
	}
}

// Nothing happens on the word of another site's page, or of a browser that is
// not the one that was asked.
func TestSignOnPagesTakeNoOrders(t *testing.T) {
	f := &fakeSignOn{}
	b := openTab(t, f)
	form := formOf(b.do(http.MethodGet, "/sso?link=the-link", nil).Body.String())
	form.Set("code", "BCDF-GHJK")
	stranger := openTab(t, f)
	if w := stranger.do(http.MethodPost, "/sso", form); w.Code != http.StatusForbidden {
		t.Errorf("the form from a browser without the cookie = %d", w.Code)
	}
	stranger.do(http.MethodGet, "/sso?link=the-link", nil)
	if w := stranger.do(http.MethodPost, "/sso", form); w.Code != http.StatusForbidden {
		t.Errorf("the form with another browser's token = %d", w.Code)
	}
	if w := openTab(t, f).do(http.MethodGet, "/sso/callback?state=s&code=c", nil); w.Code != http.StatusForbidden {
		t.Errorf("an answer in a browser that asked nothing = %d", w.Code)
	}
	if w := b.do(http.MethodPost, "/sso/callback", url.Values{"state": {"s"}}); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("an answer as a form = %d", w.Code)
	}
	if len(f.confirms)+len(f.finishes) > 0 {
		t.Errorf("the authority was asked: %v %v", f.confirms, f.finishes)
	}
}

func TestSignOnProblems(t *testing.T) {
	for kind, status := range map[fault.Kind]int{fault.Denied: 403, fault.NotFound: 404, fault.Unavailable: 503, fault.Conflict: 409, fault.BadInput: 400, fault.Internal: 500} {
		f := &fakeSignOn{err: fault.New(kind, "what went wrong").WithHint("what to do")}
		b := openTab(t, f)
		b.cookies = []*http.Cookie{{Name: browserCookie, Value: strings.Repeat("a", 52)}}
		w := b.do(http.MethodGet, "/sso/callback?state=s", nil)
		if w.Code != status || !strings.Contains(w.Body.String(), "What went wrong.") || !strings.Contains(w.Body.String(), "what to do") {
			t.Errorf("%v = %d %s", kind, w.Code, w.Body)
		}
	}
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/sso", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("the page of a process that is no proxy = %d", w.Code)
	}
}
