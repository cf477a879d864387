package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"pitr/internal/hint"
	"pitr/internal/repo"
)

var (
	// ErrNotArchived says that the repository, asked and answering, holds nothing under the name.
	ErrNotArchived = errors.New("not archived")
	// ErrConflict says that there are several contents under one name and no record of which one
	// holds. See [ConflictError].
	ErrConflict = errors.New("conflicting contents")
	// ErrSource says that a file to be archived is not what its name says, or is not of this cluster.
	ErrSource = errors.New("not archived because the file is not right")
)

// Origin says who archives. In a managed cluster the term is that of the leader; 0 otherwise.
type Origin struct {
	Term uint64
	Node string
}

// Options of an archive. The zero value works: it compresses at level 1 with one worker.
type Options struct {
	// Level is the compression level (repo.MinLevel to repo.MaxLevel); 0 is 1.
	Level int
	// Workers bounds how many objects one call of Verify or Facts reads at once, and how many
	// segments are checked and compressed at once by all calls of Push together; 0 is 1. How many
	// pushes run at once is their callers' choice: what waits for the store takes no processor.
	Workers int
	// Origin is written into each new object.
	Origin Origin
	// ListLag is how long a store without strong listing may hide a new object; 0 is 5 s.
	ListLag time.Duration
	// Log receives what is worth knowing and no error; nil: nothing.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Archive is the WAL of one cluster in a repository. It is safe for concurrent use. Close frees
// the memory it keeps between calls.
type Archive struct {
	repo *repo.Repo
	o    Options
	busy chan struct{} // holds one element for each push that takes a processor

	mu   sync.Mutex
	idle []*kit
}

// New makes an archive on r.
func New(r *repo.Repo, o Options) *Archive {
	o.Level = cmp.Or(o.Level, 1)
	o.Workers = max(o.Workers, 1)
	o.ListLag = cmp.Or(o.ListLag, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Archive{repo: r, o: o, busy: make(chan struct{}, o.Workers)}
}

// Repo is the repository the archive lies in.
func (a *Archive) Repo() *repo.Repo { return a.repo }

// Close frees what the archive keeps for the next call. No other call may run or follow.
func (a *Archive) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.idle {
		k.close()
	}
	a.idle = nil
}

func (a *Archive) segSize() int64 { return a.repo.Facts().SegmentSize }

// A kit is what working on one object at a time takes: codec and buffers, which are large enough
// to be worth keeping.
type kit struct {
	enc *repo.Encoder
	dec *repo.Decoder
	// raw holds one frame's content, stored its compressed form, whole a segment of up to wholeMax
	// bytes, and packed its object.
	raw, stored, whole []byte
	packed             bytes.Buffer
}

// work runs f while no more than Options.Workers others do.
func (a *Archive) work(ctx context.Context, f func() error) error {
	select {
	case a.busy <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.busy }()
	return f()
}

// borrow takes a kit, which giveBack returns.
func (a *Archive) borrow() (*kit, error) {
	a.mu.Lock()
	if n := len(a.idle); n > 0 {
		k := a.idle[n-1]
		a.idle = a.idle[:n-1]
		a.mu.Unlock()
		return k, nil
	}
	a.mu.Unlock()
	enc, err := repo.NewEncoder(a.o.Level)
	if err != nil {
		return nil, err
	}
	dec, err := repo.NewDecoder()
	if err != nil {
		enc.Close()
		return nil, err
	}
	return &kit{enc: enc, dec: dec}, nil
}

func (a *Archive) giveBack(k *kit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.idle) >= 2*a.o.Workers {
		k.close()
		return
	}
	a.idle = append(a.idle, k)
}

func (k *kit) close() {
	k.enc.Close()
	k.dec.Close()
}

// room returns the buffer behind p with n bytes, larger memory where it must be.
func room(p *[]byte, n int) []byte {
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	return (*p)[:n]
}

// ConflictError says that another content lies under the name of what was pushed or asked for.
// It is an ErrConflict.
type ConflictError struct {
	// Name is what the server calls the file.
	Name string
	// Ours is the content that was refused; zero where nothing was pushed.
	Ours repo.Digest
	// Archived are the contents under the name, in the order of their digests.
	Archived []repo.Digest
	// Aside is the key under which the refused content was kept, empty where it lies among
	// Archived.
	Aside string
}

func (e *ConflictError) Error() string {
	switch {
	case e.Aside != "":
		return fmt.Sprintf("%s is archived with another content (%v); this one (%s) was kept as %s and not archived",
			e.Name, e.Archived, e.Ours, e.Aside)
	case e.Ours != repo.Digest{}:
		return fmt.Sprintf("%s was archived with several contents at the same time (%v), this one is %s", e.Name, e.Archived, e.Ours)
	}
	return fmt.Sprintf("%s is archived with several contents (%v) and none is recorded as the right one", e.Name, e.Archived)
}

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// withHint adds what an administrator can do about the conflict.
func (e *ConflictError) withHint() error {
	return hint.Wrap(e, "two servers archive under one name: stop the one that should not run, or give it its own timeline; "+
		"`pitr wal resolve %s DIGEST` records which content holds (all of them are kept)", e.Name)
}
