package web

import (
	"net/http"
	"net/netip"
	"strings"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// The pages of a sign-in through a browser. The person comes with the link that
// a terminal shows, compares what the page says with what the terminal does,
// types the terminal's code, goes to the provider and comes back.
const (
	ssoPath      = "/sso"
	callbackPath = "/sso/callback"
	// maxAnswer bounds one parameter of an answer, in bytes.
	maxAnswer = 4 << 10
)

// confirmation is the data of the page "confirm".
type confirmation struct {
	*accessdv1.ShowResponse

	Link    string
	Token   string
	Address string // where the terminal is, without the port
	Wrong   string // why the form is back
}

// onward is the data of the page "onward".
type onward struct{ URL, Text string }

func (s *Server) addSignOn(routes map[string]route) {
	if s.cfg.SignOn == nil {
		return
	}
	routes[ssoPath] = route{get: s.showSignOn, post: s.confirmSignOn}
	routes[callbackPath] = route{get: s.finishSignOn}
	nothing := func(w http.ResponseWriter, _ *http.Request) { notFound(w) }
	routes[passkeyPath] = route{get: nothing, post: s.beginPasskey}
	routes[answerPath] = route{get: nothing, post: s.finishPasskey}
}

// showSignOn shows what a link is about, and asks for the terminal's code.
func (s *Server) showSignOn(w http.ResponseWriter, r *http.Request) {
	s.askSignOn(w, r, r.URL.Query().Get("link"), "")
}

func (s *Server) askSignOn(w http.ResponseWriter, r *http.Request, link, wrong string) {
	if len(link) > maxAnswer {
		notFound(w)
		return
	}
	res, err := s.cfg.SignOn.Show(r.Context(), connect.NewRequest(&accessdv1.ShowRequest{Link: link}))
	if err != nil {
		s.problem(w, err)
		return
	}
	c := confirmation{ShowResponse: res.Msg, Link: link, Token: meet(w, r).token(ssoPath), Address: res.Msg.GetClient(), Wrong: wrong}
	if addr, err := netip.ParseAddrPort(c.Address); err == nil {
		c.Address = addr.Addr().Unmap().String()
	}
	status := http.StatusOK
	if wrong != "" {
		status = http.StatusForbidden
	}
	pg := page{status: status, name: "confirm", title: "Sign in to " + res.Msg.GetCluster(), data: c}
	if c.GetPurpose() == "enrol" {
		pg.title = "A passkey for " + res.Msg.GetCluster()
	}
	if c.GetPasskey() {
		pg.script = passkeyScript
	}
	s.pages.show(w, pg)
}

// confirmSignOn takes the person's word and sends the browser to the provider.
func (s *Server) confirmSignOn(w http.ResponseWriter, r *http.Request) {
	b, err := sent(w, r, ssoPath)
	if err != nil {
		s.problem(w, err)
		return
	}
	link := r.PostForm.Get("link")
	res, err := s.cfg.SignOn.Confirm(r.Context(), connect.NewRequest(&accessdv1.ConfirmRequest{
		Link: link, Code: strings.TrimSpace(r.PostForm.Get("code")), Browser: b.secret(), Client: r.RemoteAddr,
	}))
	if fault.Is(err, fault.BadInput) {
		s.askSignOn(w, r, link, fault.Public(err))
		return
	}
	if err != nil {
		s.problem(w, err)
		return
	}
	s.goOn(w, "Going to your provider", onward{res.Msg.GetUrl(), "Go to the provider's page"})
}

// finishSignOn takes what the provider sent the browser back with.
func (s *Server) finishSignOn(w http.ResponseWriter, r *http.Request) {
	b, known := browserOf(r)
	if !known {
		s.problem(w, fault.New(fault.Denied, "this browser did not begin the sign-in").WithHint("open the link and finish in one browser, which keeps cookies"))
		return
	}
	q := r.URL.Query()
	res, err := s.cfg.SignOn.Finish(r.Context(), connect.NewRequest(&accessdv1.FinishRequest{
		State: q.Get("state"), Code: q.Get("code"), Error: q.Get("error"), Issuer: q.Get("iss"), Browser: b.secret(), Client: r.RemoteAddr,
	}))
	if err != nil {
		s.problem(w, err)
		return
	}
	if to := res.Msg.GetOnward(); to != "" {
		s.goOn(w, "Signed in", onward{to, "Go back to the program that asked"})
		return
	}
	end := endOf(res.Msg)
	s.pages.show(w, page{name: "message", title: end.Title, data: message{Text: end.Text, Code: end.Code, Hint: end.Hint}})
}

// goOn sends the browser somewhere else, with a link for when it does not go by
// itself.
func (s *Server) goOn(w http.ResponseWriter, title string, to onward) {
	s.pages.show(w, page{name: "onward", title: title, data: to, onward: to.URL})
}

const failTitle = "That did not work"

// problem tells a person what went wrong, as far as it is theirs to know.
func (s *Server) problem(w http.ResponseWriter, err error) {
	status, m := s.wrong(err)
	s.pages.show(w, page{status: status, name: "message", title: failTitle, data: m})
}

// wrong returns the status and the words for err, and logs it.
func (s *Server) wrong(err error) (int, message) {
	status := http.StatusInternalServerError
	switch {
	case fault.Is(err, fault.BadInput):
		status = http.StatusBadRequest
	case fault.Is(err, fault.Denied):
		status = http.StatusForbidden
	case fault.Is(err, fault.NotFound):
		status = http.StatusNotFound
	case fault.Is(err, fault.Conflict):
		status = http.StatusConflict
	case fault.Is(err, fault.Unavailable):
		status = http.StatusServiceUnavailable
	}
	s.cfg.Log.Info("a page was refused", zap.Int("status", status), zap.Error(err))
	return status, message{Text: sentence(fault.Public(err)), Hint: fault.Hint(err)}
}

// sentence returns the words of an error as a sentence.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:] + "."
}
