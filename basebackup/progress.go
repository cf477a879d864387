package basebackup

import (
	"context"
	"io/fs"
	"log/slog"
	"time"
)

// Phase is what a backup is doing.
type Phase string

const (
	PhaseStart Phase = "waiting for the server's checkpoint"
	PhaseWAL   Phase = "waiting for the first WAL segment to be archived"
	PhaseCopy  Phase = "copying"
	PhaseStop  Phase = "waiting for the last WAL segment to be archived"
	PhaseStore Phase = "storing the manifest"
)

// Progress is how far a backup has come.
type Progress struct {
	ID     string
	Phase  Phase
	Bytes  int64 // read
	Total  int64 // that there are to read, about; 0: not known yet
	Files  int64
	Stored int64 // bytes
}

const progressEvery = 200 * time.Millisecond

// enter begins a phase.
func (t *taker) enter(p Phase) {
	t.o.Log.Info("backup", "id", t.h.ID, "phase", string(p))
	t.tell(p)
}

// tell calls Progress. p is the phase that begins; empty: none does.
func (t *taker) tell(p Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p != "" {
		t.phase = p
	}
	if t.o.Progress == nil || t.phase == "" {
		return
	}
	t.o.Progress(Progress{
		ID: t.h.ID, Phase: t.phase, Total: t.total,
		Bytes: t.copy.read.Load(), Files: t.copy.files.Load(), Stored: t.packs.stored.Load(),
	})
}

// estimate adds up how much there is to copy.
func (t *taker) estimate(ctx context.Context) error {
	total := int64(0)
	w := t.newWalker(func(_ *Entry, _ string, info fs.FileInfo) error {
		if info != nil {
			total += info.Size()
		}
		return nil
	})
	w.log = slog.New(slog.DiscardHandler)
	if err := w.walk(ctx); err != nil {
		return nil // the copy meets the same, and tells
	}
	t.mu.Lock()
	t.total = total
	t.mu.Unlock()
	return nil
}

// report tells the progress until ctx ends.
func (t *taker) report(ctx context.Context) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.tell("")
		}
	}
}
