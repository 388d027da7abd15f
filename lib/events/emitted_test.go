package events

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// product calls fn with every file of the product that is not a test.
func product(t *testing.T, fn func(path string, file *ast.File, set *token.FileSet)) {
	t.Helper()
	set := token.NewFileSet()
	for _, dir := range []string{"..", "../../cmd"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err == nil {
				fn(path, file, set)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nameOf returns the constant that x is: events.SessionStart, or SessionStart in
// this package.
func nameOf(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.SelectorExpr:
		if pkg, ok := x.X.(*ast.Ident); ok && pkg.Name == "events" {
			return x.Sel.Name
		}
	case *ast.Ident:
		return x.Name
	}
	return ""
}

// The emitter refuses what is not in the table, but only once it happens. Every
// event that the source names is there, with the fields that stand beside it; and
// what is there is emitted.
func TestEveryEventIsInTheTable(t *testing.T) {
	specs := map[Name]map[string]bool{}
	known := map[string]bool{} // fields of any event
	for _, spec := range Table() {
		specs[spec.Name] = map[string]bool{truncatedField: true}
		for _, f := range spec.Fields {
			specs[spec.Name][f.Name], known[f.Name] = true, true
		}
	}
	constants, used := map[string]Name{}, map[string]bool{}
	product(t, func(path string, file *ast.File, _ *token.FileSet) {
		if path == filepath.Join("..", "events", "table.go") {
			ast.Inspect(file, func(n ast.Node) bool {
				v, ok := n.(*ast.ValueSpec)
				if !ok || len(v.Values) != 1 || nameOf(v.Type) != "Name" {
					return true
				}
				lit, ok := v.Values[0].(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s is not a literal", v.Names[0].Name)
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				constants[v.Names[0].Name] = Name(text)
				return true
			})
		}
	})
	for constant, name := range constants {
		if specs[name] == nil {
			t.Errorf("%s, %q, is not in the table", constant, name)
		}
	}
	if len(constants) != len(specs) {
		t.Errorf("%d names, %d rows in the table", len(constants), len(specs))
	}
	literals := 0
	product(t, func(path string, file *ast.File, set *token.FileSet) {
		if path == filepath.Join("..", "events", "table.go") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				used[nameOf(n)] = true
			case *ast.Ident:
				if file.Name.Name == "events" {
					used[n.Name] = true
				}
			case *ast.CompositeLit:
				if nameOf(n.Type) == "Event" {
					literals++
					checkLiteral(n, constants, specs, func(pos token.Pos, format string, args ...any) {
						t.Errorf("%s: %s", set.Position(pos), fmt.Sprintf(format, args...))
					})
				}
			case *ast.AssignStmt: // ev.Fields["key"] = …
				for _, left := range n.Lhs {
					if key := fieldKey(left); key != "" && !known[key] {
						t.Errorf("%s: no event has a field %q", set.Position(n.Pos()), key)
					}
				}
			}
			return true
		})
	})
	if literals < 30 {
		t.Errorf("only %d events were found in the source: this test looks at the wrong files", literals)
	}
	for constant, name := range constants {
		if !used[constant] {
			t.Errorf("%s is in the table, and nothing emits it", name)
		}
	}
}

// fieldKey returns the key of an expression x.Fields["key"].
func fieldKey(x ast.Expr) string {
	index, ok := x.(*ast.IndexExpr)
	if !ok {
		return ""
	}
	fields, ok := index.X.(*ast.SelectorExpr)
	lit, isLit := index.Index.(*ast.BasicLit)
	if !ok || !isLit || fields.Sel.Name != "Fields" {
		return ""
	}
	key, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return key
}

// checkLiteral compares an Event{Name: …, Fields: …} with its row.
func checkLiteral(lit *ast.CompositeLit, constants map[string]Name, specs map[Name]map[string]bool, wrong func(token.Pos, string, ...any)) {
	var spec map[string]bool
	var fields *ast.CompositeLit
	for _, e := range lit.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			wrong(e.Pos(), "an event without the names of its members")
			continue
		}
		switch nameOf(kv.Key) {
		case "Name":
			if name, ok := constants[nameOf(kv.Value)]; ok {
				spec = specs[name]
			} else if _, ok := kv.Value.(*ast.BasicLit); ok {
				wrong(kv.Pos(), "an event's name is not a constant of the table")
			}
		case "Fields":
			fields, _ = kv.Value.(*ast.CompositeLit)
		}
	}
	if spec == nil || fields == nil {
		return // decided at run time
	}
	for _, e := range fields.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, ok := kv.Key.(*ast.BasicLit)
		if !ok {
			continue
		}
		if text, err := strconv.Unquote(key.Value); err != nil || !spec[text] {
			wrong(key.Pos(), "the table has no field %s for this event", key.Value)
		}
	}
}

// docs/events.md is generated: it has every event and every field.
func TestEventsPageIsCurrent(t *testing.T) {
	page := string(read(t, "..", "..", "docs", "events.md"))
	for _, spec := range Table() {
		_, part, found := strings.Cut(page, fmt.Sprintf("\n## %s\n`%s` · %s\n", spec.Name, spec.Code, spec.Meaning))
		if !found {
			t.Errorf("docs/events.md has no %s as the table has it; run \"make generate\"", spec.Name)
			continue
		}
		part, _, _ = strings.Cut(part, "\n## ")
		for _, f := range spec.Fields {
			if !strings.Contains(part, fmt.Sprintf("| `%s` | %s | %s | `%v` |\n", f.Name, f.Type, f.Meaning, f.Example)) {
				t.Errorf("docs/events.md does not have %s of %s as the table has it; run \"make generate\"", f.Name, spec.Name)
			}
		}
	}
	if rows, sections := len(Table()), strings.Count(page, "\n## "); rows != sections {
		t.Errorf("docs/events.md has %d events, the table %d", sections, rows)
	}
}
