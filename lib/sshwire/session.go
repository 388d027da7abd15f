package sshwire

import (
	"cmp"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// PtyRequest asks for a terminal (RFC 4254, section 6.2). [ParseModes] reads
// Modes.
type PtyRequest struct {
	Term          string
	Columns, Rows uint32 // in characters
	Width, Height uint32 // in pixels
	Modes         []byte
}

// ParsePtyRequest reads the payload of a pty-req request.
func ParsePtyRequest(payload []byte) (PtyRequest, error) {
	return parse[PtyRequest](RequestPTY, payload)
}

// Marshal returns x as a request payload.
func (x PtyRequest) Marshal() []byte { return ssh.Marshal(x) }

func (x PtyRequest) check() error {
	if len(x.Modes) > maxModes {
		return errors.New("too many terminal modes")
	}
	return bounded("terminal type", x.Term, maxTerm)
}

// X11Request asks for the client's display (RFC 4254, section 6.3.1).
type X11Request struct {
	SingleConnection bool
	Protocol         string // of the cookie, such as MIT-MAGIC-COOKIE-1
	Cookie           string // in hexadecimal; a client invents it for this session
	Screen           uint32
}

// ParseX11Request reads the payload of an x11-req request. Protocol and cookie
// become words of a command, so nothing but their own grammar is taken.
func ParseX11Request(payload []byte) (X11Request, error) {
	return parse[X11Request](RequestX11, payload)
}

// Marshal returns x as a request payload.
func (x X11Request) Marshal() []byte { return ssh.Marshal(x) }

func (x X11Request) check() error {
	plain := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}
	switch {
	case x.Protocol == "" || strings.IndexFunc(x.Protocol, plain) >= 0 || x.Protocol[0] == '-':
		return errors.New("the protocol is no word")
	case len(x.Cookie)%2 != 0 || !isHex(x.Cookie):
		return errors.New("the cookie is not hexadecimal")
	case x.Screen > maxScreen:
		return errors.New("there is no such screen")
	}
	return cmp.Or(bounded("protocol", x.Protocol, maxX11), bounded("cookie", x.Cookie, maxX11))
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != ""
}

// WindowChange tells the terminal's new size (RFC 4254, section 6.7).
type WindowChange struct {
	Columns, Rows uint32 // in characters
	Width, Height uint32 // in pixels
}

// ParseWindowChange reads the payload of a window-change request.
func ParseWindowChange(payload []byte) (WindowChange, error) {
	return parse[WindowChange](RequestWindowChange, payload)
}

// Marshal returns x as a request payload.
func (x WindowChange) Marshal() []byte { return ssh.Marshal(x) }

func (x WindowChange) check() error { return nil }

// Env passes one environment variable (RFC 4254, section 6.4). Whether it is
// accepted is the server's choice.
type Env struct{ Name, Value string }

// ParseEnv reads the payload of an env request.
func ParseEnv(payload []byte) (Env, error) { return parse[Env](RequestEnv, payload) }

// Marshal returns x as a request payload.
func (x Env) Marshal() []byte { return ssh.Marshal(x) }

func (x Env) check() error {
	if x.Name == "" || strings.IndexByte(x.Name, '=') >= 0 {
		return errors.New("the name is empty or holds an equals sign")
	}
	return cmp.Or(bounded("name", x.Name, maxEnvName), bounded("value", x.Value, maxEnvValue))
}

// Exec asks to run a command (RFC 4254, section 6.5).
type Exec struct{ Command string }

// ParseExec reads the payload of an exec request.
func ParseExec(payload []byte) (Exec, error) { return parse[Exec](RequestExec, payload) }

// Marshal returns x as a request payload.
func (x Exec) Marshal() []byte { return ssh.Marshal(x) }

func (x Exec) check() error { return bounded("command", x.Command, maxCommand) }

// Subsystem asks for a named subsystem (RFC 4254, section 6.5).
type Subsystem struct{ Name string }

// ParseSubsystem reads the payload of a subsystem request.
func ParseSubsystem(payload []byte) (Subsystem, error) {
	return parse[Subsystem](RequestSubsystem, payload)
}

// Marshal returns x as a request payload.
func (x Subsystem) Marshal() []byte { return ssh.Marshal(x) }

func (x Subsystem) check() error { return bounded("name", x.Name, maxSubsystem) }

// Signal asks to deliver a signal, named without "SIG" (RFC 4254, section 6.9).
type Signal struct{ Name string }

// ParseSignal reads the payload of a signal request.
func ParseSignal(payload []byte) (Signal, error) { return parse[Signal](RequestSignal, payload) }

// Marshal returns x as a request payload.
func (x Signal) Marshal() []byte { return ssh.Marshal(x) }

func (x Signal) check() error { return bounded("name", x.Name, maxSignal) }

// ExitStatus is the payload of an exit-status request (RFC 4254, section
// 6.10). Send it before CHANNEL_EOF: some clients stop reading at EOF and would
// report 0.
type ExitStatus struct{ Code uint32 }

// ParseExitStatus reads the payload of an exit-status request.
func ParseExitStatus(payload []byte) (ExitStatus, error) {
	return parse[ExitStatus](RequestExitStatus, payload)
}

// Marshal returns x as a request payload.
func (x ExitStatus) Marshal() []byte { return ssh.Marshal(x) }

func (x ExitStatus) check() error { return nil }

// ExitSignal says that a signal, named without "SIG", ended the command (RFC
// 4254, section 6.10).
type ExitSignal struct {
	Name       string
	CoreDumped bool
	Message    string
	Lang       string
}

// ParseExitSignal reads the payload of an exit-signal request.
func ParseExitSignal(payload []byte) (ExitSignal, error) {
	return parse[ExitSignal](RequestExitSignal, payload)
}

// Marshal returns x as a request payload.
func (x ExitSignal) Marshal() []byte { return ssh.Marshal(x) }

func (x ExitSignal) check() error {
	return cmp.Or(bounded("name", x.Name, maxSignal), bounded("message", x.Message, maxMessage),
		bounded("language", x.Lang, maxLanguage))
}
