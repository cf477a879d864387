// Package storage keeps objects in a bucket: a directory or an object store of the clouds, whose SDKs only this package
// imports. It knows nothing of what the objects hold; names, formats and retention are its callers'.
//
// An object is written once, whole or not at all, and never changes. Everything else the package promises is said at
// Bucket and proven for every driver and decorator by storagetest.TestBucket.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	// ErrNotFound says that a bucket, working and reachable, holds no object under the key. It is never said of a
	// bucket that could not be asked.
	ErrNotFound = errors.New("not found")
	// ErrExists says that the key was taken before.
	ErrExists = errors.New("exists already")
	// ErrVanished says that the place where the bucket was, when it was opened, holds it no longer, as when its file
	// system was unmounted.
	ErrVanished = errors.New("the store has vanished")
	// ErrInvalidKey says that no object can have the key.
	ErrInvalidKey = errors.New("invalid key")
)

// An Object is what a bucket knows of an object without reading it.
type Object struct {
	Key      string
	Size     int64     // bytes
	Modified time.Time // when it was created, by the store's own clock
}

// Capabilities are what stores differ in. A caller who finds one missing needs another way to the same safety.
type Capabilities struct {
	// CreateIfAbsent: a Create on a key that is taken fails with ErrExists, and of racing creators exactly one succeeds.
	CreateIfAbsent bool
	// StrongList: List, Stat and Get see every Create and Delete that returned before they began, from any process on
	// any host.
	StrongList bool
}

// A Bucket holds objects under keys: see CheckKey for what a key can be. All methods may be called by many goroutines at
// once, and other processes may use the same store at the same time.
//
// An error names operation, key and store, matches ErrNotFound, ErrExists, ErrVanished, ErrInvalidKey or the context's
// error by errors.Is where one of them is the cause, carries a hint where something can be done about it, and holds no
// secret. Nothing is tried again inside a driver: see Retry.
type Bucket interface {
	// Create stores everything r gives under key, whole or not at all, and durable when it returns nil. If the key is
	// taken, nothing changes and the error is ErrExists: then what is there is durable (promised where CreateIfAbsent is declared; elsewhere of two
	// racing writers the last may win). An error of r, or ctx ending, leaves nothing visible.
	//
	// After any other error the object may be there, whole: the answer can be lost on the way. If r is an io.Seeker,
	// it may be set back to where it was at the call and read again.
	Create(ctx context.Context, key string, r io.Reader) error

	// Get gives the object's content, or ErrNotFound. The reader must be closed, and fails once ctx has ended.
	Get(ctx context.Context, key string) (io.ReadCloser, error)

	// GetRange gives the n bytes from off on, exactly. Where the object is shorter, the reader gives what there is and
	// then io.ErrUnexpectedEOF. Otherwise it is like Get. Neither off nor n may be negative.
	GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)

	// Stat describes the object, or says ErrNotFound.
	Stat(ctx context.Context, key string) (Object, error)

	// List gives the objects whose keys begin with the string prefix and are greater than after, in the byte order of
	// their keys. It streams: neither all keys nor all pages are held at once. It ends at the first error, which is its
	// last element. An object there during the whole listing is in it, once; one created or deleted meanwhile may be.
	List(ctx context.Context, prefix, after string) iter.Seq2[Object, error]

	// Delete removes the objects, durably when it returns nil. Keys that are not there are ignored. After an error some
	// may be gone, the last key only if all others are; it can be repeated.
	Delete(ctx context.Context, keys ...string) error

	// Capabilities says what this store promises. It writes nothing: what only writing can tell is known from the first
	// Create on, and promised until then. Otherwise it does not change while the bucket is open.
	Capabilities() Capabilities

	// String is the URL of the bucket, without secrets, for messages.
	String() string
}

// maxComponent is the length of a key's component, in bytes, that every store can hold (NAME_MAX of the usual file
// systems).
const maxComponent = 255

// maxKey is the length of a key, in bytes, that every store can hold: S3 and Azure allow 1,024, of which a quarter is
// left for the prefix in the bucket's URL.
const maxKey = 768

// CheckKey returns ErrInvalidKey, with the reason, unless key can name an object in every kind of store: components of 1
// to 255 bytes, separated by "/", together at most 768 bytes of UTF-8 without NUL and without the other characters that XML
// 1.0, in which the clouds' stores list, does not have: control characters but tab, line feed and carriage return. No component may begin with a dot:
// that shuts out "." and "..", and leaves such names to the stores' own files.
//
// A key cannot at the same time name an object and be the beginning, up to a "/", of another object's key: "a" and "a/b"
// exclude each other. Drivers that cannot hold both say so.
func CheckKey(key string) error {
	bad := func(why string) error { return fmt.Errorf("%w %q: %s", ErrInvalidKey, key, why) }
	switch {
	case key == "":
		return bad("it is empty")
	case len(key) > maxKey:
		return bad(fmt.Sprintf("it is longer than %d bytes", maxKey))
	case !utf8.ValidString(key):
		return bad("it is not UTF-8")
	case strings.ContainsRune(key, 0):
		return bad("it contains a NUL")
	case strings.ContainsFunc(key, notInXML):
		return bad("it contains a control character")
	}
	for c := range strings.SplitSeq(key, "/") {
		switch {
		case c == "":
			return bad("a component is empty")
		case c[0] == '.':
			return bad("a component begins with a dot")
		case len(c) > maxComponent:
			return bad(fmt.Sprintf("a component is longer than %d bytes", maxComponent))
		}
	}
	return nil
}

// notInXML: see "Char" in the recommendation, https://www.w3.org/TR/xml/#charsets.
func notInXML(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\uFFFE' || r == '\uFFFF'
}

// errTemporary marks errors that a second try may not meet again.
var errTemporary = errors.New("temporary")

type temporaryError struct{ error }

func (t temporaryError) Unwrap() []error { return []error{t.error, errTemporary} }

// MarkTemporary marks err as one that a second try may not meet again; its text stays. It is for drivers.
func MarkTemporary(err error) error {
	if err == nil {
		return nil
	}
	return temporaryError{err}
}

// Temporary says whether it is worth trying again what ended in err.
func Temporary(err error) bool {
	return errors.Is(err, errTemporary) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// A Settler is a bucket in which an object can be seen before it is durable: when its creator is killed in between, or has
// just not come as far.
type Settler interface {
	// Settle makes the object under key, which is whole whenever it is seen, durable: ErrNotFound where there is none.
	Settle(ctx context.Context, key string) error
}

// Settle does it for the Settler that b is or decorates. In other buckets what is seen is durable, and it does nothing.
// Whoever finds an object that he wants stored, and relies on that instead of a Create of his own, calls it first.
func Settle(ctx context.Context, b Bucket, key string) error {
	for {
		if s, ok := b.(Settler); ok {
			return s.Settle(ctx, key)
		}
		d, ok := b.(interface{ Unwrap() Bucket })
		if !ok {
			return nil
		}
		b = d.Unwrap()
	}
}

// A Sweeper is a bucket in which a killed process can leave hidden files behind, and that can remove them.
type Sweeper interface {
	// Sweep removes what was left behind and not written to for longer than olderThan, and returns how much that was.
	// What is older than any Create can take, is safe: 24 hours.
	Sweep(ctx context.Context, olderThan time.Duration) (removed int, err error)
}

// Sweep does it for the Sweeper that b is or decorates, and nothing where there is none.
func Sweep(ctx context.Context, b Bucket, olderThan time.Duration) (removed int, err error) {
	for {
		if s, ok := b.(Sweeper); ok {
			return s.Sweep(ctx, olderThan)
		}
		d, ok := b.(interface{ Unwrap() Bucket })
		if !ok {
			return 0, nil
		}
		b = d.Unwrap()
	}
}
