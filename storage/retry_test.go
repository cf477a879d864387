package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pitr/storage"
	"pitr/storage/storagetest"
)

// script makes operations fail: the n-th use of an Op fails with errs[op][n], if there is one.
type script map[storagetest.Op][]error

func (s script) fault(op storagetest.Op, _ string) error {
	if len(s[op]) == 0 {
		return nil
	}
	err := s[op][0]
	s[op] = s[op][1:]
	return err
}

var (
	errPasses = storage.MarkTemporary(errors.New("passes"))
	errStays  = errors.New("stays")
)

func times(n int, err error) []error { return slices.Repeat([]error{err}, n) }

func TestRetryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name        string
			faults      []error
			want        error
			least, most time.Duration
		}{
			{"nothing to retry", nil, nil, 0, 0},
			{"once", times(1, errPasses), nil, 50 * time.Millisecond, 100 * time.Millisecond},
			{"until it works", times(4, errPasses), nil, 550 * time.Millisecond, 1100 * time.Millisecond}, // 100+200+400+400
			{"until it gives up", times(100, errPasses), errPasses, 550 * time.Millisecond, 1100 * time.Millisecond},
			{"what stays", times(1, errStays), errStays, 0, 0},
			{"what stays, after what passes", []error{errPasses, errStays}, errStays, 50 * time.Millisecond, 100 * time.Millisecond},
			{"not found", times(1, storage.ErrNotFound), storage.ErrNotFound, 0, 0},
		} {
			inner := storagetest.Memory()
			create(t, inner, "a", "x")
			b := storage.Retry(storagetest.Faulty(inner, script{storagetest.Stat: c.faults}.fault),
				storage.Backoff{Attempts: 5, First: 100 * time.Millisecond, Most: 400 * time.Millisecond})
			start := time.Now()
			_, err := b.Stat(t.Context(), "a")
			if !errors.Is(err, c.want) {
				t.Errorf("%s: error is %v, want %v", c.name, err, c.want)
			}
			if d := time.Since(start); d < c.least || d > c.most {
				t.Errorf("%s: took %v, want %v to %v", c.name, d, c.least, c.most)
			}
		}
	})
}

func TestRetryDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storagetest.Faulty(storagetest.Memory(), script{storagetest.Stat: times(100, errPasses)}.fault)
		start := time.Now()
		storage.Retry(c, storage.Backoff{}).Stat(t.Context(), "a")
		// 0.25+0.5+1+2+4+8+10 seconds, or half of them
		if d := time.Since(start); d < 12*time.Second || d > 26*time.Second {
			t.Errorf("gave up after %v", d)
		}
	})
}

func TestRetryEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := storage.Retry(storagetest.Faulty(storagetest.Memory(), func(storagetest.Op, string) error { return errPasses }),
			storage.Backoff{First: time.Hour, Most: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := b.Stat(ctx, "a")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errPasses) {
			t.Errorf("error is %v, want both reasons", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("took %v", d)
		}
	})
}

func TestRetryCreate(t *testing.T) {
	const content = "the content"
	for _, c := range []struct {
		name   string
		faults script
		there  string // before, under the key; "" is nothing
		reader func() io.Reader
		want   error
		stored string
	}{
		{name: "fails before", faults: script{storagetest.Create: times(2, errPasses)}, stored: content},
		{name: "succeeds unseen", faults: script{storagetest.CreateDone: times(1, errPasses)}, stored: content},
		{name: "fails before, then succeeds unseen", stored: content,
			faults: script{storagetest.Create: times(1, errPasses), storagetest.CreateDone: times(1, errPasses)}},
		{name: "the comparison fails at first too", stored: content, faults: script{
			storagetest.CreateDone: times(1, errPasses), storagetest.Get: times(1, errPasses), storagetest.Read: times(1, errPasses)}},
		{name: "the comparison cannot be made", want: errStays, stored: content, faults: script{
			storagetest.CreateDone: times(1, errPasses), storagetest.Get: times(1, errStays)}},
		{name: "taken before", there: content, want: storage.ErrExists, stored: content},
		{name: "taken by something else of that size", faults: script{storagetest.Create: times(1, errPasses)},
			there: "the CONTENT", want: storage.ErrExists, stored: "the CONTENT"},
		{name: "taken by something shorter", faults: script{storagetest.Create: times(1, errPasses)},
			there: "the", want: storage.ErrExists, stored: "the"},
		{name: "a reader that cannot go back", faults: script{storagetest.Create: times(1, errPasses)},
			reader: func() io.Reader { return io.LimitReader(strings.NewReader(content), 100) }, want: errPasses},
		{name: "a reader that knows only the way back", faults: script{storagetest.CreateDone: times(1, errPasses)}, stored: content,
			reader: func() io.Reader { return &wayBack{r: strings.NewReader(content)} }},
		{name: "a reader whose Seek fails", faults: script{storagetest.Create: times(1, errPasses)},
			reader: func() io.Reader { return pipe{strings.NewReader(content)} }, want: errPasses},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner := storagetest.Memory()
			if c.there != "" {
				create(t, inner, "a", c.there)
			}
			b := storage.Retry(storagetest.Faulty(inner, c.faults.fault), quick)
			var r io.Reader
			if c.reader != nil {
				r = c.reader()
			} else {
				// What stands before the reader's position is not part of the content.
				s := strings.NewReader("skipped" + content)
				s.Seek(7, io.SeekStart)
				r = s
			}
			if err := b.Create(t.Context(), "a", r); !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if got, _ := read(inner, "a"); got != c.stored {
				t.Errorf("stored %q, want %q", got, c.stored)
			}
		})
	}
}

// wayBack can be set back to where it was, which is all that Bucket asks for.
type wayBack struct{ r *strings.Reader }

func (w *wayBack) Read(p []byte) (int, error) { return w.r.Read(p) }

func (w *wayBack) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 0, errors.New("the length is not known")
	}
	return w.r.Seek(offset, whence)
}

type pipe struct{ io.Reader }

func (pipe) Seek(int64, int) (int64, error) { return 0, errors.New("a pipe") }

// Somebody deletes the object between the Create that found it and the comparison.
func TestRetryCreateOfWhatIsDeletedMeanwhile(t *testing.T) {
	inner := storagetest.Memory()
	done := false
	b := storage.Retry(storagetest.Faulty(inner, func(op storagetest.Op, _ string) error {
		switch op {
		case storagetest.CreateDone:
			done = true
			return errPasses
		case storagetest.Get:
			inner.Delete(context.Background(), "a")
		}
		return nil
	}), quick)
	if err := b.Create(t.Context(), "a", strings.NewReader("x")); !done || !errors.Is(err, storage.ErrExists) {
		t.Errorf("error is %v, want ErrExists", err)
	}
}

// A body that breaks off goes on where it was, as often as it takes while it gets on.
func TestRetryRead(t *testing.T) {
	content := make([]byte, 100_000)
	for i := range content {
		content[i] = byte(i * i >> 8)
	}
	inner := storagetest.Memory()
	if err := inner.Create(t.Context(), "a", bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	faults := script{storagetest.Get: {nil, errPasses}, storagetest.Read: times(40, errPasses)}
	b := storage.Retry(storagetest.Faulty(inner, faults.fault), storage.Backoff{Attempts: 3, First: quickWait, Most: quickWait})
	for name, get := range map[string]func() (io.ReadCloser, error){
		"whole": func() (io.ReadCloser, error) { return b.Get(t.Context(), "a") },
		"range": func() (io.ReadCloser, error) { return b.GetRange(t.Context(), "a", 0, int64(len(content))) },
	} {
		faults[storagetest.Read] = times(40, errPasses)
		r, err := get()
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, content); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.Close()
		if left := len(faults[storagetest.Read]); left == 40 {
			t.Errorf("%s: no read failed", name)
		}
	}
}

func TestRetryReadGivesUp(t *testing.T) {
	inner := storagetest.Memory()
	create(t, inner, "a", strings.Repeat("x", 1000))
	for name, faults := range map[string]script{
		"an error that stays":       {storagetest.Read: times(1, errStays)},
		"when opening again":        {storagetest.Read: times(1, errPasses), storagetest.Get: {nil, errStays}},
		"when asking for the size":  {storagetest.Read: times(1, errPasses), storagetest.Stat: times(1, errStays)},
		"after no byte, repeatedly": {storagetest.Read: times(1, errPasses), storagetest.Get: append([]error{nil}, times(10, errPasses)...)},
	} {
		b := storage.Retry(storagetest.Faulty(inner, faults.fault), storage.Backoff{Attempts: 3, First: quickWait, Most: quickWait})
		r, err := b.Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if !errors.Is(err, errStays) && !errors.Is(err, errPasses) {
			t.Errorf("%s: error is %v after %d bytes", name, err, len(data))
		}
		if _, again := r.Read(make([]byte, 1)); again == nil || again == io.EOF {
			t.Errorf("%s: after its error the reader says %v", name, again)
		}
		r.Close()
	}
}

func TestRetryList(t *testing.T) {
	inner := storagetest.Memory()
	var want []string
	for _, key := range []string{"a", "b/1", "b/2", "c"} {
		create(t, inner, key, key)
		want = append(want, key)
	}
	backoff := storage.Backoff{Attempts: 3, First: quickWait, Most: quickWait}
	// Each listing breaks off after one object, which counts as getting on.
	b := storage.Retry(storagetest.Faulty(inner, script{storagetest.List: times(4, errPasses)}.fault), backoff)
	wantKeys(t, b, want...)
	b = storage.Retry(storagetest.Faulty(inner, script{storagetest.List: {errPasses, errStays}}.fault), backoff)
	if got, err := keys(b); !errors.Is(err, errStays) || !slices.Equal(got, want[:2]) {
		t.Errorf("listed %q, %v", got, err)
	}
	b = storage.Retry(storagetest.Faulty(storagetest.Memory(), script{storagetest.List: times(3, errPasses)}.fault), backoff)
	if got, err := keys(b); !errors.Is(err, errPasses) || len(got) > 0 {
		t.Errorf("of an empty store that always fails: %q, %v", got, err)
	}
}

func TestRetryDelete(t *testing.T) {
	inner := storagetest.Memory()
	for _, key := range []string{"a", "b", "c"} {
		create(t, inner, key, key)
	}
	b := storage.Retry(storagetest.Faulty(inner, script{storagetest.Delete: {nil, errPasses, nil, errPasses}}.fault), quick)
	if err := b.Delete(t.Context(), "a", "b", "c"); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, inner)
}
