package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Error is everything that is wrong with one configuration. Whoever reports it exits with status 3.
type Error struct {
	File     string    // as it was named; empty if the defaults themselves are at fault on this host
	Problems []Problem // at least one, in the order of the file, those without a place last
	cause    error
}

// Problem is one thing that is wrong.
type Problem struct {
	Path         string // of the key, as in archive.workers; empty if it concerns the file
	Line, Column int    // from 1; 0 if the file does not mention the key
	Text         string // what is wrong, and what is allowed; never a secret's value
	Hint         string // what to do; may be empty
}

// Describe returns the problem as one sentence with its place.
func (e *Error) Describe(p Problem) string {
	var parts []string
	switch {
	case e.File != "" && p.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d:%d", e.File, p.Line, p.Column))
	case e.File != "":
		parts = append(parts, e.File)
	}
	if p.Path != "" {
		parts = append(parts, p.Path)
	}
	return strings.Join(append(parts, p.Text), ": ")
}

// Error lists every problem, one a line.
func (e *Error) Error() string {
	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, "configuration: "+e.Describe(p))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the error of the file system where the file could not be read, else nil.
func (e *Error) Unwrap() error { return e.cause }

func newError(file string, problems []Problem) *Error {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{File: file, Problems: problems}
}

// fileError is for a file that could not be read at all.
func fileError(file string, err error) *Error {
	p := Problem{Text: err.Error()}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		p.Text = pe.Err.Error() // the path is in the message already
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Hint = "`pitr config default` prints a commented file to start from"
	case errors.Is(err, fs.ErrPermission):
		p.Hint = "pitr runs as the server's user: that user must be able to read the file"
	}
	return &Error{File: file, Problems: []Problem{p}, cause: err}
}
