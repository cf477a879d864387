// Package hint attaches to an error the sentence that tells its reader what to do about it.
//
// The error's own text says what failed and why; the hint says what would help, and is printed on a line of its own by
// the command that reports the error. This package owns the attaching and the finding, not the printing.
package hint

import (
	"errors"
	"fmt"
)

// hinted is an error with advice. Its text is that of the error alone, so that wrapping it further never prints the
// advice in the middle of a sentence.
type hinted struct {
	err  error
	text string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Wrap returns err with the hint that format and args make. The text of the error stays as it is, and errors.Is and
// errors.As see through it. A nil err gives nil.
func Wrap(err error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if err == nil {
		return nil
	}
	return &hinted{err, text}
}

// Of returns the outermost hint in err's chain: the one given by whoever knew most about what was being attempted.
// It is empty where there is none.
func Of(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.text
	}
	return ""
}
