package lib

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// named is a test as docs/threats.md writes it: the last part of its package's
// directory, and its name.
var named = regexp.MustCompile("`([a-z0-9]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")

// TestThreatsPage: whoever decides by docs/threats.md relies on the tests that it
// names. Each row has at least one, and all of them are there.
func TestThreatsPage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "threats.md"))
	if err != nil {
		t.Fatal(err)
	}
	have := tests(t)
	rows, shown := 0, strings.SplitN(string(text), "\n## What no test shows\n", 2)
	if len(shown) != 2 {
		t.Fatal("the page does not say what no test shows")
	}
	for line := range strings.Lines(shown[0]) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		found := named.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(found) == 0 {
			t.Errorf("no test is named for %q", strings.TrimSpace(cells[0]))
		}
		for _, m := range found {
			if !have[m[1]+"."+m[2]] {
				t.Errorf("%s.%s does not exist; it should show %q", m[1], m[2], strings.TrimSpace(cells[0]))
			}
		}
	}
	if rows < 50 {
		t.Errorf("the page has %d rows that could be read, want all of them", rows)
	}
}

// tests returns what is called Test or Fuzz in the test files of this module.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	for _, dir := range []string{"lib", "integration", "client"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					have[filepath.Base(filepath.Dir(path))+"."+fn.Name.Name] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return have
}
