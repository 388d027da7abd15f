package auth

import (
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/fault"
)

func TestTokenForm(t *testing.T) {
	id, text, hash := newToken()
	gotID, gotHash, err := parseToken("  " + text + "\n")
	if err != nil || gotID != id || gotHash != hash {
		t.Errorf("parseToken(%q) = %q, %q, %v, want %q, %q", text, gotID, gotHash, err, id, hash)
	}
	if _, other, _ := newToken(); other == text {
		t.Error("two tokens are the same")
	}
	for name, s := range map[string]string{
		"empty":        "",
		"id only":      id,
		"no id":        text[len(id):],
		"cut":          text[:len(text)-1],
		"longer":       text + "a",
		"upper case":   strings.ToUpper(text),
		"path":         "../" + text[3:],
		"two secrets":  text + "." + text,
		"inner blank":  id + ". " + text[len(id)+1:],
		"null":         text[:20] + "\x00" + text[21:],
		"other digits": strings.ReplaceAll(text, text[20:21], "1"),
	} {
		if _, _, err := parseToken(s); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: parseToken = %v, want a bad input error", name, err)
		} else if len(s) > 30 && strings.Contains(err.Error(), s[20:30]) {
			t.Errorf("%s: the error %q repeats the secret", name, err)
		}
	}
}

func TestInviteForm(t *testing.T) {
	invite, hash := newInvite()
	for _, s := range []string{invite, " " + invite + "\r\n"} {
		if got, err := parseInvite(s); err != nil || got != hash {
			t.Errorf("parseInvite(%q) = %q, %v, want %q", s, got, err, hash)
		}
	}
	for _, s := range []string{"", "invite-", invite[:len(invite)-1], invite + "a", strings.ToUpper(invite), "correct horse"} {
		if _, err := parseInvite(s); err == nil {
			t.Errorf("parseInvite(%q) took it", s)
		}
	}
}

func TestSameHash(t *testing.T) {
	h := hashSecret("x")
	for _, c := range []struct {
		a, b string
		want bool
	}{{h, h, true}, {h, hashSecret("y"), false}, {"", "", false}, {"", h, false}, {h, "", false}} {
		if got := sameHash(c.a, c.b); got != c.want {
			t.Errorf("sameHash(%q, %q) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func FuzzToken(f *testing.F) {
	_, text, _ := newToken()
	f.Add(text)
	f.Add("a.b")
	f.Fuzz(func(t *testing.T, s string) {
		id, hash, err := parseToken(s)
		if err != nil {
			return
		}
		trimmed := strings.TrimSpace(s)
		if secret := strings.TrimPrefix(trimmed, id+"."); secret == trimmed || hashSecret(secret) != hash || !tokenIDGrammar.MatchString(id) {
			t.Errorf("parseToken(%q) = %q, %q, which is another token", s, id, hash)
		}
	})
}

func FuzzInvite(f *testing.F) {
	invite, _ := newInvite()
	f.Add(invite)
	f.Fuzz(func(t *testing.T, s string) {
		if hash, err := parseInvite(s); err == nil && hash != hashSecret(strings.TrimSpace(s)) {
			t.Errorf("parseInvite(%q) = %q, which is another invite's", s, hash)
		}
	})
}
