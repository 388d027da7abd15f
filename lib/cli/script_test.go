package cli_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/accessd/accessd/lib/cli"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/proxy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"accessd": func() {
			os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
		"remote": func() {
			call := remoteCall(os.Stdin, os.Stdout, os.Stderr)
			if call.Args = os.Args[1:]; len(call.Args) > 0 && call.Args[0] == "-t" {
				call.Args, call.Terminal = call.Args[1:], true
			}
			os.Exit(cli.RunAs(context.Background(), call))
		},
	})
}

// One story per file: what a person types, reads, and gets back.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(env *testscript.Env) error {
		env.Setenv("ESCAPE", "\x1b]0;owned\x07")
		golden, err := filepath.Abs(filepath.Join("..", "events", "testdata"))
		env.Setenv("GOLDEN", golden)
		return err
	}})
}

// remoteCall is what a proxy gives RunAs for alice, with an authority that does
// nothing but tell what it was asked.
func remoteCall(in io.Reader, out, err io.Writer) proxy.VerbCall {
	return proxy.VerbCall{
		Args: []string{}, In: in, Out: out, Err: err, User: "alice",
		API: &http.Client{Transport: teller{}},
		Nodes: func() []proxy.Reachable {
			return []proxy.Reachable{
				{Node: services.Node{ID: "b", Name: "db-1"}, Logins: []names.Login{"postgres"}},
				{
					Node:   services.Node{ID: "a", Name: "web-1", GatewayPort: 3100, Labels: names.Labels{"team": "x", "env": "prod"}},
					Online: true, Logins: []names.Login{"root", "ubuntu"},
				},
			}
		},
		Attach: func(_ context.Context, sid names.SessionID, join bool) error {
			verb := "watch"
			if join {
				verb = "join"
			}
			_, werr := fmt.Fprintln(out, verb, sid)
			return werr
		},
	}
}

// teller answers every request with the error that it was asked for it.
type teller struct{}

func (teller) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	text := strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' {
			return '_'
		}
		return r
	}, fmt.Sprintf("%q", strings.TrimRight(string(body[min(len(body), 2):]), "\n")))
	answer := fmt.Sprintf(`{"code":"invalid_argument","message":"the authority was asked %s %s"}`, path.Base(r.URL.Path), text)
	return &http.Response{
		StatusCode: http.StatusBadRequest, ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(answer)),
	}, nil
}
