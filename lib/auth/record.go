package auth

import (
	"context"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// record writes ev, or says that it cannot; the caller then does not do what ev
// is about.
func (a *Authority) record(ctx context.Context, ev events.Event) error {
	if err := a.cfg.Events.Emit(ctx, ev); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written").
			WithHint("nothing was changed; see the authority's log")
	}
	return nil
}

// change records ev and then makes it so. When that fails a second event says
// that it was not done.
func (a *Authority) change(ctx context.Context, ev events.Event, effect func() error) error {
	return a.changeAll(ctx, []events.Event{ev}, effect)
}

// changeAll is change for an effect that several events describe.
func (a *Authority) changeAll(ctx context.Context, evs []events.Event, effect func() error) error {
	var err error
	recorded := 0
	for ; err == nil && recorded < len(evs); recorded++ {
		evs[recorded].Success = true
		err = a.record(ctx, evs[recorded])
	}
	if err == nil {
		err = effect()
	}
	if err != nil {
		for _, ev := range evs[:recorded] {
			a.note(ctx, failed(ev, err))
		}
	}
	return err
}

// note records ev where nothing depends on it any more: a refusal stays one.
func (a *Authority) note(ctx context.Context, ev events.Event) {
	if err := a.cfg.Events.Emit(context.WithoutCancel(ctx), ev); err != nil {
		a.cfg.Log.Error("an event is lost", zap.String("event", string(ev.Name)), zap.Error(err))
	}
}

// failed returns ev as the record of an act that was not done because of err.
func failed(ev events.Event, err error) events.Event {
	ev.Success = false
	ev.Error = err.Error()
	return ev
}

// set gives ev the field unless the value is empty.
func set(ev events.Event, field, value string) {
	if value != "" {
		ev.Fields[field] = value
	}
}
