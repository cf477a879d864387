package storage_test

import (
	"errors"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/storage"
	"pitr/storage/storagetest"
)

func open(t *testing.T, dir string) storage.Bucket {
	t.Helper()
	u := url.URL{Scheme: "file", Path: dir}
	b, err := storage.Open(t.Context(), storage.Config{URL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// plant makes the objects as links to a few files, which takes a hundredth of the time that files of their own would.
func plant(t *testing.T, b storage.Bucket, keys []string) {
	t.Helper()
	const linksPerFile = 10_000 // ext4 allows 65,000
	u, err := url.Parse(b.String())
	if err != nil {
		t.Fatal(err)
	}
	from := ""
	for i, key := range keys {
		path := filepath.Join(u.Path, key)
		if i%250 == 0 {
			err = os.MkdirAll(filepath.Dir(path), 0o750)
		}
		if err == nil && i%linksPerFile == 0 {
			from = path
			err = os.WriteFile(path, []byte("x"), 0o640)
		} else if err == nil {
			err = os.Link(from, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileContract(t *testing.T) {
	storagetest.Contract{
		Open:  func(t *testing.T) storage.Bucket { return open(t, t.TempDir()+"/a store: 100% ? # é") },
		Plant: plant,
	}.Run(t)
}

func TestPrefixContract(t *testing.T) {
	storagetest.TestBucket(t, func(t *testing.T) storage.Bucket {
		return storage.Prefix(neighbours(t, storagetest.Memory()), "some/where/")
	})
}

func TestPrefixOfFileContract(t *testing.T) {
	storagetest.Contract{
		Open: func(t *testing.T) storage.Bucket {
			return storage.Prefix(neighbours(t, open(t, t.TempDir())), "some/where")
		},
		Plant: plant,
	}.Run(t)
}

// neighbours puts objects beside the prefix some/where, on both sides of it.
func neighbours(t *testing.T, b storage.Bucket) storage.Bucket {
	for _, key := range []string{"some/where.else", "some/where0", "some/a", "a", "z", "some/x/where/y"} {
		if err := b.Create(t.Context(), key, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestLimitContract(t *testing.T) {
	storagetest.TestBucket(t, func(t *testing.T) storage.Bucket {
		return storage.Limit(storagetest.Memory(), 10<<30, 10<<30)
	})
}

func TestRetryContract(t *testing.T) {
	storagetest.TestBucket(t, func(t *testing.T) storage.Bucket {
		return storage.Retry(storagetest.Memory(), storage.Backoff{})
	})
}

// Above a store of which one operation in twenty fails, also after it was done, Retry makes a bucket without faults.
// Only a Create from a reader that cannot be read again it cannot save, and the contract uses such readers nowhere but
// for large objects.
func TestRetryContractOverFaults(t *testing.T) {
	storagetest.TestBucket(t, func(t *testing.T) storage.Bucket { return storage.Retry(flaky(20), quick) })
}

func TestStackContract(t *testing.T) {
	storagetest.TestBucket(t, func(t *testing.T) storage.Bucket {
		return storage.Limit(storage.Retry(storage.Prefix(flaky(50), "p"), quick), 10<<30, 10<<30)
	})
}

var errFlaky = errors.New("flaky")

const quickWait = time.Microsecond

var quick = storage.Backoff{Attempts: 100, First: quickWait, Most: quickWait}

// flaky is a store of which one operation in n fails, though never the Create of what
// cannot be read again.
func flaky(n int) storage.Bucket {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(3, 4))
	return storagetest.Faulty(storagetest.Memory(), func(op storagetest.Op, key string) error {
		mu.Lock()
		defer mu.Unlock()
		once := op == storagetest.Create || op == storagetest.CreateDone
		if once && (key == "large/object" || key == "p/large/object") || rng.IntN(n) > 0 {
			return nil
		}
		return storage.MarkTemporary(errFlaky)
	})
}
