package lib

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// never lists what the product does not call, as package and name, with the
// reason. Its tests may.
var never = map[string]string{
	"agent.ServeAgent":          "an agent of ours would read what others forward (CVE-2025-47914, CVE-2026-46598): relay the bytes",
	"agent.NewKeyring":          "it drops the constraints of keys (CVE-2026-39832, CVE-2026-39833)",
	"agent.ForwardToAgent":      "it serves every connection that the far side opens: lib/srv asks for each",
	"agent.ForwardToRemote":     "it serves every connection that the far side opens: lib/srv asks for each",
	"ssh.CertChecker":           "no principals are anybody to it: lib/sshca has the checks",
	"ssh.InsecureIgnoreHostKey": "nothing offered is proof",
	"os.Chown":                  "it follows links: change what is open, or the link itself",
	"filepath.EvalSymlinks":     "what it found is another thing by the time it is used: os.Root",
}

// TestNeverUsed holds the product to what it does without.
func TestNeverUsed(t *testing.T) {
	for _, dir := range []string{".", filepath.Join("..", "cmd"), filepath.Join("..", "client")} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "test/") {
				return err
			}
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if pkg, ok := n.X.(*ast.Ident); ok && never[pkg.Name+"."+n.Sel.Name] != "" {
						t.Errorf("%v: %s.%s: %s", files.Position(n.Pos()), pkg.Name, n.Sel.Name, never[pkg.Name+"."+n.Sel.Name])
					}
				case *ast.CompositeLit:
					if has(n, "InsecureSkipVerify") && !has(n, "VerifyConnection") {
						t.Errorf("%v: InsecureSkipVerify without a VerifyConnection", files.Position(n.Pos()))
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// has reports whether a literal sets a field.
func has(lit *ast.CompositeLit, field string) bool {
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := kv.Key.(*ast.Ident); ok && key.Name == field {
				return true
			}
		}
	}
	return false
}
