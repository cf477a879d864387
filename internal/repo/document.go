package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"pitr/internal/hint"
	"pitr/storage"
)

// ErrDamaged reports an object whose content is not what was stored. Nothing of it may be used.
var ErrDamaged = errors.New("damaged object")

// maxDocument bounds what is read as a document; real ones have a few hundred bytes.
const maxDocument = 1 << 20

// MarshalDocument writes v as a document: one line of JSON, then a line "#" with the digest of the
// first (without its line feed). People can read it, and any flipped bit shows.
func MarshalDocument(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write a document: %w", err)
	}
	d := DigestOf(line)
	return fmt.Appendf(line, "\n#%s\n", d), nil
}

// UnmarshalDocument reads what MarshalDocument wrote, and nothing else: ErrDamaged.
func UnmarshalDocument(data []byte, v any) error {
	line, rest, ok := bytes.Cut(data, []byte("\n"))
	if !ok || string(rest) != "#"+DigestOf(line).String()+"\n" {
		return fmt.Errorf("%w: the document's digest does not fit its text", ErrDamaged)
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return nil
}

// PutDocument stores v under key. An equal document there already is a success, another one is
// storage.ErrExists.
func (r *Repo) PutDocument(ctx context.Context, key string, v any) error {
	data, err := MarshalDocument(v)
	if err != nil {
		return err
	}
	return r.CreateSame(ctx, key, data)
}

// GetDocument reads the document under key into v: storage.ErrNotFound, ErrDamaged.
func (r *Repo) GetDocument(ctx context.Context, key string, v any) error {
	data, err := r.ReadAll(ctx, key, maxDocument)
	if err != nil {
		return err
	}
	if err := UnmarshalDocument(data, v); err != nil {
		return fmt.Errorf("read %s: %w", r.Where(key), err)
	}
	return nil
}

// CreateSame stores data under key; the same bytes there already are a success, others are
// storage.ErrExists. Nothing is overwritten.
func (r *Repo) CreateSame(ctx context.Context, key string, data []byte) error {
	err := r.Create(ctx, key, bytes.NewReader(data))
	if !errors.Is(err, storage.ErrExists) {
		return err
	}
	there, rerr := r.ReadAll(ctx, key, int64(len(data))+1)
	if rerr == nil && bytes.Equal(there, data) {
		return nil
	}
	if rerr != nil && !errors.Is(rerr, errTooLarge) {
		return errors.Join(err, rerr)
	}
	return err
}

var errTooLarge = errors.New("object larger than expected")

// ReadAll returns the whole object, which must not exceed max bytes.
func (r *Repo) ReadAll(ctx context.Context, key string, max int64) ([]byte, error) {
	body, err := r.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, max+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.Where(key), err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("read %s: %w (more than %d bytes)", r.Where(key), errTooLarge, max)
	}
	return data, nil
}

// damagedHint is what a user can do about any damaged object.
const damagedHint = "the object was changed after it was stored; run `pitr wal verify` and `pitr backup verify`, and take a new backup if one is affected"

// Damaged wraps ErrDamaged with the object's address and what to do.
func (r *Repo) Damaged(key, format string, args ...any) error {
	return hint.Wrap(fmt.Errorf("read %s: %w: %s", r.Where(key), ErrDamaged, fmt.Sprintf(format, args...)), damagedHint)
}
