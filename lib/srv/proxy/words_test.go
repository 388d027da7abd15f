package proxy

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitWords(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string // nil: refused
	}{
		{"", []string{}},
		{"  \t\n", []string{}},
		{"ls", []string{"ls"}},
		{"  ls   --format json ", []string{"ls", "--format", "json"}},
		{`sessions kill X --reason "two words"`, []string{"sessions", "kill", "X", "--reason", "two words"}},
		{`a 'b  $c ` + "`d`" + ` "e"' f`, []string{"a", "b  $c `d` \"e\"", "f"}},
		{`a"b"'c'\ d`, []string{"abc d"}},
		{`"" ''`, []string{"", ""}},
		{`"\"\\\$\x"`, []string{`"\$\x`}},
		{`\$HOME \;`, []string{"$HOME", ";"}},
		{"*.go ~ #x {a,b}", []string{"*.go", "~", "#x", "{a,b}"}},
		{"$HOME", nil},
		{`"$HOME"`, nil},
		{"`id`", nil},
		{"\"`id`\"", nil},
		{"$(id)", nil},
		{"a;b", nil},
		{"a | b", nil},
		{"a&", nil},
		{"a > b", nil},
		{"a <b", nil},
		{"(a)", nil},
		{`"a`, nil},
		{`'a`, nil},
		{`a\`, nil},
		{strings.Repeat("a ", maxArgs+1), nil},
		{strings.Repeat("a", maxCommand+1), nil},
	} {
		got, err := splitWords(c.line)
		if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) && c.want != nil {
			t.Errorf("splitWords(%.40q) = %q, %v; want %q", c.line, got, err, c.want)
		}
	}
}

// FuzzSplitWords holds that words come back as they were when each is quoted.
func FuzzSplitWords(f *testing.F) {
	f.Add("ls --format json", "it's")
	f.Add(`a "b c" 'd'`, "\x00\n$(x)`y`")
	f.Fuzz(func(t *testing.T, line, word string) {
		words, err := splitWords(line)
		if err == nil && len(words) > maxArgs {
			t.Errorf("%d words", len(words))
		}
		if len(word) > 1<<10 {
			return
		}
		got, err := splitWords("x '" + strings.ReplaceAll(word, "'", `'\''`) + "' y")
		if err != nil || !slices.Equal(got, []string{"x", word, "y"}) {
			t.Errorf("%q in quotes is %q, %v", word, got, err)
		}
	})
}
