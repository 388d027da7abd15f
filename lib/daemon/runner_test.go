package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func TestPartsStopInTheOrderOfTheirRanks(t *testing.T) {
	r := newRunner(zap.NewNop(), time.Second)
	var mu sync.Mutex
	var order []string
	for name, at := range map[string]rank{"store": rankStore, "traffic": rankTraffic, "log": rankLog, "authority": rankAuthority} {
		r.start(t.Context(), at, name, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			return nil
		})
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"traffic", "authority", "log", "store"}; !slices.Equal(order, want) {
		t.Errorf("stopped %v, want %v", order, want)
	}
}

func TestPartOutlivesTheEndOfItsParentUntilItsTurn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := newRunner(zap.NewNop(), time.Second)
	ended := make(chan error, 1)
	r.start(ctx, rankLog, "log", func(ctx context.Context) error {
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil
	})
	cancel()
	select {
	case <-ended:
		t.Error("the part ended with its parent")
	default:
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if cause := <-ended; !errors.Is(cause, errStopping) {
		t.Errorf("cause = %v, want %v", cause, errStopping)
	}
}

func TestFailureOfOnePartIsReported(t *testing.T) {
	r := newRunner(zap.NewNop(), time.Second)
	r.start(t.Context(), rankTraffic, "listener", func(context.Context) error { return errors.New("address in use") })
	if err := <-r.failed; err.Error() != "listener: address in use" {
		t.Errorf("failed = %v", err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop = %v", err)
	}
}

func TestStuckPartIsNamedAndLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRunner(zap.NewNop(), time.Second)
		free := make(chan struct{})
		for _, name := range []string{"stuck", "stuck too"} {
			r.start(t.Context(), rankTraffic, name, func(context.Context) error { <-free; return nil })
		}
		began := time.Now()
		err := r.stop()
		if got, want := time.Since(began), time.Second+stopMargin; got != want {
			t.Errorf("stop took %v, want %v", got, want)
		}
		if err == nil || !strings.Contains(err.Error(), "stuck did not stop") || !strings.Contains(err.Error(), "stuck too did not stop") {
			t.Errorf("stop = %v, want both parts named", err)
		}
		close(free)
	})
}
