package auth

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/listener"
)

// ListFactors says how a person signs in.
func (s factorService) ListFactors(ctx context.Context, req *connect.Request[accessdv1.ListFactorsRequest]) (*connect.Response[accessdv1.ListFactorsResponse], error) {
	c := callerOf(ctx)
	user := c.user
	if text := req.Msg.GetUser(); text != "" {
		var err error
		if user, err = names.ParseUserName(text); err != nil {
			return nil, err
		}
	}
	if user == "" {
		return nil, fault.New(fault.BadInput, "say whose")
	}
	if user != c.user && !c.all {
		return nil, fault.New(fault.Denied, "you may not read users, only yourself")
	}
	creds, err := s.cfg.Store.Credentials(ctx, user)
	if fault.Is(err, fault.NotFound) {
		err = noUser(user)
	}
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ListFactorsResponse{}
	for _, p := range creds.Passkeys {
		f := &accessdv1.Factor{Kind: methodPasskey, Name: p.Name, Host: p.RP, Created: timestamppb.New(p.Created)}
		if !p.Used.IsZero() {
			f.Used = timestamppb.New(p.Used)
		}
		res.Factors = append(res.Factors, f)
	}
	for _, f := range []struct {
		kind string
		has  bool
		left int
	}{
		{methodPassword, creds.PasswordHash != "", 0},
		{methodTOTP, len(creds.TOTPSecret) > 0, 0},
		{methodRecovery, len(creds.Recovery) > 0, len(creds.Recovery)},
	} {
		if f.has {
			res.Factors = append(res.Factors, &accessdv1.Factor{Kind: f.kind, Left: int32(f.left)})
		}
	}
	return connect.NewResponse(res), nil
}

// changer is the owner of a conversation in which a person changes how they sign
// in.
func changer(user names.UserName) string { return "user " + string(user) }

// BeginChange begins a conversation:
//
//	password and code ─┬─ what is new ── confirmed
//	or a passkey ──────┘
//
// The certificate that brought the person here is not enough: whoever has a
// machine that was left open shall not be able to make it theirs.
func (s factorService) BeginChange(ctx context.Context, req *connect.Request[accessdv1.BeginChangeRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	c := callerOf(ctx)
	in := &signIn{owner: changer(c.user), user: c.user, change: req.Msg.GetChange(), passkey: req.Msg.GetName()}
	if _, known := accessdv1.BeginChangeRequest_Change_name[int32(in.change)]; !known || in.change == accessdv1.BeginChangeRequest_CHANGE_UNSPECIFIED {
		return nil, fault.New(fault.BadInput, "there is no change %d", in.change)
	}
	if client, err := netip.ParseAddrPort(c.addr); err == nil {
		in.client, in.source = client, listener.SourceOf(client.Addr())
	}
	creds, err := s.cfg.Store.Credentials(ctx, in.user)
	if err != nil {
		return nil, err
	}
	if creds.PasswordHash == "" && len(creds.Passkeys) == 0 {
		return nil, fault.New(fault.Conflict, "you have no password here").WithHint("who signs in elsewhere changes it there; an administrator gives out an invite with \"accessd users reset\"")
	}
	if err := s.checkPasskeyChange(ctx, in, creds); err != nil {
		return nil, err
	}
	if err := s.lobby.admit(in); err != nil {
		return nil, err
	}
	first, err := s.askProof(ctx, in, creds)
	if err != nil {
		s.lobby.forget(in)
		return nil, err
	}
	first.Id = in.id
	return connect.NewResponse(first), nil
}

// ContinueChange answers the prompts of the step before.
func (s factorService) ContinueChange(ctx context.Context, req *connect.Request[accessdv1.ContinueRequest]) (*connect.Response[accessdv1.LoginStep], error) {
	in, err := s.lobby.take(req.Msg.GetId(), changer(callerOf(ctx).user))
	if err != nil {
		return nil, err
	}
	answers := req.Msg.GetAnswers()
	if len(answers) != in.asked || slices.ContainsFunc(answers, func(a string) bool { return len(a) > maxText }) {
		s.leave(ctx, in)
		return nil, fault.New(fault.BadInput, "%d answers: want %d of at most %d bytes", len(answers), in.asked, maxText)
	}
	out, err := in.next(ctx, in, answers)
	if err != nil || out.GetDone() {
		s.leave(ctx, in)
		if r, ok := err.(refusal); ok { //nolint:errorlint // made by the steps, wrapped by nobody
			err = fault.Wrap(fault.Denied, r, r.Error())
		}
		return connect.NewResponse(out), err
	}
	s.lobby.putBack(in)
	return connect.NewResponse(out), nil
}

// askProof asks a person for what they sign in with.
func (s factorService) askProof(ctx context.Context, in *signIn, c services.Credentials) (*accessdv1.LoginStep, error) {
	text := "Password: "
	switch {
	case c.PasswordHash == "":
		return s.parkProof(ctx, in, s.takePasskeyProof)
	case len(c.Passkeys) > 0:
		text, in.sso = "Password (empty: passkey): ", true
	}
	return in.ask("", s.takeProof, &accessdv1.Prompt{Text: text}, &accessdv1.Prompt{Text: "Code: "}), nil
}

// takePasskeyProof takes a passkey instead of password and code.
func (s factorService) takePasskeyProof(ctx context.Context, in *signIn, o services.SignOn) (*accessdv1.LoginStep, error) {
	ev := events.Event{Name: events.FactorVerify, User: in.user, AddrRemote: callerOf(ctx).addr, Proto: "ssh", Success: true, Fields: map[string]any{
		"by": callerOf(ctx).by, "reason": "to change how they sign in", "method": o.MFA,
	}}
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	c, err := s.cfg.Store.Credentials(ctx, in.user)
	if err == nil {
		err = hasPasskey(c, o.PasskeyID)
	}
	if err != nil {
		return nil, err
	}
	in.creds, in.proven = c, o.PasskeyID
	return s.goOn(ctx, in)
}

// takeProof takes the password and a second factor, which it uses up.
func (s factorService) takeProof(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	if in.sso && answers[0] == "" {
		return s.parkProof(ctx, in, s.takePasskeyProof)
	}
	ev := events.Event{Name: events.FactorVerify, User: in.user, AddrRemote: callerOf(ctx).addr, Proto: "ssh", Fields: map[string]any{
		"by": callerOf(ctx).by, "reason": "to change how they sign in",
	}}
	method, err := s.prove(ctx, in, answers[0], answers[1])
	if err != nil {
		s.note(ctx, failed(ev, err))
		return nil, err
	}
	ev.Success, ev.Fields["method"] = true, method
	if err := s.record(ctx, ev); err != nil {
		return nil, err
	}
	return s.goOn(ctx, in)
}

// goOn goes on with a change once the person has shown that it is them.
func (s factorService) goOn(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	switch in.change {
	case accessdv1.BeginChangeRequest_CHANGE_PASSKEY:
		return s.parkEnrol(ctx, in, in.creds, s.addPasskey)
	case accessdv1.BeginChangeRequest_CHANGE_PASSKEY_REMOVE:
		return s.removePasskey(ctx, in)
	case accessdv1.BeginChangeRequest_CHANGE_PASSWORD:
		return in.ask(fmt.Sprintf("Choose a password of at least %d characters.", minPassword), s.changePassword, newPassword()...), nil
	case accessdv1.BeginChangeRequest_CHANGE_TOTP:
		in.totp = newTOTPKey()
		return in.ask(in.totp.poster(s.cfg.Keys.ClusterName(), in.user), s.changeTOTP, &accessdv1.Prompt{Text: "Code of the new app: "}), nil
	case accessdv1.BeginChangeRequest_CHANGE_RECOVERY:
		return s.changeRecovery(ctx, in)
	default:
		return s.removeRecovery(ctx, in)
	}
}

// prove checks the password and the second factor of who has a certificate. Who
// was wrong waits as who signs in does, and is not told which it was.
func (s factorService) prove(ctx context.Context, in *signIn, password, code string) (method string, err error) {
	acquit, err := s.backoff.try(ctx, in.user, in.source, false)
	if err != nil {
		return "", err
	}
	err = retryConflict(func() error {
		c, err := s.cfg.Store.Credentials(ctx, in.user)
		if err != nil {
			return err
		}
		right, err := s.hasher.verify(ctx, password, c.PasswordHash)
		if err != nil {
			return err
		}
		use, ok, err := s.matchFactor(ctx, in.user, c, code)
		if err != nil {
			return err
		}
		if !right || !ok {
			return refusal("the password or the code is wrong")
		}
		if err := use.apply(&c); err != nil {
			return err
		}
		method = use.method
		in.creds, err = s.cfg.Store.UpdateCredentials(ctx, in.user, c)
		return err
	})
	if err == nil {
		acquit()
	}
	return method, err
}

// alter changes the credentials after an event that says so, if they are still
// those that the person has proven to know.
func (s factorService) alter(ctx context.Context, in *signIn, ev events.Event, apply func(*services.Credentials) error) error {
	ev.User, ev.AddrRemote, ev.Proto = in.user, callerOf(ctx).addr, "ssh"
	if ev.Fields == nil {
		ev.Fields = map[string]any{}
	}
	ev.Fields["by"] = callerOf(ctx).by
	return s.change(ctx, ev, func() error {
		return retryConflict(func() error {
			c, err := s.cfg.Store.Credentials(ctx, in.user)
			if err != nil {
				return err
			}
			if c.PasswordHash != in.creds.PasswordHash || !bytes.Equal(c.TOTPSecret, in.creds.TOTPSecret) {
				return refusal("it was changed meanwhile")
			}
			if in.proven != nil {
				if err := hasPasskey(c, in.proven); err != nil {
					return err
				}
			}
			if err := apply(&c); err != nil {
				return err
			}
			_, err = s.cfg.Store.UpdateCredentials(ctx, in.user, c)
			return err
		})
	})
}

// changed is the end of a change.
func (s *signIn) changed(words string) (*accessdv1.LoginStep, error) {
	return &accessdv1.LoginStep{Id: s.id, Done: true, Instruction: words}, nil
}

func (s factorService) changePassword(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	err := checkPassword(answers[0])
	if err == nil && answers[0] != answers[1] {
		err = fault.New(fault.BadInput, "the two are not the same")
	}
	if err != nil {
		if in.tries++; in.tries >= maxTries {
			return nil, refusal("no password was set")
		}
		return in.ask("Again, please: "+fault.Public(err)+".", s.changePassword, newPassword()...), nil
	}
	hash, err := s.hasher.hash(ctx, answers[0])
	if err != nil {
		return nil, err
	}
	if err := s.alter(ctx, in, events.Event{Name: events.PasswordUpdate}, func(c *services.Credentials) error { c.PasswordHash = hash; return nil }); err != nil {
		return nil, err
	}
	return in.changed("Your password is changed.")
}

func (s factorService) changeTOTP(ctx context.Context, in *signIn, answers []string) (*accessdv1.LoginStep, error) {
	at, ok := in.totp.match(answers[0], s.cfg.Now())
	if !ok {
		if in.tries++; in.tries >= maxTries {
			return nil, refusal("the second factor was not confirmed")
		}
		return in.ask("That is not the code of this moment. Wait for the next one; if it is refused too, check the clock of your device.",
			s.changeTOTP, &accessdv1.Prompt{Text: "Code of the new app: "}), nil
	}
	sealed, err := s.cfg.Sealer.Seal(ctx, totpPurpose(in.user), in.totp)
	if err != nil {
		return nil, err
	}
	ev := events.Event{Name: events.FactorCreate, Fields: map[string]any{"method": methodTOTP}}
	err = s.alter(ctx, in, ev, func(c *services.Credentials) error {
		c.TOTPSecret, c.TOTPLastStep = sealed, at
		return nil
	})
	if err != nil {
		return nil, err
	}
	return in.changed("The new app is set up; the one before is of no use any more.")
}

func (s factorService) changeRecovery(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	codes, hashes := newRecovery()
	ev := events.Event{Name: events.FactorCreate, Fields: map[string]any{"method": methodRecovery}}
	if err := s.alter(ctx, in, ev, func(c *services.Credentials) error { c.Recovery = hashes; return nil }); err != nil {
		return nil, err
	}
	return in.changed("Each of these is good once, in place of a code. Keep them where nobody finds them; they are not shown again.\n\n" + strings.Join(codes, "\n"))
}

func (s factorService) removeRecovery(ctx context.Context, in *signIn) (*accessdv1.LoginStep, error) {
	ev := events.Event{Name: events.FactorDelete, Fields: map[string]any{"method": methodRecovery}}
	if err := s.alter(ctx, in, ev, func(c *services.Credentials) error { c.Recovery = nil; return nil }); err != nil {
		return nil, err
	}
	return in.changed("Your recovery codes are of no use any more.")
}
