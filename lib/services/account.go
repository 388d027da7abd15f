package services

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/accessd/accessd/lib/fault"
)

// Bounds of what a node is told of an account.
const (
	maxSudoers = 512 // bytes of one line
	maxShell   = 256 // bytes of its path
)

// CreateAccount says how a node makes the account of a login that it lacks.
type CreateAccount struct {
	Groups  []string `json:"groups,omitempty"`  // of the node, that it is put into
	Sudoers []string `json:"sudoers,omitempty"` // lines of sudoers(5) without the user
	Shell   string   `json:"shell,omitempty"`   // "" means the system's default
	Keep    bool     `json:"keep,omitempty"`    // else it is removed after its last session
}

// strictest returns what both of a and b give to an account. One that is nil
// says nothing of it.
func (a *CreateAccount) strictest(b *CreateAccount) *CreateAccount {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	both := &CreateAccount{Groups: common(a.Groups, b.Groups), Sudoers: common(a.Sudoers, b.Sudoers), Keep: a.Keep && b.Keep}
	if a.Shell == b.Shell {
		both.Shell = a.Shell
	}
	return both
}

// common returns what is in both lists, in the order of the first.
func common(a, b []string) []string {
	var out []string
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

var (
	// groupGrammar is what useradd(8) and groupadd(8) take.
	groupGrammar = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}[$a-z0-9_-]?$`)
	// shellGrammar has no colon, which ends a field of passwd(5).
	shellGrammar = regexp.MustCompile(`^/[A-Za-z0-9._+/-]+$`)
	// sudoersGrammar begins with a host, so that nothing that follows the user's
	// name makes the user a list, a definition or a comment.
	sudoersGrammar = regexp.MustCompile(`^[A-Za-z0-9][!-~]*( [ -~]*)?=[ -~]+$`)
)

func checkGroup(s string) error {
	if !groupGrammar.MatchString(s) {
		return fault.New(fault.BadInput, "%q is no group: want 1 to 32 of a-z 0-9 _ -, beginning with a letter or _", clip(s))
	}
	return nil
}

func checkShell(s string) error {
	if len(s) > maxShell || !shellGrammar.MatchString(s) || path.Clean(s) != s {
		return fault.New(fault.BadInput, "%q is no shell: want an absolute path without .. or double slashes, of letters, digits and . _ + -", clip(s))
	}
	return nil
}

// checkSudoers checks one line. What it allows is for who writes roles to know;
// it must be one line about one user.
func checkSudoers(s string) error {
	const want = `want a line of sudoers(5) without its user, such as "ALL=(ALL) NOPASSWD: /usr/bin/systemctl"`
	switch {
	case len(s) > maxSudoers:
		return fault.New(fault.BadInput, "a line of sudoers has at most %d bytes", maxSudoers)
	case strings.HasSuffix(s, `\`):
		return fault.New(fault.BadInput, "%q goes on in the next line; %s", clip(s), want)
	case strings.Contains(s, "#include") || strings.Contains(s, "@include"):
		return fault.New(fault.BadInput, "%q includes a file; %s", clip(s), want)
	case !sudoersGrammar.MatchString(s) || strings.HasSuffix(s, " "):
		return fault.New(fault.BadInput, "%q: %s", clip(s), want)
	}
	return nil
}

func (p *roleParser) createAccount(n *yaml.Node) *CreateAccount {
	a := &CreateAccount{}
	take := func(list *[]string, value *yaml.Node, what string, check func(string) error) {
		p.list(value, what, func(entry *yaml.Node, s string) {
			if err := check(s); err != nil {
				p.fail(entry, "%s: %v", what, err)
				return
			}
			*list = append(*list, s)
		})
	}
	p.fields(n, "create_account", func(key, value *yaml.Node) {
		switch key.Value {
		case "groups":
			take(&a.Groups, value, "groups", checkGroup)
		case "sudoers":
			take(&a.Sudoers, value, "sudoers", checkSudoers)
		case "shell":
			s, ok := p.text(value, "shell")
			if !ok {
				return
			}
			if err := checkShell(s); err != nil {
				p.fail(value, "shell: %v", err)
				return
			}
			a.Shell = s
		case "keep":
			a.Keep = p.boolean(value, "keep")
		default:
			p.fail(key, "unknown field %q in create_account", clip(key.Value))
		}
	})
	return a
}
