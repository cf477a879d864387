// Command count reads the output of `go test -json`, prints what failed in full and the rest in a line a package, and
// closes with how many tests passed, failed and were skipped, each skipped one with its reason. It fails if any test
// failed, or if none ran at all: a mistake in the command that selects the tests must not look like success.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := count(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// event is one line of `go test -json`; see `go doc test2json`. Lines of the build have ImportPath instead of Package.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type test struct{ pkg, name string }

// counter holds what is known of tests that have begun.
type counter struct {
	output  map[test][]string // by test; by package with an empty name
	builds  map[string][]string
	parents map[test]bool
	result  map[test]string // pass, fail, skip
	failing map[string]bool // packages in which a test failed
	running map[test]bool
	lost    int // packages that failed without a failed test
	write   error
	out     io.Writer
}

// count copies from r to w as the package comment says, and reports whether all went well.
func count(r io.Reader, w io.Writer) (bool, error) {
	c := &counter{
		output: map[test][]string{}, builds: map[string][]string{}, parents: map[test]bool{},
		result: map[test]string{}, failing: map[string]bool{}, running: map[test]bool{}, out: w,
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				// Not from a test: what the go command itself has to say.
				c.print("%s", line)
			} else {
				c.add(e)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, fmt.Errorf("read test output: %w", err)
		}
	}
	return c.finish()
}

func (c *counter) print(format string, args ...any) {
	if _, err := fmt.Fprintf(c.out, format, args...); err != nil && c.write == nil {
		c.write = fmt.Errorf("write: %w", err)
	}
}

func (c *counter) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], e.Output)
	case "run":
		c.running[t] = true
		for name := e.Test; ; {
			i := strings.LastIndexByte(name, '/')
			if i < 0 {
				break
			}
			name = name[:i]
			c.parents[test{e.Package, name}] = true
		}
	case "output":
		c.output[t] = append(c.output[t], e.Output)
	case "pass", "fail", "skip":
		delete(c.running, t)
		if e.Test == "" {
			c.endPackage(e)
			return
		}
		c.result[t] = e.Action
		switch e.Action {
		case "fail":
			c.failing[e.Package] = true
			c.print("%s", strings.Join(c.output[t], ""))
		case "pass":
			delete(c.output, t)
		}
	}
}

func (c *counter) endPackage(e event) {
	t := test{e.Package, ""}
	ran := 0
	for u := range c.result {
		if u.pkg == e.Package && !c.parents[u] {
			ran++
		}
	}
	switch {
	case e.Action == "fail":
		c.print("%s", strings.Join(c.builds[e.FailedBuild], ""))
		// A test that never ended (a panic, the time limit, an exit) is where the package went wrong.
		for _, u := range sorted(c.running) {
			if u.pkg == e.Package {
				c.result[u] = "fail"
				c.failing[e.Package] = true
				delete(c.running, u)
				c.print("%s", strings.Join(c.output[u], ""))
			}
		}
		c.print("%s", strings.Join(c.output[t], ""))
		if !c.failing[e.Package] {
			c.lost++
		}
		c.print("FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	case ran == 0:
		c.print("none  %s\n", e.Package)
	default:
		c.print("ok    %s  %.1fs, %d tests\n", e.Package, e.Elapsed, ran)
	}
	delete(c.output, t)
}

// finish prints the totals. A test that has parts of its own counts only through them, unless it failed by itself.
func (c *counter) finish() (bool, error) {
	n := map[string]int{"fail": c.lost}
	for _, t := range sorted(c.running) {
		c.result[t] = "fail"
		c.print("never ended: %s %s\n", t.pkg, t.name)
	}
	for _, t := range sorted(c.result) {
		result := c.result[t]
		if c.parents[t] && (result != "fail" || c.partFailed(t)) {
			continue
		}
		n[result]++
		if result == "skip" {
			c.print("skipped: %s %s: %s\n", t.pkg, t.name, reason(c.output[t]))
		}
	}
	if n["pass"]+n["fail"] == 0 {
		c.print("no test ran\n")
	}
	c.print("%d passed, %d failed, %d skipped\n", n["pass"], n["fail"], n["skip"])
	return n["fail"] == 0 && n["pass"] > 0, c.write
}

func (c *counter) partFailed(t test) bool {
	for u, r := range c.result {
		if r == "fail" && u.pkg == t.pkg && strings.HasPrefix(u.name, t.name+"/") {
			return true
		}
	}
	return false
}

// reason is what a test said when it skipped itself: its last line that is not the framework's.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "=== ") && !strings.HasPrefix(s, "--- ") {
			return s
		}
	}
	return "no reason given"
}

func sorted[V any](m map[test]V) []test {
	var all []test
	for t := range m {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b test) int { return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name)) })
	return all
}
