package passkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

const page = "https://login.example:3022"

// A device has one passkey, and says what a test wants it to.
type device struct {
	t       *testing.T
	id      []byte
	key     crypto.Signer
	alg     int
	host    string
	counter uint32
	flags   byte
	handle  []byte
	page    map[string]any // in place of what the browser says of the page; nil takes one out
	cut     int            // bytes less of authenticator data
}

func newDevice(t *testing.T, key crypto.Signer, alg int) *device {
	t.Helper()
	return &device{
		t: t, id: bytes.Repeat([]byte{7}, 32), key: key, alg: alg, host: "login.example", counter: 1,
		flags: flagPresent | flagVerified, handle: []byte("handle"),
	}
}

func ecKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (d *device) client(act, challenge string) []byte {
	m := map[string]any{"type": act, "challenge": challenge, "origin": page, "crossOrigin": false}
	maps.Copy(m, d.page)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return d.json(m)
}

func (d *device) json(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		d.t.Fatal(err)
	}
	return text
}

// data is the authenticator data, with the new key's when it is made.
func (d *device) data(made bool) []byte {
	hash := sha256.Sum256([]byte(d.host))
	flags := d.flags
	if made {
		flags |= flagKey
	}
	out := binary.BigEndian.AppendUint32(append(hash[:], flags), d.counter)
	if made {
		out = append(out, make([]byte, modelSize)...)
		out = binary.BigEndian.AppendUint16(out, uint16(len(d.id)))
		out = append(out, d.id...)
		out = append(out, 0xa5, 1, 2) // the beginning of a COSE key, which nobody reads
	}
	return out[:len(out)-d.cut]
}

// make answers what [Party.AskNew] asks.
func (d *device) make(challenge string) []byte {
	public, err := x509.MarshalPKIXPublicKey(d.key.Public())
	if err != nil {
		d.t.Fatal(err)
	}
	return d.json(map[string]any{"rawId": base64url(d.id), "type": publicKey, "response": map[string]any{
		"clientDataJSON": base64url(d.client("webauthn.create", challenge)), "authenticatorData": base64url(d.data(true)),
		"publicKey": base64url(public), "publicKeyAlgorithm": d.alg, "transports": []string{"usb"},
	}})
}

// use answers what [Party.AskUse] asks.
func (d *device) use(challenge string) Use {
	d.t.Helper()
	client, data := d.client("webauthn.get", challenge), d.data(false)
	hash := sha256.Sum256(client)
	message := append(bytes.Clone(data), hash[:]...)
	digest, opts := sha256.Sum256(message), crypto.Hash(0)
	if _, plain := d.key.(ed25519.PrivateKey); !plain {
		message, opts = digest[:], crypto.SHA256
	}
	signature, err := d.key.Sign(rand.Reader, message, opts)
	if err != nil {
		d.t.Fatal(err)
	}
	u, err := ParseUse(d.json(map[string]any{"rawId": base64url(d.id), "type": publicKey, "response": map[string]any{
		"clientDataJSON": base64url(client), "authenticatorData": base64url(data), "signature": base64url(signature), "userHandle": base64url(d.handle),
	}}))
	if err != nil {
		d.t.Fatal(err)
	}
	return u
}

func party(t *testing.T) Party {
	t.Helper()
	p, ok := At(page)
	if !ok {
		t.Fatal("no relying party")
	}
	return p
}

func TestAt(t *testing.T) {
	for base, want := range map[string]Party{
		"https://login.example":                      {"login.example", "https://login.example"},
		"https://Login.Example:443":                  {"login.example", "https://login.example"},
		"https://login.example:3022":                 {"login.example", "https://login.example:3022"},
		"https://proxy:3022":                         {"proxy", "https://proxy:3022"},
		"https://localhost:3022":                     {"localhost", "https://localhost:3022"},
		"https://127.0.0.1:3022":                     {},
		"https://[::1]:3022":                         {},
		"https://10.1":                               {},
		"https://a.0x7f":                             {}, // an address, for browsers
		"http://login.example":                       {},
		"https://":                                   {},
		"https://login_in.example":                   {},
		"https://-a.example":                         {},
		"login.example":                              {},
		"https://" + strings.Repeat("a.", 127) + "a": {},
	} {
		if got, ok := At(base); got != want || ok != (want.ID != "") {
			t.Errorf("At(%q) = %v, %v, want %v", base, got, ok, want)
		}
	}
}

func TestAsk(t *testing.T) {
	p := party(t)
	for name, row := range map[string]struct{ got, want string }{
		"use": {ask(p.AskUse("c", time.Minute)), `{"publicKey":{"challenge":"c","timeout":60000,"rpId":"login.example","userVerification":"required"}}`},
		"new": {
			ask(p.AskNew(Wish{Challenge: "c", Timeout: time.Minute, Site: "corp", User: "alice", Handle: []byte{255}, Has: [][]byte{{1}}})),
			`{"publicKey":{"challenge":"c","timeout":60000,"rp":{"id":"login.example","name":"corp"},"user":{"id":"_w","name":"alice","displayName":"alice"},` +
				`"pubKeyCredParams":[{"type":"public-key","alg":-7},{"type":"public-key","alg":-8},{"type":"public-key","alg":-257}],` +
				`"excludeCredentials":[{"type":"public-key","id":"AQ"}],` +
				`"authenticatorSelection":{"residentKey":"required","requireResidentKey":true,"userVerification":"required"},"attestation":"none"}}`,
		},
	} {
		if row.got != row.want {
			t.Errorf("%s: got  %s\nwant %s", name, row.got, row.want)
		}
	}
	if a, b := NewChallenge(), NewChallenge(); a == b || len(a) != 43 {
		t.Errorf("challenges %q, %q", a, b)
	}
}

func ask(text []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Every kind of key that is asked for is made and used.
func TestMakeAndUse(t *testing.T) {
	_, plain, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, minRSA)
	if err != nil {
		t.Fatal(err)
	}
	p := party(t)
	for alg, key := range map[int]crypto.Signer{es256: ecKey(t, elliptic.P256()), eddsa: plain, rs256: long} {
		d := newDevice(t, key, alg)
		k, err := p.New(d.make("made"), "made")
		if err != nil || !bytes.Equal(k.ID, d.id) || len(k.Model) != modelSize || k.Counter != 1 || len(k.Transports) != 1 {
			t.Errorf("%d: New = %+v, %v", alg, k, err)
			continue
		}
		d.counter = 9
		u := d.use("used")
		if got, err := p.Check(u, "used", k); err != nil || got.Counter != 9 || !bytes.Equal(u.Handle, d.handle) {
			t.Errorf("%d: Check = %+v, %v", alg, got, err)
		}
		if _, err := p.Check(u, "another", k); err == nil {
			t.Errorf("%d: it is taken for another challenge", alg)
		}
		for i := range u.answer.Response.Signature[:8] {
			u.answer.Response.Signature[i] ^= 1
		}
		if _, err := p.Check(u, "used", k); err == nil {
			t.Errorf("%d: a signature that was changed is taken", alg)
		}
	}
}

// A passkey that counts nothing never goes back; one that counts always goes on.
func TestCounter(t *testing.T) {
	for _, row := range []struct {
		was, is uint32
		want    error
	}{{0, 0, nil}, {0, 1, nil}, {1, 2, nil}, {2, 2, ErrCopied}, {2, 1, ErrCopied}, {2, 0, ErrCopied}} {
		p, d := party(t), newDevice(t, ecKey(t, elliptic.P256()), es256)
		d.counter = row.was
		k, err := p.New(d.make("c"), "c")
		if err != nil {
			t.Fatal(err)
		}
		d.counter = row.is
		if _, err := p.Check(d.use("c"), "c", k); err != row.want { //nolint:errorlint // returned as it is
			t.Errorf("%d after %d = %v, want %v", row.is, row.was, err, row.want)
		}
	}
}

// What is wrong with an answer, the same for a new key and for a use of one.
func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*device){
		"another page":              func(d *device) { d.page = map[string]any{"origin": "https://login.example.evil.test:3022"} },
		"the page's other port":     func(d *device) { d.page = map[string]any{"origin": "https://login.example"} },
		"a page without TLS":        func(d *device) { d.page = map[string]any{"origin": "http://login.example:3022"} },
		"no page":                   func(d *device) { d.page = map[string]any{"origin": nil} },
		"a frame in another's page": func(d *device) { d.page = map[string]any{"crossOrigin": true} },
		"under another page":        func(d *device) { d.page = map[string]any{"topOrigin": "https://evil.test"} },
		"another question":          func(d *device) { d.page = map[string]any{"type": "payment.get"} },
		"another challenge":         func(d *device) { d.page = map[string]any{"challenge": "d"} },
		"another host name":         func(d *device) { d.host = "example" },
		"nobody there":              func(d *device) { d.flags = flagVerified },
		"nobody verified":           func(d *device) { d.flags = flagPresent },
		"backed up in no way":       func(d *device) { d.flags |= flagBackedUp },
		"too short":                 func(d *device) { d.cut = len(d.data(false)) - headSize + 1 },
	} {
		p, d := party(t), newDevice(t, ecKey(t, elliptic.P256()), es256)
		k, err := p.New(d.make("c"), "c")
		if err != nil {
			t.Fatal(err)
		}
		d.counter++
		change(d)
		if _, err := p.Check(d.use("c"), "c", k); err == nil {
			t.Errorf("%s: a use is taken", name)
		}
		if name == "too short" {
			d.cut = 2 * modelSize
		}
		if _, err := p.New(d.make("c"), "c"); err == nil {
			t.Errorf("%s: a new key is taken", name)
		}
	}
	p, d := party(t), newDevice(t, ecKey(t, elliptic.P256()), es256)
	if _, err := p.New(d.make(""), ""); err == nil {
		t.Error("a new key for no challenge is taken")
	}
	k, err := p.New(d.make("c"), "c")
	if err != nil {
		t.Fatal(err)
	}
	d.counter++
	d.flags |= flagEligible
	if _, err := p.Check(d.use("c"), "c", k); err == nil {
		t.Error("a device that may back up its key by now is taken")
	}
	d.flags &^= flagEligible
	d.id = bytes.Repeat([]byte{8}, 32)
	if _, err := p.Check(d.use("c"), "c", k); err == nil {
		t.Error("another passkey is taken")
	}
}

// Keys of kinds that nobody asked for, and answers that are none.
func TestNewRefuses(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p := party(t)
	for name, d := range map[string]*device{
		"another curve":     newDevice(t, ecKey(t, elliptic.P384()), -35),
		"short RSA":         newDevice(t, short, rs256),
		"another algorithm": newDevice(t, ecKey(t, elliptic.P256()), eddsa),
	} {
		if _, err := p.New(d.make("c"), "c"); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	good := string(newDevice(t, ecKey(t, elliptic.P256()), es256).make("c"))
	for name, text := range map[string]string{
		"nothing": "", "no JSON": "{", "no id": strings.Replace(good, `"rawId":"B`, `"rowId":"B`, 1), "padding": strings.Replace(good, `","response"`, `=","response"`, 1),
		"another type": strings.Replace(good, publicKey, "password", 1), "another id": strings.Replace(good, `"rawId":"B`, `"rawId":"C`, 1),
		"a long way": strings.Replace(good, `"usb"`, `"`+strings.Repeat("u", maxTransport+1)+`"`, 1),
		"many ways":  strings.Replace(good, `"usb"`, `"usb"`+strings.Repeat(`,"usb"`, MaxTransports), 1),
	} {
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if k, err := p.New([]byte(text), "c"); err == nil {
			t.Errorf("%s is taken: %+v", name, k)
		}
	}
}

// Whatever a browser sends is refused or a passkey of the bounds that there are.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"rawId":"AQ","type":"public-key","response":{"clientDataJSON":"e30","authenticatorData":"AA","signature":"AA","userHandle":"AA"}}`))
	f.Add([]byte(`{"rawId":"AQ","type":"public-key","response":{"clientDataJSON":"e30","authenticatorData":"AA","publicKey":"AA","publicKeyAlgorithm":-7}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, _ := At(page)
		if k, err := p.New(text, "c"); err == nil {
			t.Errorf("New takes %q: %+v", text, k)
		}
		u, err := ParseUse(text)
		if err != nil {
			return
		}
		if len(u.ID) == 0 || len(u.ID) > MaxID {
			t.Errorf("an id of %d bytes", len(u.ID))
		}
		if _, err := p.Check(u, "c", Key{ID: u.ID}); err == nil {
			t.Errorf("Check takes %q", text)
		}
	})
}

// FuzzParseData: what is read of authenticator data are its bytes, in their order, and
// nothing beyond them.
func FuzzParseData(f *testing.F) {
	d := &device{id: []byte("id"), host: "login.example"}
	f.Add(d.data(true))
	f.Add(d.data(false))
	f.Add(make([]byte, headSize-1))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, ok := ParseData(data)
		if ok != (len(data) >= headSize) {
			t.Fatalf("%d bytes are read: %v", len(data), ok)
		}
		model, id, key, made := d.NewKey()
		if !ok {
			if made {
				t.Error("there is a key in what cannot be read")
			}
			return
		}
		head := binary.BigEndian.AppendUint32(append(bytes.Clone(d.Hash), d.Flags), d.Counter)
		if !bytes.Equal(head, data[:headSize]) {
			t.Errorf("head %x of %x", head, data)
		}
		all := slices.Concat(head, model, binary.BigEndian.AppendUint16(nil, uint16(len(id))), id, key)
		if made && (!bytes.Equal(all, data) || d.Flags&flagKey == 0) {
			t.Errorf("parts %x of %x", all, data)
		}
	})
}
