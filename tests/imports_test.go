// Package tests holds what is tested across packages: the rules of the house here, and, in the directories below, what
// drives the built program and real servers.
package tests

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "pitr"

// order is "Imports run one way" of docs/design.md: each group imports only groups before it. Whoever adds a package
// says here, and there, where it belongs.
var order = [][]string{
	{"internal/hint", "internal/durable", "internal/wal"},
	{"storage", "internal/postgres", "cluster", "internal/agent/client"},
	{"internal/repo", "cluster/dcs", "cluster/guard", "cluster/proxy", "internal/postgres/pgtest", "storage/storagetest", "storage/storagetest/s3server"},
	{"archive", "archive/dump", "cluster/client"},
	{"basebackup"},
	{"recovery"},
	{"cluster/manager"},
	{"internal/config"},
	{"internal/agent"},
	{"internal/api", "internal/api/web"},
	{"cmd/pitr"},
	{"tests"}, // and everything below it, as below storagetest
}

// fences name who alone may import what.
var fences = []struct {
	imports []string // path or anything below it
	only    []string
}{
	{[]string{"github.com/aws", "github.com/Azure", "github.com/ncw/swift", "github.com/gophercloud", "github.com/minio", "cloud.google.com"}, []string{"storage", "storage/storagetest/azureserver"}},
	{[]string{"github.com/jackc"}, []string{"internal/postgres", "internal/postgres/pgtest"}},
	{[]string{"go.etcd.io"}, []string{"cluster/dcs"}},
	{[]string{"github.com/robfig/cron"}, []string{"internal/agent", "internal/config"}},
	{[]string{"github.com/spf13"}, []string{"cmd/pitr"}},
}

// pure packages decide and decode; whatever they need of the world comes in as a value.
var pure = []string{"cluster", "internal/wal"}

// world is what a pure package may not import.
var world = []string{"os", "net", "syscall", "path/filepath", "io/ioutil", "plugin", "log/syslog", "golang.org/x/sys", "golang.org/x/net", "pitr/internal/durable"}

// clock is what a pure package may not call of package time. Its types are values and are allowed.
var clock = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"}

// forTests are packages for tests alone, with everything below them.
var forTests = []string{"internal/postgres/pgtest", "storage/storagetest"}

// shapeless are names that say nothing about what a package owns.
var shapeless = []string{"util", "utils", "common", "helper", "helpers", "misc", "lib"}

func TestHouseRules(t *testing.T) {
	files := map[string]string{}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		switch {
		case d.IsDir() && p != ".." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_"):
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", p)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)] = string(text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"cmd/pitr/main.go", "storage/storage.go", "tests/imports_test.go"} {
		if _, ok := files[must]; !ok {
			t.Errorf("%s was not read: the rules were not checked against the tree", must)
		}
	}
	for _, breach := range breaches(files) {
		t.Error(breach)
	}
}

// TestDesignSaysTheSame holds the order here against the line in the design that people read.
func TestDesignSaysTheSame(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for _, g := range order {
		var names []string
		for _, p := range g {
			switch p {
			case "internal/agent/client":
				names = append(names, "agent/client")
			case "internal/api/web": // goes with api
			case "cmd/pitr":
				names = append(names, p)
			default:
				names = append(names, path.Base(p))
			}
		}
		groups = append(groups, strings.Join(names, " "))
	}
	if want := "`" + strings.Join(groups, " | ") + "`"; !strings.Contains(string(text), want) {
		t.Errorf("docs/design.md does not have the order of imports that is checked here:\n%s", want)
	}
}

// breaches returns what in the given files, by path from the root, breaks the rules of the house.
func breaches(files map[string]string) []string {
	var found []string
	documented := map[string]bool{} // by directory
	hasCode := map[string]bool{}    // directory holds more than tests
	fset := token.NewFileSet()
	for _, name := range sortedKeys(files) {
		complain := func(format string, args ...any) {
			found = append(found, name+": "+fmt.Sprintf(format, args...))
		}
		f, err := parser.ParseFile(fset, name, files[name], parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			complain("%v", err)
			continue
		}
		dir, test := path.Dir(name), strings.HasSuffix(name, "_test.go")
		hasCode[dir] = hasCode[dir] || !test
		if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
			documented[dir] = documented[dir] || !test
			if test {
				documented[dir+" test"] = true
			}
		}
		if slices.Contains(shapeless, f.Name.Name) || slices.Contains(shapeless, path.Base(dir)) {
			complain("the name of package %s says nothing about what it owns", f.Name.Name)
		}
		if group(dir) < 0 {
			complain("package %s has no place in the order of imports: give it one in docs/design.md and tests/imports_test.go", dir)
			continue
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				complain("%v", err)
				continue
			}
			for _, why := range wrongImport(dir, imported, test) {
				complain("%s", why)
			}
		}
		if !test && slices.Contains(pure, dir) {
			for _, why := range impure(f) {
				complain("%s", why)
			}
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				complain("has an init function")
			}
		}
	}
	for _, dir := range sortedKeys(hasCode) {
		if !documented[dir] && (hasCode[dir] || !documented[dir+" test"]) {
			found = append(found, dir+": has no package comment")
		}
	}
	return found
}

// group is the place of a package in the order, -1 if it has none.
func group(dir string) int {
	for _, d := range []string{"tests", "storage/storagetest"} {
		if within(dir, d) {
			dir = d
		}
	}
	return slices.IndexFunc(order, func(g []string) bool { return slices.Contains(g, dir) })
}

// wrongImport says why package dir, or its tests, may not import a path.
func wrongImport(dir, imported string, test bool) []string {
	var why []string
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		inTests := test || dir == "tests" || strings.HasPrefix(dir, "tests/")
		switch {
		case slices.ContainsFunc(forTests, func(p string) bool { return within(own, p) }):
			if !inTests {
				why = append(why, "imports "+own+", which is for tests")
			}
		case own == dir && test: // an external test of the package itself
		case strings.HasPrefix(own, "tests/") && strings.HasPrefix(dir, "tests"): // parts of one program
		case group(own) < 0:
			why = append(why, "imports "+own+", which has no place in the order of imports")
		case group(own) >= group(dir):
			why = append(why, "imports "+own+", which does not stand before "+dir+" in the order of imports")
		}
	}
	for _, fence := range fences {
		if slices.ContainsFunc(fence.imports, func(p string) bool { return within(imported, p) }) && !slices.Contains(fence.only, dir) {
			why = append(why, "imports "+imported+", which only "+strings.Join(fence.only, " and ")+" may")
		}
	}
	if !test && slices.Contains(pure, dir) && slices.ContainsFunc(world, func(p string) bool { return within(imported, p) }) {
		why = append(why, "imports "+imported+", but "+dir+" is pure: no clock, no network, no files")
	}
	return why
}

// impure finds uses of the clock, under whatever name package time was imported.
func impure(f *ast.File) []string {
	var why []string
	name := ""
	for _, spec := range f.Imports {
		if spec.Path.Value != `"time"` {
			continue
		}
		name = "time"
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "." {
			why = append(why, "imports time into its own names, where the use of the clock can't be seen")
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && name != "" && x.Name == name && slices.Contains(clock, sel.Sel.Name) {
			why = append(why, "uses time."+sel.Sel.Name+", but the package is pure: the time comes in as a value")
		}
		return true
	})
	return why
}

func within(imported, p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestRulesCatch proves of each rule that it can fail.
func TestRulesCatch(t *testing.T) {
	const doc = "// Package x.\n"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"right", map[string]string{
			"internal/wal/a.go":          doc + "package wal\nimport \"time\"\nvar t time.Time\nfunc f(x struct{ Now int }) int { return x.Now }",
			"archive/a.go":               doc + "package archive\nimport _ \"pitr/storage\"\nimport _ \"os\"\nfunc (x T) init() {}\ntype T int",
			"archive/a_test.go":          "package archive_test\nimport _ \"pitr/archive\"\nimport _ \"pitr/storage/storagetest\"\nimport _ \"pitr/internal/postgres/pgtest\"",
			"internal/wal/a_test.go":     "package wal\nimport _ \"os\"\nimport \"time\"\nvar now = time.Now()",
			"internal/agent/a.go":        doc + "package agent\nimport _ \"github.com/robfig/cron/v3\"",
			"tests/demo/main.go":         doc + "package main\nimport _ \"pitr/internal/postgres/pgtest\"\nimport _ \"pitr/recovery\"\nimport _ \"pitr/tests/load\"",
			"tests/a_test.go":            doc + "package tests",
			"internal/postgres/pgx.go":   doc + "package postgres\nimport _ \"github.com/jackc/pgx/v5\"",
			"storage/storagetest/mem.go": doc + "package storagetest\nimport _ \"pitr/storage\"",
		}, nil},
		{"to the right", map[string]string{"archive/a.go": doc + "package archive\nimport _ \"pitr/basebackup\""},
			[]string{"archive/a.go: imports basebackup, which does not stand before archive in the order of imports"}},
		{"to the right in a test", map[string]string{"archive/a.go": doc + "package archive", "archive/a_test.go": "package archive\nimport _ \"pitr/recovery\""},
			[]string{"archive/a_test.go: imports recovery, which does not stand before archive in the order of imports"}},
		{"in the same group", map[string]string{"storage/a.go": doc + "package storage\nimport _ \"pitr/internal/postgres\""},
			[]string{"storage/a.go: imports internal/postgres, which does not stand before storage in the order of imports"}},
		{"from a file for another system", map[string]string{"archive/a.go": doc + "package archive", "archive/b_plan9.go": "//go:build plan9\n\npackage archive\nimport _ \"pitr/recovery\""},
			[]string{"archive/b_plan9.go: imports recovery, which does not stand before archive in the order of imports"}},
		{"config by an owner", map[string]string{"storage/a.go": doc + "package storage\nimport _ \"pitr/internal/config\""},
			[]string{"storage/a.go: imports internal/config, which does not stand before storage in the order of imports"}},
		{"a new package", map[string]string{"internal/cache/a.go": doc + "package cache"},
			[]string{"internal/cache/a.go: package internal/cache has no place in the order of imports: give it one in docs/design.md and tests/imports_test.go"}},
		{"an unknown one imported", map[string]string{"archive/a.go": doc + "package archive\nimport _ \"pitr/internal/cache\""},
			[]string{"archive/a.go: imports internal/cache, which has no place in the order of imports"}},
		{"test package in the program", map[string]string{"archive/a.go": doc + "package archive\nimport _ \"pitr/storage/storagetest\"\nimport _ \"pitr/internal/postgres/pgtest\""},
			[]string{"archive/a.go: imports storage/storagetest, which is for tests", "archive/a.go: imports internal/postgres/pgtest, which is for tests"}},
		{"pgx", map[string]string{"archive/a_test.go": doc + "package archive\nimport _ \"github.com/jackc/pgx/v5/pgconn\""},
			[]string{"archive/a_test.go: imports github.com/jackc/pgx/v5/pgconn, which only internal/postgres and internal/postgres/pgtest may"}},
		{"cloud", map[string]string{"internal/repo/a.go": doc + "package repo\nimport _ \"github.com/aws/aws-sdk-go-v2/service/s3\""},
			[]string{"internal/repo/a.go: imports github.com/aws/aws-sdk-go-v2/service/s3, which only storage and storage/storagetest/azureserver may"}},
		{"etcd", map[string]string{"cluster/manager/a.go": doc + "package manager\nimport _ \"go.etcd.io/etcd/client/v3\""},
			[]string{"cluster/manager/a.go: imports go.etcd.io/etcd/client/v3, which only cluster/dcs may"}},
		{"cron", map[string]string{"cmd/pitr/a.go": doc + "package main\nimport _ \"github.com/robfig/cron/v3\""},
			[]string{"cmd/pitr/a.go: imports github.com/robfig/cron/v3, which only internal/agent and internal/config may"}},
		{"cobra", map[string]string{"internal/agent/a.go": doc + "package agent\nimport _ \"github.com/spf13/cobra\""},
			[]string{"internal/agent/a.go: imports github.com/spf13/cobra, which only cmd/pitr may"}},
		{"files in a pure package", map[string]string{"internal/wal/a.go": doc + "package wal\nimport _ \"os/exec\""},
			[]string{"internal/wal/a.go: imports os/exec, but internal/wal is pure: no clock, no network, no files"}},
		{"network in a pure package", map[string]string{"cluster/a.go": doc + "package cluster\nimport _ \"net/http\"\nimport _ \"pitr/internal/durable\""},
			[]string{"cluster/a.go: imports net/http, but cluster is pure: no clock, no network, no files", "cluster/a.go: imports pitr/internal/durable, but cluster is pure: no clock, no network, no files"}},
		{"clock", map[string]string{"cluster/a.go": doc + "package cluster\nimport \"time\"\nvar now = time.Now"},
			[]string{"cluster/a.go: uses time.Now, but the package is pure: the time comes in as a value"}},
		{"clock by another name", map[string]string{"internal/wal/a.go": doc + "package wal\nimport t \"time\"\nfunc f() { t.Sleep(1) }"},
			[]string{"internal/wal/a.go: uses time.Sleep, but the package is pure: the time comes in as a value"}},
		{"clock without a name", map[string]string{"internal/wal/a.go": doc + "package wal\nimport . \"time\"\nfunc f() { Sleep(1) }"},
			[]string{"internal/wal/a.go: imports time into its own names, where the use of the clock can't be seen"}},
		{"init", map[string]string{"archive/a.go": doc + "package archive\nfunc init() {}"}, []string{"archive/a.go: has an init function"}},
		{"init in a test", map[string]string{"archive/a_test.go": doc + "package archive\nfunc init() {}"}, []string{"archive/a_test.go: has an init function"}},
		{"shapeless", map[string]string{"tests/util/a.go": doc + "package util"}, []string{"tests/util/a.go: the name of package util says nothing about what it owns"}},
		{"no comment", map[string]string{"archive/a.go": "package archive", "archive/a_test.go": doc + "package archive"}, []string{"archive: has no package comment"}},
		{"no comment on tests alone", map[string]string{"tests/a_test.go": "package tests"}, []string{"tests: has no package comment"}},
		{"not Go", map[string]string{"archive/a.go": "pakage"}, []string{"archive/a.go: archive/a.go:1:1: expected 'package', found pakage"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := breaches(tc.files); !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}
