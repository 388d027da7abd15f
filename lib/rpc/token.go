package rpc

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/accessd/accessd/lib/fault"
)

// TokenPrefix goes before the path of a call that a proxy passes on for whoever has
// shown it an API token over HTTPS. It is a path of its own, so that what goes
// wrong with the token's header can never make the call the proxy's own.
const TokenPrefix = "/with-token"

// What a proxy adds to such a call.
const (
	tokenHeader  = "Accessd-Token"
	clientHeader = "Accessd-Client"
)

// Bearer is whoever makes a call with an API token, as a proxy tells it. The token
// is not checked.
type Bearer struct {
	Token string
	Addr  netip.AddrPort // where the call comes from
}

// PassOn makes h the header of a call that is passed on for b.
func (b Bearer) PassOn(h http.Header) {
	h.Set(tokenHeader, b.Token)
	h.Set(clientHeader, b.Addr.String())
}

type bearerKey struct{}

// WithBearer returns a context whose calls are passed on for b.
func WithBearer(ctx context.Context, b Bearer) context.Context {
	return context.WithValue(ctx, bearerKey{}, b)
}

// BearerFrom returns for whom the call of ctx is passed on; false means that the
// peer calls for itself.
func BearerFrom(ctx context.Context) (Bearer, bool) {
	b, ok := ctx.Value(bearerKey{}).(Bearer)
	return b, ok
}

// Bearers returns the handler of calls under [TokenPrefix], which next answers. A
// call whose headers are not in their form has the zero bearer, who is nobody.
func Bearers(next http.Handler) http.Handler {
	return http.StripPrefix(TokenPrefix, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := Bearer{Token: r.Header.Get(tokenHeader)}
		var err error
		if b.Addr, err = netip.ParseAddrPort(r.Header.Get(clientHeader)); err != nil || strings.HasPrefix(r.URL.Path, TokenPrefix) {
			b = Bearer{}
		}
		next.ServeHTTP(w, r.WithContext(WithBearer(r.Context(), b)))
	}))
}

// Unauthenticated is the refusal of a call whose token is of no use: HTTP's status
// 401. Clients read it as denied.
func Unauthenticated(public string) error {
	return refusal(connect.CodeUnauthenticated, fault.Denied, public)
}

// TooMany is the refusal of a call while there are too many others: status 429.
func TooMany(public string) error {
	return refusal(connect.CodeResourceExhausted, fault.Unavailable, public)
}

func refusal(code connect.Code, kind fault.Kind, public string) error {
	err := connect.NewError(code, errors.New(public))
	err.Meta().Set(kindHeader, kind.String())
	return err
}
