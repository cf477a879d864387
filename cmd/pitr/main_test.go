package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"pitr/internal/hint"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pitr": main})
}

// TestScripts runs the command as its users do. The scripts assert texts whole, hints included.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": checkStatus,
			"expand": expand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// checkStatus runs a command and compares its exit status: status N COMMAND ARGS… What it wrote is left for cmp and
// stdout as exec does.
func checkStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("status %d, want %s", code, args[0])
	}
}

// expand replaces $NAME in a file by the script's environment: expand FILE.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func TestReport(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("terminated signal received"))
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want string
		code int
	}{
		{"none", context.Background(), nil, "", exitDone},
		{"plain", context.Background(), errors.New("read x: no space"), "pitr: read x: no space\n", exitFailed},
		{"hint", context.Background(), fmt.Errorf("push: %w", hint.Wrap(errors.New("store full"), "make room")), "pitr: push: store full\nHINT: make room\n", exitFailed},
		{"hostile name", context.Background(), errors.New("database \"a\nHINT: rm -rf /\x1b[31m\u202e\" is gone"),
			"pitr: database \"a\n  HINT: rm -rf /\\x1b[31m\\u202e\" is gone\n", exitFailed},
		{"interrupted", interrupted, fmt.Errorf("copy: %w", context.Canceled), "pitr: interrupted: terminated signal received\n", exitFailed},
		{"cancelled by itself", context.Background(), fmt.Errorf("copy: %w", context.Canceled), "pitr: copy: context canceled\n", exitFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := report(tc.ctx, &out, tc.err); code != tc.code || out.String() != tc.want {
				t.Errorf("%d %q, want %d %q", code, out.String(), tc.code, tc.want)
			}
		})
	}
}

func TestResultThatDoesNotArriveIsAFailure(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var errOut bytes.Buffer
	code := run([]string{"config", "default"}, bytes.NewReader(nil), full, &errOut)
	const want = "pitr: print the result: write /dev/full: no space left on device\n"
	if code != exitFailed || errOut.String() != want {
		t.Errorf("%d %q", code, errOut.String())
	}
}
