package hint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"pitr/internal/hint"
)

func TestWrapKeepsTheError(t *testing.T) {
	cause := &fs.PathError{Op: "open", Path: "/data", Err: fs.ErrPermission}
	err := hint.Wrap(cause, "run it as %s", "postgres")
	if err.Error() != cause.Error() {
		t.Errorf("text is %q, want that of the cause, %q", err, cause)
	}
	if !errors.Is(err, fs.ErrPermission) {
		t.Error("errors.Is no longer finds the cause")
	}
	var path *fs.PathError
	if !errors.As(err, &path) || path != cause {
		t.Error("errors.As no longer finds the cause")
	}
	if got := hint.Of(err); got != "run it as postgres" {
		t.Errorf("Of = %q", got)
	}
}

func TestWrapOfNothing(t *testing.T) {
	if err := hint.Wrap(nil, "unused"); err != nil {
		t.Errorf("Wrap(nil) = %v", err)
	}
}

func TestOf(t *testing.T) {
	base := errors.New("base")
	inner := hint.Wrap(base, "inner")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"no hint", base, ""},
		{"wrapped further", fmt.Errorf("push: %w", inner), "inner"},
		{"the outermost wins", hint.Wrap(fmt.Errorf("push: %w", inner), "outer"), "outer"},
		{"one of several errors", errors.Join(base, inner), "inner"},
		{"text with a percent sign", hint.Wrap(base, "%s", "100% full"), "100% full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := hint.Of(c.err); got != c.want {
				t.Errorf("Of = %q, want %q", got, c.want)
			}
		})
	}
}
