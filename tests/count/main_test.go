package main

import (
	"errors"
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	for _, tc := range []struct {
		name, in, want string
		ok             bool
	}{
		{"nothing", "", "no test ran\n0 passed, 0 failed, 0 skipped\n", false},
		{"only a word of the go command", "go: no such package\n", "go: no such package\nno test ran\n0 passed, 0 failed, 0 skipped\n", false},
		{"only skipped", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:3: no server\n"}
{"Action":"output","Package":"p","Test":"A","Output":"--- SKIP: A (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Elapsed":0.5}
`, "ok    p  0.5s, 1 tests\nskipped: p A: a_test.go:3: no server\nno test ran\n0 passed, 0 failed, 1 skipped\n", false},
		{"parts count, not their whole", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/1"}
{"Action":"pass","Package":"p","Test":"A/1"}
{"Action":"run","Package":"p","Test":"A/2"}
{"Action":"pass","Package":"p","Test":"A/2"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Elapsed":1}
{"Action":"skip","Package":"q"}
`, "ok    p  1.0s, 2 tests\nnone  q\n2 passed, 0 failed, 0 skipped\n", true},
		{"a part failed", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/1"}
{"Action":"output","Package":"p","Test":"A/1","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"A/1"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p","Elapsed":1}
`, "why\nFAIL\nFAIL  p  1.0s\n0 passed, 1 failed, 0 skipped\n", false},
		{"the whole failed after its parts", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/1"}
{"Action":"pass","Package":"p","Test":"A/1"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p","Elapsed":1}
`, "FAIL  p  1.0s\n1 passed, 1 failed, 0 skipped\n", false},
		{"not built", `{"ImportPath":"p [p.test]","Action":"build-output","Output":"x.go:1:1: bad\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Output":"FAIL p [build failed]\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}
`, "x.go:1:1: bad\nFAIL p [build failed]\nFAIL  p  0.0s\n0 passed, 1 failed, 0 skipped\n", false},
		{"failed outside of any test", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"exit status 1\n"}
{"Action":"fail","Package":"p","Elapsed":2}
`, "exit status 1\nFAIL  p  2.0s\n1 passed, 1 failed, 0 skipped\n", false},
		{"panicked", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"panic: x\n"}
{"Action":"fail","Package":"p","Elapsed":2}
`, "panic: x\nFAIL  p  2.0s\n0 passed, 1 failed, 0 skipped\n", false},
		{"cut off", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"B"}
`, "never ended: p B\n1 passed, 1 failed, 0 skipped\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := count(strings.NewReader(tc.in), &out)
			if err != nil || ok != tc.ok || out.String() != tc.want {
				t.Errorf("%v %v\n%s\nwant %v\n%s", ok, err, out.String(), tc.ok, tc.want)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error)  { return 0, errors.New("torn") }
func (broken) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestBrokenStreams(t *testing.T) {
	var out strings.Builder
	if _, err := count(broken{}, &out); err == nil || err.Error() != "read test output: torn" {
		t.Error(err)
	}
	if _, err := count(strings.NewReader("x\n"), broken{}); err == nil || err.Error() != "write: full" {
		t.Error(err)
	}
}
