package web

import (
	"encoding/json"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// What the script of the page "confirm" asks for, with the fields of its form and
// its token.
const (
	passkeyPath   = "/sso/passkey"
	answerPath    = "/sso/passkey/answer"
	passkeyScript = "/passkey.js"
)

// An ending is what the script shows in place of the page.
type ending struct {
	Title  string `json:"title"`
	Text   string `json:"text,omitempty"`
	Code   string `json:"code,omitempty"`
	Hint   string `json:"hint,omitempty"`
	Onward string `json:"onward,omitempty"`
}

// begun is what the script asks the browser, or why it does not.
type begun struct {
	Wrong   string          `json:"wrong,omitempty"` // the person may try again
	Options json.RawMessage `json:"options,omitempty"`
	Create  bool            `json:"create,omitempty"`
}

// beginPasskey takes the person's word and answers with what the browser is asked.
func (s *Server) beginPasskey(w http.ResponseWriter, r *http.Request) {
	b, err := sent(w, r, ssoPath)
	if err != nil {
		s.failScript(w, err)
		return
	}
	res, err := s.cfg.SignOn.BeginPasskey(r.Context(), connect.NewRequest(&accessdv1.BeginPasskeyRequest{
		Link: r.PostForm.Get("link"), Code: strings.TrimSpace(r.PostForm.Get("code")), Browser: b.secret(), Client: r.RemoteAddr,
	}))
	switch {
	case fault.Is(err, fault.BadInput):
		s.script(w, http.StatusForbidden, begun{Wrong: sentence(fault.Public(err))})
	case err != nil:
		s.failScript(w, err)
	default:
		s.script(w, http.StatusOK, begun{Options: res.Msg.GetOptions(), Create: res.Msg.GetCreate()})
	}
}

// finishPasskey takes what the passkey answered.
func (s *Server) finishPasskey(w http.ResponseWriter, r *http.Request) {
	b, err := sent(w, r, ssoPath)
	if err != nil {
		s.failScript(w, err)
		return
	}
	res, err := s.cfg.SignOn.FinishPasskey(r.Context(), connect.NewRequest(&accessdv1.FinishPasskeyRequest{
		Link: r.PostForm.Get("link"), Credential: []byte(r.PostForm.Get("credential")), Browser: b.secret(), Client: r.RemoteAddr,
	}))
	if err != nil {
		s.failScript(w, err)
		return
	}
	s.script(w, http.StatusOK, endOf(res.Msg.GetEnd()))
}

// endOf says in words how it ended.
func endOf(m *accessdv1.FinishResponse) ending {
	const closing = "You can close this window."
	switch {
	case m.GetOnward() != "":
		return ending{Title: "Signed in", Hint: "Going back to the program that asked.", Onward: m.GetOnward()}
	case m.GetPurpose() == "enrol":
		return ending{Title: "The passkey is made", Text: "Your terminal keeps it now and says so.", Hint: closing}
	case m.GetCode() != "":
		return ending{Title: "One more step", Text: "Type this code in your terminal:", Code: m.GetCode(), Hint: closing}
	case m.GetPurpose() != "":
		return ending{Title: "Confirmed", Text: "Your terminal goes on now.", Hint: closing}
	}
	return ending{
		Title: "Signed in as " + m.GetUser(), Text: "The terminal with the key " + m.GetFingerprint() + " gets its certificate now.", Hint: closing,
	}
}

// failScript tells a person what went wrong, as far as it is theirs to know.
func (s *Server) failScript(w http.ResponseWriter, err error) {
	status, m := s.wrong(err)
	s.script(w, status, ending{Title: failTitle, Text: m.Text, Hint: m.Hint})
}

func (s *Server) script(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.cfg.Log.Error("cannot answer a page's script", zap.Error(err))
		status, data = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(data) // an error means that the client has gone
}
