package basebackup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"pitr/internal/repo"
	"pitr/storage"
)

// MaxRun is the most bytes that a Run reads at once, but for a single frame that is larger.
const MaxRun = 8 << 20

// Run is a part of one pack, read at once: frames that lie one behind the other.
type Run struct {
	Key    string // of the pack
	Offset int64
	Length int64
	// Frames are the indexes of the frames in it, into the slice that was given to Runs, by position in the pack.
	Frames []int
}

// Runs says how to read frames, in any order and repeated ones too, with few reads. h is the manifest's header that they
// are from. Runs of one pack are next to each other.
func Runs(h *Header, frames []Frame) []Run {
	order := make([]int, len(frames))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &frames[a], &frames[b]
		return cmp.Or(cmp.Compare(x.Backup, y.Backup), cmp.Compare(x.Pack, y.Pack), cmp.Compare(x.Offset, y.Offset), cmp.Compare(a, b))
	})
	var runs []Run
	var last *Frame
	for _, i := range order {
		f := &frames[i]
		end := f.Offset + int64(f.Stored)
		if last != nil && f.Backup == last.Backup && f.Pack == last.Pack {
			run := &runs[len(runs)-1]
			// The same frame again, or the one that follows.
			if f.Offset <= run.Offset+run.Length && end-run.Offset <= MaxRun {
				run.Length = max(run.Length, end-run.Offset)
				run.Frames = append(run.Frames, i)
				last = f
				continue
			}
		}
		runs = append(runs, Run{
			Key: repo.PackKey(h.PacksOf[f.Backup], f.Pack), Offset: f.Offset, Length: int64(f.Stored), Frames: []int{i},
		})
		last = f
	}
	return runs
}

// FrameReader reads runs. It is not safe for concurrent use; Close frees its memory.
type FrameReader struct {
	repo   *repo.Repo
	dec    *repo.Decoder
	stored []byte
	raw    []byte
}

// NewFrameReader makes one.
func NewFrameReader(r *repo.Repo) (*FrameReader, error) {
	dec, err := repo.NewDecoder()
	if err != nil {
		return nil, err
	}
	return &FrameReader{repo: r, dec: dec}, nil
}

// Close frees the reader.
func (r *FrameReader) Close() { r.dec.Close() }

// Read reads a run of frames and gives use each frame's raw content, verified; it is valid during the call only. A frame
// that can't be had as it was stored is given an error in its place (repo.ErrDamaged), and then the others go on if use
// returns nil. Errors of use and of the store end it. Frames that repeat are given once for each index.
func (r *FrameReader) Read(ctx context.Context, frames []Frame, run Run, use func(index int, raw []byte, err error) error) error {
	if int64(cap(r.stored)) < run.Length {
		r.stored = make([]byte, run.Length, max(run.Length, MaxRun))
	}
	stored := r.stored[:run.Length]
	if err := r.repo.ReadRange(ctx, run.Key, run.Offset, stored); err != nil {
		if lacking, serr := r.lacks(ctx, run); serr != nil || !lacking {
			return fmt.Errorf("read pack %s: %w", run.Key, errors.Join(err, serr))
		}
		// One by one: some may be there.
		if len(run.Frames) > 1 {
			for _, i := range run.Frames {
				f := &frames[i]
				if err := r.Read(ctx, frames, Run{Key: run.Key, Offset: f.Offset, Length: int64(f.Stored), Frames: []int{i}}, use); err != nil {
					return err
				}
			}
			return nil
		}
		return use(run.Frames[0], nil, r.repo.Damaged(run.Key, "frame at %d: %v", run.Offset, err))
	}
	var raw []byte
	var err error
	for n, i := range run.Frames {
		f := &frames[i]
		if n == 0 || *f != frames[run.Frames[n-1]] {
			at := f.Offset - run.Offset
			if raw, err = r.content(f, stored[at:at+int64(f.Stored)]); err != nil {
				err = r.repo.Damaged(run.Key, "frame at %d: %v", f.Offset, err)
			}
		}
		if err := use(i, raw, err); err != nil {
			return err
		}
	}
	return nil
}

// content gives the raw content of a frame whose stored bytes were read.
func (r *FrameReader) content(f *Frame, stored []byte) ([]byte, error) {
	if storedCheckOf(stored) != f.StoredCheck {
		return nil, errors.New("the check of its stored bytes is wrong")
	}
	raw, err := r.dec.Decode(r.raw, stored, int(f.Raw))
	if err != nil {
		return nil, err
	}
	r.raw = raw
	if repo.CheckOf(raw) != f.Check {
		return nil, errors.New("the check of its content is wrong")
	}
	return raw, nil
}

// lacks tells whether the store works but has not got all of the run: what a read that failed may be due to.
func (r *FrameReader) lacks(ctx context.Context, run Run) (bool, error) {
	o, err := r.repo.Stat(ctx, run.Key)
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	return err == nil && o.Size < run.Offset+run.Length, err
}
