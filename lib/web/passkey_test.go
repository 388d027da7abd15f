package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// keyed is an authority whose links take passkeys.
type keyed struct {
	fakeSignOn

	show   *accessdv1.ShowResponse
	begins []*accessdv1.BeginPasskeyRequest
	ends   []*accessdv1.FinishPasskeyRequest
	end    *accessdv1.FinishResponse
	wrong  error
}

func (k *keyed) Show(context.Context, *connect.Request[accessdv1.ShowRequest]) (*connect.Response[accessdv1.ShowResponse], error) {
	return connect.NewResponse(k.show), nil
}

func (k *keyed) BeginPasskey(_ context.Context, r *connect.Request[accessdv1.BeginPasskeyRequest]) (*connect.Response[accessdv1.BeginPasskeyResponse], error) {
	k.begins = append(k.begins, r.Msg)
	if r.Msg.GetCode() != "BCDF-GHJK" {
		return nil, fault.New(fault.BadInput, "that is not the code your terminal shows")
	}
	return connect.NewResponse(&accessdv1.BeginPasskeyResponse{Options: []byte(`{"publicKey":{}}`), Create: true}), k.wrong
}

func (k *keyed) FinishPasskey(_ context.Context, r *connect.Request[accessdv1.FinishPasskeyRequest]) (*connect.Response[accessdv1.FinishPasskeyResponse], error) {
	k.ends = append(k.ends, r.Msg)
	return connect.NewResponse(&accessdv1.FinishPasskeyResponse{End: k.end}), k.wrong
}

// The page runs one script of ours and nothing else, and only where a passkey is
// of use.
func TestPasskeyPage(t *testing.T) {
	k := &keyed{show: &accessdv1.ShowResponse{Cluster: "one", User: "alice", Code: true, Passkey: true, Purpose: "enrol"}}
	s, err := New(Config{SignOn: k})
	if err != nil {
		t.Fatal(err)
	}
	b := &tab{t: t, s: s}
	page := b.do(http.MethodGet, "/sso?link=the-link", nil)
	policy := page.Header().Get("Content-Security-Policy")
	if !strings.Contains(page.Body.String(), `<script src="/passkey.js" defer></script>`) || !strings.Contains(policy, "default-src 'none'") ||
		!strings.Contains(policy, "script-src 'self'") || strings.Contains(policy, "unsafe") {
		t.Errorf("the page = %q\n%s", policy, page.Body)
	}
	if !strings.Contains(page.Body.String(), "Make a passkey") || strings.Contains(page.Body.String(), `value="provider"`) {
		t.Errorf("the page for a new passkey = %s", page.Body)
	}
	if js := b.do(http.MethodGet, "/passkey.js", nil); js.Code != http.StatusOK || !strings.HasPrefix(js.Header().Get("Content-Type"), "text/javascript") {
		t.Errorf("the script = %d %q", js.Code, js.Header())
	}
	k.show = &accessdv1.ShowResponse{Cluster: "one", User: "alice", Connector: "corp"}
	if page := b.do(http.MethodGet, "/sso?link=the-link", nil); strings.Contains(page.Body.String(), "script src") || strings.Contains(page.Body.String(), `value="passkey"`) ||
		strings.Contains(page.Header().Get("Content-Security-Policy"), "script-src") {
		t.Errorf("a page without passkeys = %q\n%s", page.Header(), page.Body)
	}
}

// The script's requests are the form's, and come to the authority from the one
// browser that it was shown in.
func TestPasskeyRequests(t *testing.T) {
	k := &keyed{show: &accessdv1.ShowResponse{Cluster: "one", User: "alice", Code: true, Passkey: true}, end: &accessdv1.FinishResponse{User: "alice", Fingerprint: "SHA256:abc"}}
	s, err := New(Config{SignOn: k})
	if err != nil {
		t.Fatal(err)
	}
	b := &tab{t: t, s: s}
	form := formOf(b.do(http.MethodGet, "/sso?link=the-link", nil).Body.String())
	form.Set("code", "nonsense")
	if w, got := b.do(http.MethodPost, "/sso/passkey", form), (begun{}); w.Code != http.StatusForbidden || json.Unmarshal(w.Body.Bytes(), &got) != nil || got.Wrong == "" || got.Options != nil {
		t.Errorf("a wrong code = %d %s", w.Code, w.Body)
	}
	form.Set("code", " BCDF-GHJK ")
	if w := b.do(http.MethodPost, "/sso/passkey", form); w.Code != http.StatusOK || w.Body.String() != `{"options":{"publicKey":{}},"create":true}` {
		t.Errorf("begun = %d %s", w.Code, w.Body)
	}
	form.Set("credential", `{"type":"public-key"}`)
	finish := func() (int, ending) {
		w, got := b.do(http.MethodPost, "/sso/passkey/answer", form), ending{}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Errorf("%s: %v", w.Body, err)
		}
		return w.Code, got
	}
	if code, got := finish(); code != http.StatusOK || got.Title != "Signed in as alice" || !strings.Contains(got.Text, "SHA256:abc") {
		t.Errorf("finished = %d %+v", code, got)
	}
	last := k.ends[0]
	if last.GetLink() != form.Get("link") || string(last.GetCredential()) != `{"type":"public-key"}` || last.GetClient() != "203.0.113.9:5" ||
		last.GetBrowser() == "" || last.GetBrowser() != k.begins[1].GetBrowser() {
		t.Errorf("finish = %v after %v", last, k.begins[1])
	}
	for purpose, want := range map[string]string{"enrol": "The passkey is made", "prove": "Confirmed"} {
		k.end = &accessdv1.FinishResponse{User: "alice", Purpose: purpose}
		if _, got := finish(); got.Title != want {
			t.Errorf("%s = %+v, want %q", purpose, got, want)
		}
	}
	k.end = &accessdv1.FinishResponse{Onward: "http://127.0.0.1:4711/cb?receipt=r"}
	if _, got := finish(); got.Onward != k.end.GetOnward() {
		t.Errorf("with a program = %+v", got)
	}
	k.wrong = fault.New(fault.Denied, "the sign-in was refused").WithHint("what to do")
	if code, got := finish(); code != http.StatusForbidden || got.Text != "The sign-in was refused." || got.Hint != "what to do" {
		t.Errorf("refused = %d %+v", code, got)
	}
	asked := len(k.begins) + len(k.ends)
	for _, path := range []string{"/sso/passkey", "/sso/passkey/answer"} {
		if w := (&tab{t: t, s: s}).do(http.MethodPost, path, form); w.Code != http.StatusForbidden {
			t.Errorf("%s from a browser without the cookie = %d", path, w.Code)
		}
		if w := b.do(http.MethodPost, path, url.Values{"link": form["link"], "code": form["code"]}); w.Code != http.StatusForbidden {
			t.Errorf("%s without the form's token = %d", path, w.Code)
		}
		if w := b.do(http.MethodGet, path, nil); w.Code != http.StatusNotFound {
			t.Errorf("GET %s = %d", path, w.Code)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		for _, c := range b.cookies {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s from another site's page = %d", path, w.Code)
		}
	}
	if len(k.begins)+len(k.ends) != asked {
		t.Error("the authority was asked on another's word")
	}
}
