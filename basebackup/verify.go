package basebackup

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pitr/internal/repo"
)

// VerifyOptions say how to verify a backup.
type VerifyOptions struct {
	Workers  int    // that read and decompress; 0: 2
	SpoolDir string // as in Options
	// WAL, if not nil, looks whether the WAL is there that the backup needs in order to be consistent, and returns what
	// is wrong with it, in words.
	WAL func(ctx context.Context, h *Header) (problems []string, err error)
	// Progress, if not nil, gets the raw bytes verified so far; any goroutine may call it.
	Progress func(bytes, total int64)
}

// VerifyReport is what verifying a backup has found.
type VerifyReport struct {
	ID      string   `json:"id"`
	Header  *Header  `json:"-"`      // nil if the manifest is damaged
	Frames  int64    `json:"frames"` // read
	Bytes   int64    `json:"bytes"`  // raw
	Damaged []string `json:"damaged,omitempty"`
}

// maxDamaged bounds how many damaged things a report names.
const maxDamaged = 100

// verifyBatch is how many frames are sorted and read together: it bounds the memory.
const verifyBatch = 1 << 15

// Verify reads a backup's manifest and every frame that it refers to, and compares everything that can be. What is wrong
// is in the report; an error says that the verification itself could not be done, ErrNoBackup among them.
func Verify(ctx context.Context, r *repo.Repo, id string, o VerifyOptions) (*VerifyReport, error) {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	v := &verifier{repo: r, o: o, report: &VerifyReport{ID: id}}
	if err := v.verify(ctx, id); err != nil {
		return nil, fmt.Errorf("verify backup %s: %w", id, err)
	}
	return v.report, nil
}

type verifier struct {
	repo   *repo.Repo
	o      VerifyOptions
	report *VerifyReport
	bytes  atomic.Int64
	h      *Header

	frames []Frame
	paths  []string // of the file that first refers to the frame
}

func (v *verifier) damaged(format string, args ...any) {
	if len(v.report.Damaged) < maxDamaged {
		v.report.Damaged = append(v.report.Damaged, fmt.Sprintf(format, args...))
	}
}

func (v *verifier) verify(ctx context.Context, id string) error {
	m, err := OpenManifest(ctx, v.repo, id, v.o.SpoolDir)
	if errors.Is(err, repo.ErrDamaged) {
		v.damaged("%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer m.Close()
	v.h, v.report.Header = m.Header, m.Header
	size, files, err := v.entries(ctx, m)
	if err != nil {
		return err
	}
	if size != v.h.Size || files != v.h.Files {
		v.damaged("manifest: it has %d files of %d bytes, its header says %d of %d", files, size, v.h.Files, v.h.Size)
	}
	v.report.Bytes = v.bytes.Load()
	if v.o.WAL == nil {
		return nil
	}
	problems, err := v.o.WAL(ctx, v.h)
	if err != nil {
		return err
	}
	for _, p := range problems {
		v.damaged("WAL: %s", p)
	}
	return nil
}

// entries goes through the manifest and verifies the frames in batches.
func (v *verifier) entries(ctx context.Context, m *Manifest) (size, files int64, err error) {
	var last Frame
	for e, err := range m.Entries() {
		if errors.Is(err, repo.ErrDamaged) {
			v.damaged("%v", err)
			break
		}
		if err != nil {
			return 0, 0, err
		}
		if e.Type != File && e.Type != External {
			continue
		}
		size, files = size+e.Size, files+1
		for _, x := range e.Extents {
			if x.Zeros || x.Frame == last {
				continue
			}
			last = x.Frame
			v.frames, v.paths = append(v.frames, x.Frame), append(v.paths, e.Path)
			if len(v.frames) == verifyBatch {
				if err := v.batch(ctx); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	return size, files, v.batch(ctx)
}

// batch verifies the frames collected.
func (v *verifier) batch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	runs := make(chan Run)
	g.Go(func() error {
		defer close(runs)
		for _, run := range Runs(v.h, v.frames) {
			select {
			case runs <- run:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	wrong := make(chan string)
	for range v.o.Workers {
		g.Go(func() error { return v.read(ctx, runs, wrong) })
	}
	var err error
	go func() {
		err = g.Wait()
		close(wrong)
	}()
	for w := range wrong {
		v.damaged("%s", w)
	}
	v.report.Frames += int64(len(v.frames))
	v.frames, v.paths = v.frames[:0], v.paths[:0]
	return err
}

func (v *verifier) read(ctx context.Context, runs <-chan Run, wrong chan<- string) error {
	fr, err := NewFrameReader(v.repo)
	if err != nil {
		return err
	}
	defer fr.Close()
	for run := range runs {
		err := fr.Read(ctx, v.frames, run, func(i int, raw []byte, err error) error {
			if err != nil {
				wrong <- fmt.Sprintf("%s: %v", v.paths[i], err)
				return nil
			}
			n := v.bytes.Add(int64(len(raw)))
			if v.o.Progress != nil {
				v.o.Progress(n, v.h.Size)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
