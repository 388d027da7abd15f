package web

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

const (
	botPath = "/bots/certificate"
	// maxBotRequest bounds what a bot sends: a key and a token.
	maxBotRequest = 32 << 10
)

// botRequest is what a bot that an OpenID provider vouches for sends, as JSON.
type botRequest struct {
	Bot       string `json:"bot"`
	PublicKey string `json:"public_key"` // authorized_keys format
	IDToken   string `json:"id_token"`
}

func (s *Server) addBots(routes map[string]route) {
	if s.cfg.Bots != nil {
		routes[botPath] = route{get: func(w http.ResponseWriter, _ *http.Request) { notFound(w) }, post: s.certifyBot}
	}
}

// certifyBot answers a bot's token with a certificate, as text. It takes JSON, which
// no form of another site's can be, and needs no cookie.
func (s *Server) certifyBot(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || r.Header.Get("Content-Type") != "application/json" {
		answer(w, http.StatusUnsupportedMediaType, "want application/json")
		return
	}
	var req botRequest
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBotRequest))
	if err == nil {
		err = json.Unmarshal(text, &req)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, "want a JSON object with bot, public_key and id_token")
		return
	}
	res, err := s.cfg.Bots.ExchangeToken(r.Context(), connect.NewRequest(&accessdv1.ExchangeTokenRequest{
		Bot: req.Bot, PublicKey: req.PublicKey, IdToken: req.IDToken, Client: from.String(),
	}))
	switch {
	case err == nil:
		answer(w, http.StatusOK, res.Msg.GetCertificate())
	case fault.Is(err, fault.Denied):
		answer(w, http.StatusForbidden, "permission denied")
	case fault.Is(err, fault.BadInput):
		answer(w, http.StatusBadRequest, fault.Public(err))
	default:
		s.cfg.Log.Warn("no certificate for a bot", zap.Error(err))
		answer(w, http.StatusServiceUnavailable, "try again later")
	}
}
