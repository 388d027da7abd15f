package services_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

// TestAPITokensGoWithTheirUser: all of them, those that are made at the very moment
// among them, so that whoever gets the name next has none.
func TestAPITokensGoWithTheirUser(t *testing.T) {
	b, c := backendtest.Open(t), newClock()
	s, other := services.NewStore(b, c.Now), services.NewStore(b, c.Now)
	ctx := t.Context()
	token := func(i int) services.APIToken {
		return services.APIToken{
			ID: fmt.Sprintf("token%07d", i), SecretHash: "hash", User: "eva", Certificate: []byte("certificate"), Created: c.Now(), Expires: c.Now().Add(time.Hour),
		}
	}
	wantKind(t, "a token of nobody's", s.CreateAPIToken(ctx, token(0)), fault.NotFound)
	const rounds, makers = 10, 4
	for round := range rounds {
		_, err := s.CreateUser(ctx, services.User{Name: "eva"}, services.Credentials{})
		check(t, err)
		check(t, s.CreateAPIToken(ctx, token(round*100)))
		var all sync.WaitGroup
		for i := range makers {
			all.Go(func() {
				if err := other.CreateAPIToken(ctx, token(round*100+1+i)); err != nil && !fault.Is(err, fault.NotFound) {
					t.Errorf("a token made while its user goes: %v", err)
				}
			})
		}
		check(t, s.DeleteUser(ctx, "eva"))
		all.Wait()
		left, err := s.APITokens(ctx)
		if check(t, err); len(left) > 0 {
			t.Fatalf("%d tokens outlive their user", len(left))
		}
	}
}
