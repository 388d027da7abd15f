package harness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// A Browser is a Chromium without a screen, which is told what to do over the
// DevTools protocol (https://chromedevtools.github.io/devtools-protocol/). It has
// one page at a time and no passkey device but the ones of [Browser.Authenticator].
type Browser struct {
	t     testing.TB
	to    io.Writer
	mu    sync.Mutex // guards what follows
	last  int
	calls map[int]chan answer
	page  string // session of the page
}

// answer is what the browser answers to a call.
type answer struct {
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// browserPrograms are what Chromium may be called; the first is the one that the
// tests install.
func browserPrograms() []string {
	return []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"}
}

// NewBrowser starts a browser that ends with the test. It resolves every host name
// to this machine, and takes the certificates that are signed by itself there.
func NewBrowser(t testing.TB) *Browser {
	t.Helper()
	var program string
	for _, p := range browserPrograms() {
		if path, err := exec.LookPath(p); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Fatal("there is no Chromium: run \"make deps\"")
	}
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirsToo, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--host-resolver-rules=MAP * 127.0.0.1", "--ignore-certificate-errors", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirs, theirsToo} // 3 and 4, as the browser expects them
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	_ = theirsToo.Close()
	b := &Browser{t: t, to: to, calls: map[int]chan answer{}}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(from) })
	t.Cleanup(func() {
		_ = to.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // of a signal
		_ = from.Close()
		reading.Wait()
		if t.Failed() {
			t.Logf("the browser says:\n%s", log.Bytes())
		}
	})
	var target struct {
		ID string `json:"targetId"`
	}
	b.Call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct {
		ID string `json:"sessionId"`
	}
	b.Call("Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &session)
	b.page = session.ID
	b.Call("Page.enable", nil, nil)
	return b
}

// read passes answers to who waits for them. Messages end with a zero byte.
func (b *Browser) read(from io.Reader) {
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			answer

			ID int `json:"id"`
		}
		if json.Unmarshal(line[:len(line)-1], &m) != nil {
			return
		}
		b.mu.Lock()
		if c := b.calls[m.ID]; c != nil {
			c <- m.answer
			delete(b.calls, m.ID)
		}
		b.mu.Unlock()
	}
}

// Try calls a method of the protocol for the page and puts what it returns into
// result, unless that is nil.
func (b *Browser) Try(method string, params, result any) error {
	b.t.Helper()
	done := make(chan answer, 1)
	b.mu.Lock()
	b.last++
	m := map[string]any{"id": b.last, "method": method, "params": params}
	if params == nil {
		m["params"] = map[string]any{}
	}
	if b.page != "" {
		m["sessionId"] = b.page
	}
	b.calls[b.last] = done
	b.mu.Unlock()
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := b.to.Write(append(data, 0)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a := <-done:
		if a.Error != nil {
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Result, result)
	case <-time.After(Patience):
		return fmt.Errorf("%s: no answer within %v", method, Patience)
	}
}

// Call is [Browser.Try] for what must work.
func (b *Browser) Call(method string, params, result any) {
	b.t.Helper()
	if err := b.Try(method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

// Eval runs a script on the page, waits for the promise that it may be, and
// returns what comes out as text.
func (b *Browser) Eval(script string) string {
	b.t.Helper()
	var out struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	err := b.Try("Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true, "userGesture": true}, &out)
	switch {
	case err != nil:
		return "" // the page is on its way to another
	case out.Exception != nil:
		b.t.Fatalf("%s: %s %s", script, out.Exception.Text, out.Exception.Exception.Description)
	case out.Result.Value == nil:
		return ""
	}
	return fmt.Sprint(out.Result.Value)
}

// Open goes to a page and waits until it is there.
func (b *Browser) Open(where string) {
	b.t.Helper()
	var out struct {
		Error string `json:"errorText"`
	}
	b.Call("Page.navigate", map[string]any{"url": where}, &out)
	if out.Error != "" {
		b.t.Fatalf("open %s: %s", where, out.Error)
	}
	Eventually(b.t, "the page is there", func() bool { return b.Eval(`document.readyState`) == "complete" })
}

// Text is what the page shows.
func (b *Browser) Text() string { return b.Eval(`document.body.innerText`) }

// Expect waits until the page shows want.
func (b *Browser) Expect(want string) {
	b.t.Helper()
	var text string
	quoted, err := json.Marshal(want)
	if err != nil {
		b.t.Fatal(err)
	}
	deadline := time.After(Patience)
	for tick := time.Tick(20 * time.Millisecond); b.Eval(`String((document.body ? document.body.innerText : "").includes(`+string(quoted)+`))`) != "true"; {
		select {
		case <-tick:
		case <-deadline:
			text = b.Text()
			b.t.Fatalf("the page does not show %q:\n%s", want, text)
		}
	}
}

// Fill types text into the field with this name.
func (b *Browser) Fill(name, text string) {
	b.t.Helper()
	quoted, err := json.Marshal(text)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Eval(`document.querySelector('[name="` + name + `"]').value = ` + string(quoted) + `; ""`)
}

// Press clicks the button with this value.
func (b *Browser) Press(value string) {
	b.t.Helper()
	b.Eval(`document.querySelector('button[value="` + value + `"]').click(); ""`)
}

// Authenticator gives the browser a device for passkeys and returns its id. Its
// person is there, and known to it, at once.
func (b *Browser) Authenticator() string {
	b.t.Helper()
	b.Call("WebAuthn.enable", map[string]any{"enableUI": false}, nil)
	var out struct {
		ID string `json:"authenticatorId"`
	}
	b.Call("WebAuthn.addVirtualAuthenticator", map[string]any{"options": map[string]any{
		"protocol": "ctap2", "transport": "internal", "hasResidentKey": true, "hasUserVerification": true, "isUserVerified": true, "automaticPresenceSimulation": true,
	}}, &out)
	return out.ID
}
