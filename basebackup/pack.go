package basebackup

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"

	"pitr/internal/repo"
)

const (
	// packTarget is the size at which a pack is closed, with few workers; packMemory is what the packs of many may take.
	packTarget = 32 << 20
	packMemory = 128 << 20
)

// packs are those of one backup that is being taken.
type packs struct {
	repo   *repo.Repo
	id     string
	level  int
	target int

	last   atomic.Uint32 // number of the last pack that was begun
	stored atomic.Int64
	frames atomic.Int64
}

func newPacks(r *repo.Repo, id string, level, workers int) *packs {
	return &packs{repo: r, id: id, level: level, target: max(min(packTarget, packMemory/workers), 4<<20)}
}

// packer makes packs, one after the other, and stores each while it fills the next. It is not safe for concurrent use:
// each worker has one. After the last frame comes finish; in any case close.
type packer struct {
	*packs
	enc    *repo.Encoder
	buf    []byte // the pack being filled
	number uint32 // its number; 0: none yet
	spare  []byte // the other buffer, while nothing is being stored

	storing chan error // gives the result of the pack being stored, whose buffer is in flight; nil: none is
	flight  []byte
}

func (p *packs) newPacker() (*packer, error) {
	enc, err := repo.NewEncoder(p.level)
	if err != nil {
		return nil, err
	}
	size := p.target + repo.Bound(MaxFrameRaw)
	return &packer{packs: p, enc: enc, buf: make([]byte, 0, size), spare: make([]byte, 0, size)}, nil
}

// add stores raw, at most MaxFrameRaw bytes, as one frame.
func (p *packer) add(ctx context.Context, raw []byte) (Frame, error) {
	if p.number == 0 {
		p.number = p.last.Add(1)
	}
	at := len(p.buf)
	buf, err := p.enc.Append(p.buf, raw)
	if err != nil {
		return Frame{}, err
	}
	p.buf = buf
	p.frames.Add(1)
	f := Frame{
		Pack: p.number, Offset: int64(at), Stored: uint32(len(buf) - at), Raw: uint32(len(raw)),
		Check: repo.CheckOf(raw), StoredCheck: storedCheckOf(buf[at:]),
	}
	if len(buf) >= p.target {
		err = p.store(ctx)
	}
	return f, err
}

// store begins to store the pack, after the one before is stored.
func (p *packer) store(ctx context.Context) error {
	if err := p.wait(); err != nil || p.number == 0 {
		return err
	}
	key, data, done := repo.PackKey(p.id, p.number), p.buf, make(chan error, 1)
	p.flight, p.storing = data, done
	p.buf, p.spare, p.number = p.spare[:0], nil, 0
	go func() {
		err := p.repo.Create(ctx, key, bytes.NewReader(data))
		if err != nil {
			err = fmt.Errorf("store pack %s: %w", key, err)
		} else {
			p.stored.Add(int64(len(data)))
		}
		done <- err
	}()
	return nil
}

// wait returns when nothing is being stored.
func (p *packer) wait() error {
	if p.storing == nil {
		return nil
	}
	err := <-p.storing
	p.storing, p.spare, p.flight = nil, p.flight, nil
	return err
}

// finish stores what there is.
func (p *packer) finish(ctx context.Context) error {
	if err := p.store(ctx); err != nil {
		return err
	}
	return p.wait()
}

// close frees the packer once nothing of it is being stored any more.
func (p *packer) close() {
	_ = p.wait() // reported where it mattered
	p.enc.Close()
}
