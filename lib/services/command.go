package services

import (
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// maxCommandPattern bounds a pattern of commands, in bytes.
	maxCommandPattern = 512
	// maxCommandLine bounds a line that patterns are held against, in bytes; it
	// and maxCommandPattern bound what a decision takes.
	maxCommandLine = 8 << 10
	// maxLineCommands bounds the commands of one line.
	maxLineCommands = 32
)

// CommandPattern names commands: a program and what it is called with, such as
// "systemctl status *". It is split into words as a shell does, and every word is
// the same in the command. An asterisk outside quotes stands for any characters
// but a slash, without a hyphen where the word begins and without ".." between
// slashes; one that is the whole last word stands for any further words, or
// none. The first word has no asterisk, and what follows a program that runs what
// it is given has none either. The zero value matches nothing.
type CommandPattern struct { //nolint:recvcheck // a value that only UnmarshalText changes
	text  string
	words []commandWord
	open  bool // any further words may follow
}

// commandWord is a word of a pattern: what stands between its asterisks.
type commandWord []string

// ParseCommandPattern reads a pattern, or returns a [fault.BadInput] error.
func ParseCommandPattern(s string) (CommandPattern, error) {
	p := CommandPattern{text: s}
	if len(s) > maxCommandPattern {
		return CommandPattern{}, fault.New(fault.BadInput, "%q is longer than %d bytes", clip(s), maxCommandPattern)
	}
	commands, err := parseCommands(s, true)
	if err == nil && len(commands) > 1 {
		err = fault.New(fault.BadInput, "it is more than one command; give each a pattern of its own")
	}
	if err == nil {
		err = p.take(commands[0])
	}
	if err != nil {
		return CommandPattern{}, fault.New(fault.BadInput, "%q: %w", clip(s), err)
	}
	return p, nil
}

// take makes the words of a pattern its own.
func (p *CommandPattern) take(words []string) error {
	last := len(words) - 1
	if p.open = last > 0 && words[last] == anyMark; p.open {
		words = words[:last]
	}
	stars := p.open
	for i, w := range words {
		parts := strings.Split(w, anyMark)
		if len(parts) > 1 && i == 0 {
			return fault.New(fault.BadInput, "the first word is the name of a program, without an asterisk")
		}
		stars = stars || len(parts) > 1
		p.words = append(p.words, parts)
	}
	if stars && isWrapper(words[0]) {
		return fault.New(fault.BadInput, "%s runs what it is given, so no asterisk may follow", clip(words[0]))
	}
	return nil
}

// isWrapper reports whether a program, or a command of a shell's own, is known
// to run what its arguments say, or to change what the next command means. It is
// a guard against patterns that mean more than who writes them thinks, and no
// more: there is no list of all such programs.
func isWrapper(name string) bool {
	name = name[strings.LastIndexByte(name, '/')+1:]
	if name == "." {
		return true
	}
	name = strings.TrimRight(name, "0123456789.-") // python3.13
	return slices.Contains(strings.Fields(`
		eval exec source command builtin alias unalias trap export declare typeset local readonly set setopt emulate
		enable hash shopt let read printf unset setenv noglob nocorrect repeat abbr bind complete compgen
		env sudo doas su runuser setpriv pkexec run systemd-run capsh newgrp sg
		timeout nice ionice chrt taskset nohup setsid stdbuf unbuffer time script watch flock choom prlimit setarch
		xargs parallel find fd entr at batch crontab ssh rsh mosh dbclient scp sftp rsync socat nc ncat
		sh bash rbash dash zsh ksh mksh ash fish csh tcsh rc es yash nu elvish xonsh pwsh busybox toybox
		python pypy perl ruby node deno bun lua luajit tclsh wish expect php awk gawk mawk nawk sed ed ex
		vi vim nvim view emacs nano less more most man pico joe
		gdb lldb strace ltrace perf valgrind tmux screen make git tar zip
		chroot unshare nsenter bwrap firejail docker podman nerdctl kubectl lxc machinectl ctr crictl
	`), name)
}

// String returns the pattern as it was read.
func (p CommandPattern) String() string { return p.text }

// MarshalText returns the pattern as it was read.
func (p CommandPattern) MarshalText() ([]byte, error) { return []byte(p.text), nil }

// UnmarshalText is [ParseCommandPattern].
func (p *CommandPattern) UnmarshalText(text []byte) (err error) {
	*p, err = ParseCommandPattern(string(text))
	return err
}

// match reports whether p names a command.
func (p CommandPattern) match(words []string) bool {
	if len(p.words) == 0 || len(words) < len(p.words) || len(words) > len(p.words) && !p.open {
		return false
	}
	for i, w := range p.words {
		if !w.match(words[i]) {
			return false
		}
	}
	return true
}

// match reports whether w names a word.
func (w commandWord) match(word string) bool {
	if len(w) == 1 {
		return w[0] == word
	}
	if word == "" || w[0] == "" && word[0] == '-' || slices.Contains(strings.Split(word, "/"), "..") {
		return false
	}
	last := len(w) - 1
	rest, ok := strings.CutPrefix(word, w[0])
	if !ok {
		return false
	}
	if rest, ok = strings.CutSuffix(rest, w[last]); !ok {
		return false
	}
	for _, part := range w[1:last] {
		// The first place there is leaves the most to the next part, and no
		// asterisk reaches over a slash on the way.
		i := strings.Index(rest, part)
		if i < 0 || strings.Contains(rest[:i], "/") {
			return false
		}
		rest = rest[i+len(part):]
	}
	return !strings.Contains(rest, "/")
}

// CommandLine is what a client wants to have run, as [CommandPattern] sees it.
// The zero value is a line that no pattern grants.
type CommandLine struct {
	commands [][]string
	refused  string
}

// NewCommandLine reads a line. One that a shell could read in another way than
// this package does is no error: it is a line that no pattern grants.
func NewCommandLine(s string) CommandLine {
	if len(s) > maxCommandLine {
		return CommandLine{refused: "it is too long"}
	}
	commands, err := parseCommands(s, false)
	if err != nil {
		return CommandLine{refused: fault.Public(err)}
	}
	return CommandLine{commands: commands}
}

// Granted reports whether patterns name every command of l; when not, why is the
// first command that they do not, or what else speaks against l.
func (l CommandLine) Granted(patterns []CommandPattern) (why string, ok bool) {
	if len(l.commands) == 0 {
		return l.refused, false
	}
	for _, words := range l.commands {
		if !slices.ContainsFunc(patterns, func(p CommandPattern) bool { return p.match(words) }) {
			return strings.Join(words, " "), false
		}
	}
	return "", true
}

// Readable reports whether l is a line that patterns could grant.
func (l CommandLine) Readable() bool { return len(l.commands) > 0 }

// anyMark stands for an asterisk outside quotes in the words of a pattern. No
// word has it, since only printable ASCII is taken.
const anyMark = "\x00"

// parseCommands returns the words of each command of a line, the same in every
// shell there is a grammar for. stars says whether an asterisk may stand outside
// quotes.
func parseCommands(s string, stars bool) ([][]string, error) {
	// What these mean is not the same in every shell, or within every quote.
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune("\\!`", r) }); i >= 0 {
		return nil, fault.New(fault.BadInput, "%q has no place in it", []rune(s[i:])[0])
	}
	var found [][]string
	for i, lang := range [...]syntax.LangVariant{syntax.LangPOSIX, syntax.LangBash, syntax.LangZsh, syntax.LangMirBSDKorn} {
		r := lineReader{stars: stars}
		if err := r.read(s, lang); err != nil {
			return nil, err
		}
		if i > 0 && !slices.EqualFunc(r.commands, found, slices.Equal) {
			return nil, fault.New(fault.BadInput, "not every shell reads it in the same way")
		}
		found = r.commands
	}
	if len(found) == 0 {
		return nil, fault.New(fault.BadInput, "there is no command in it")
	}
	return found, nil
}

// lineReader collects the commands of a line. What it does not know it refuses.
type lineReader struct {
	stars    bool
	commands [][]string
}

func (r *lineReader) read(s string, lang syntax.LangVariant) error {
	file, err := syntax.NewParser(syntax.Variant(lang), syntax.KeepComments(true)).Parse(strings.NewReader(s), "")
	if err != nil {
		return fault.New(fault.BadInput, "no shell's grammar has it")
	}
	if len(file.Last) > 0 {
		return fault.New(fault.BadInput, "a comment has no place in it")
	}
	for _, st := range file.Stmts {
		if err := r.statement(st); err != nil {
			return err
		}
	}
	return nil
}

func (r *lineReader) statement(s *syntax.Stmt) error {
	switch {
	case len(s.Comments) > 0:
		return fault.New(fault.BadInput, "a comment has no place in it")
	case s.Negated || s.Background || s.Coprocess || s.Disown:
		return fault.New(fault.BadInput, "a command in the background has no place in it")
	case len(s.Redirs) > 0:
		return fault.New(fault.BadInput, "a redirection has no place in it")
	}
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		return r.call(c)
	case *syntax.BinaryCmd:
		if c.Op != syntax.AndStmt && c.Op != syntax.OrStmt && c.Op != syntax.Pipe {
			return fault.New(fault.BadInput, "%s has no place in it", c.Op)
		}
		if err := r.statement(c.X); err != nil {
			return err
		}
		return r.statement(c.Y)
	}
	return fault.New(fault.BadInput, "only commands, joined by | && || and ;, have a place in it")
}

func (r *lineReader) call(c *syntax.CallExpr) error {
	if len(c.Assigns) > 0 || len(c.Args) == 0 {
		return fault.New(fault.BadInput, "an assignment has no place in it")
	}
	if len(r.commands) == maxLineCommands {
		return fault.New(fault.BadInput, "it has more than %d commands", maxLineCommands)
	}
	var words []string
	for _, arg := range c.Args {
		w, err := r.word(arg)
		if err != nil {
			return err
		}
		words = append(words, w)
	}
	// A name in quotes is one that some shells do not take for a word of their
	// own, and one with = is an assignment in some; + and - begin modifiers.
	if name, plain := c.Args[0].Parts[0].(*syntax.Lit); !plain || len(c.Args[0].Parts) > 1 || strings.ContainsAny(name.Value, "=:,@%") ||
		strings.ContainsAny(name.Value[:1], "+-") || isKeyword(name.Value) {
		return fault.New(fault.BadInput, "a command begins with the plain name of a program")
	}
	r.commands = append(r.commands, words)
	return nil
}

// isKeyword reports whether some shell reads a command's name as a word of its
// grammar, where the others do not.
func isKeyword(name string) bool {
	return slices.Contains(strings.Fields(`
		if then else elif fi for while until do done case esac in select function time coproc repeat foreach end
		nocorrect noglob begin switch and or not break continue return goto default endif endsw breaksw label
	`), name)
}

// word returns the one value of w in every shell.
func (r *lineReader) word(w *syntax.Word) (string, error) {
	var out strings.Builder
	quoted := false
	for i, part := range w.Parts {
		switch p := part.(type) {
		case *syntax.Lit:
			s, err := r.plain(p.Value, i == 0)
			if err != nil {
				return "", err
			}
			out.WriteString(s)
			quoted = false
			continue
		case *syntax.SglQuoted:
			if p.Dollar {
				return "", errExpansion
			}
			out.WriteString(p.Value)
		case *syntax.DblQuoted:
			if p.Dollar {
				return "", errExpansion
			}
			for _, in := range p.Parts {
				lit, ok := in.(*syntax.Lit)
				if !ok || strings.Contains(lit.Value, "$") {
					return "", errExpansion
				}
				out.WriteString(lit.Value)
			}
		default:
			return "", errExpansion
		}
		if quoted { // two quotes in a row are a quote to some
			return "", fault.New(fault.BadInput, "quotes that follow each other have no place in it")
		}
		quoted = true
	}
	return out.String(), nil
}

// errExpansion refuses what is not known before a shell has run.
var errExpansion = fault.New(fault.BadInput, "an expansion has no place in it")

// plain returns what stands outside quotes, with marks for asterisks. Only
// characters that no shell gives a meaning there are taken.
func (r *lineReader) plain(s string, first bool) (string, error) {
	if first && strings.ContainsAny(s[:1], "=%") { // zsh: where a program is; fish: a process
		return "", errExpansion
	}
	for _, c := range s {
		letter := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && !strings.ContainsRune("%+,-./:=@_", c) && (c != '*' || !r.stars) {
			return "", fault.New(fault.BadInput, "%q has no place in it outside quotes", c)
		}
	}
	return strings.ReplaceAll(s, "*", anyMark), nil
}

// checkCommands returns what is wrong with the commands of a rule, or "".
func checkCommands(r Rule, deny bool) string {
	switch {
	case len(r.Commands) == 0:
		return ""
	case deny:
		return "commands belong into allow rules: no list of what is denied is ever complete"
	case !slices.Contains(r.Actions, "exec"):
		return "commands needs the action exec"
	case slices.Contains(r.Actions, wildcard) || slices.Contains(r.Actions, "shell") || slices.Contains(r.Actions, "join"):
		return `commands does not go with the actions shell, join and "*", which run any; make a rule of its own of it`
	}
	return ""
}

// commandTexts returns the texts of patterns.
func commandTexts(patterns []CommandPattern) []string {
	var out []string
	for _, p := range patterns {
		out = append(out, p.text)
	}
	return out
}
