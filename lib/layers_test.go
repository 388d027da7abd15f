// Package lib holds the import law: a package imports only packages of a lower
// layer.
package lib

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/accessd/accessd/"

// layers gives every package its layer. A new package needs a row here, in
// docs/ARCHITECTURE.md and, when it is a new kind of thing, a reason.
var layers = map[string]int{
	"cmd/accessd": 8,
	"lib/cli":     7,
	"lib/daemon":  6,

	"lib/web":           5,
	"lib/srv/node":      5,
	"lib/srv/proxy":     5,
	"lib/srv/remote":    5,
	"lib/auth":          5,
	"lib/reversetunnel": 5,

	"lib/srv": 4,

	"lib/authz":            3,
	"lib/events":           3,
	"lib/events/recording": 3,
	"lib/srv/sftp":         3,
	"lib/srv/sshserver":    3,

	"client": 3, // for programs of others

	"lib/rpc":          2,
	"lib/menu":         2,
	"lib/services":     2,
	"lib/srv/listener": 2,

	"lib/backend": 1,
	"lib/config":  1,
	"lib/lockdir": 1,
	"lib/relay":   1,
	"lib/seal":    1,
	"lib/sshca":   1,
	"lib/passkey": 1,
	"lib/sshsig":  1,
	"lib/store":   1,

	"lib/srv/child": 1,

	"api/accessd/v1":                  0,
	"api/accessd/v1/accessdv1connect": 0,
	"lib/defaults":                    0,
	"lib/fault":                       0,
	"lib/names":                       0,
	"lib/sshwire":                     0,
}

// free lists what may import anything: nothing of the product imports it.
var free = []string{"integration", "bench", "examples", "lib/backend/backendtest", "lib/store/storetest", "docs"}

func isFree(pkg string) bool {
	for _, f := range free {
		if pkg == f || strings.HasPrefix(pkg, f+"/") {
			return true
		}
	}
	return false
}

// sameLayer lets a package import another of its own layer: generated code
// is two packages by its generator's choice, and names report their mistakes
// with fault.
var sameLayer = map[[2]string]string{
	{"api/accessd/v1/accessdv1connect", "api/accessd/v1"}: "one generated unit",
	{"lib/names", "lib/fault"}:                            "a malformed name is a classified error",
	{"lib/sshwire", "lib/fault"}:                          "a malformed payload is a classified error",
}

func TestImportLaw(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if name := d.Name(); name == "tools" || name == "testdata" || (strings.HasPrefix(name, ".") && rel != ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(rel) == "." {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		if isFree(pkg) {
			return nil
		}
		seen[pkg] = true
		checkFile(t, path, pkg)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range layers {
		if !seen[pkg] {
			t.Errorf("layer table has %s, which holds no code: take the row out", pkg)
		}
	}
}

func checkFile(t *testing.T, path, pkg string) {
	t.Helper()
	own, ok := layers[pkg]
	if !ok {
		t.Errorf("%s: package %s has no row in the layer table", path, pkg)
		return
	}
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range f.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		dep, ours := strings.CutPrefix(name, module)
		if !ours {
			continue
		}
		if isFree(dep) {
			t.Errorf("%s imports %s: nothing of the product imports tests, benchmarks or examples", path, dep)
			continue
		}
		if layer := layers[dep]; layer >= own && sameLayer[[2]string{pkg, dep}] == "" {
			t.Errorf("%s (layer %d) imports %s (layer %d): import only lower layers, or declare the interface you need", path, own, dep, layer)
		}
	}
}
