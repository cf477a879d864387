package storagetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"pitr/storage"
	"pitr/storage/storagetest"
)

func TestMemory(t *testing.T) {
	storagetest.TestBucket(t, func(*testing.T) storage.Bucket { return storagetest.Memory() })
}

// Decorators that are told to do nothing keep the contract too.
func TestFaultyWithoutFaults(t *testing.T) {
	storagetest.TestBucket(t, func(*testing.T) storage.Bucket {
		return storagetest.Faulty(storagetest.Memory(), func(storagetest.Op, string) error { return nil })
	})
}

func TestCorruptWithoutCorruption(t *testing.T) {
	storagetest.TestBucket(t, func(*testing.T) storage.Bucket {
		return storagetest.Corrupt(storagetest.Memory(), func(_ string, data []byte) []byte { return data })
	})
}

func filled(t *testing.T, keys ...string) storage.Bucket {
	t.Helper()
	b := storagetest.Memory()
	for _, key := range keys {
		if err := b.Create(t.Context(), key, strings.NewReader("content of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func readAll(b storage.Bucket, key string) (string, error) {
	r, err := b.Get(context.Background(), key)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func keys(b storage.Bucket) (all []string, err error) {
	for o, e := range b.List(context.Background(), "", "") {
		if e != nil {
			return all, e
		}
		all = append(all, o.Key)
	}
	return all, nil
}

// What each Op does to the operation, and what it leaves behind.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		op   storagetest.Op
		key  string // of the operation that fails
		do   func(b storage.Bucket) (seen string, err error)
		seen string
		left string
	}{
		{storagetest.Create, "new", func(b storage.Bucket) (string, error) {
			r := strings.NewReader("x")
			err := b.Create(context.Background(), "new", r)
			return string(rune('0' + r.Len())), err
		}, "0", "a b c"},
		{storagetest.CreateDone, "new", func(b storage.Bucket) (string, error) {
			return "", b.Create(context.Background(), "new", strings.NewReader("x"))
		}, "", "a b c new"},
		{storagetest.Get, "a", func(b storage.Bucket) (string, error) { return readAll(b, "a") }, "", "a b c"},
		{storagetest.Get, "a", func(b storage.Bucket) (string, error) {
			_, err := b.GetRange(context.Background(), "a", 0, 1)
			return "", err
		}, "", "a b c"},
		{storagetest.Read, "a", func(b storage.Bucket) (string, error) {
			r, err := b.Get(context.Background(), "a")
			if err != nil {
				return "", err
			}
			var p [14]byte
			n, _ := r.Read(p[:])
			_, err = r.Read(p[n:])
			return string(p[:n]), err
		}, "content", "a b c"},
		{storagetest.List, "", func(b storage.Bucket) (string, error) {
			all, err := keys(b)
			return strings.Join(all, " "), err
		}, "a", "a b c"},
		{storagetest.Delete, "b", func(b storage.Bucket) (string, error) {
			return "", b.Delete(context.Background(), "a", "b", "c")
		}, "", "b c"},
		{storagetest.Stat, "a", func(b storage.Bucket) (string, error) {
			_, err := b.Stat(context.Background(), "a")
			return "", err
		}, "", "a b c"},
	} {
		t.Run(c.op.String(), func(t *testing.T) {
			inner := filled(t, "a", "b", "c")
			b := storagetest.Faulty(inner, func(op storagetest.Op, key string) error {
				if op == c.op && key == c.key {
					return storagetest.ErrFault
				}
				return nil
			})
			seen, err := c.do(b)
			if !errors.Is(err, storagetest.ErrFault) {
				t.Errorf("error is %v, want ErrFault", err)
			}
			if seen != c.seen {
				t.Errorf("seen %q, want %q", seen, c.seen)
			}
			if left, err := keys(inner); err != nil || strings.Join(left, " ") != c.left {
				t.Errorf("left %q, %v, want %q", left, err, c.left)
			}
		})
	}
}

func TestFaultOfAnEmptyList(t *testing.T) {
	b := storagetest.Faulty(storagetest.Memory(), storagetest.FailNth(1, storagetest.Blip).Fault)
	if all, err := keys(b); !errors.Is(err, storagetest.ErrFault) || len(all) > 0 {
		t.Errorf("listed %q, %v", all, err)
	}
}

func TestFailNth(t *testing.T) {
	for mode, want := range map[storagetest.Mode]string{storagetest.Blip: "..x...", storagetest.Dead: "..xxxx"} {
		c := storagetest.FailNth(3, mode)
		b := storagetest.Faulty(filled(t, "a"), c.Fault)
		var got strings.Builder
		for range 6 {
			if c.Fired() != (c.Count() >= 3) {
				t.Errorf("Fired = %v after %d operations", c.Fired(), c.Count())
			}
			if _, err := b.Stat(t.Context(), "a"); err != nil {
				got.WriteByte('x')
			} else {
				got.WriteByte('.')
			}
		}
		if got.String() != want || c.Count() != 6 {
			t.Errorf("mode %d: %s after %d, want %s", mode, &got, c.Count(), want)
		}
	}
}

// The loop in FailNth's documentation meets every operation once and ends.
func TestFailNthMeetsEveryOperation(t *testing.T) {
	var failedWith []string
	for n := 1; ; n++ {
		c := storagetest.FailNth(n, storagetest.Dead)
		b := storagetest.Faulty(storagetest.Memory(), c.Fault)
		err := b.Create(t.Context(), "a", strings.NewReader("x"))
		if err == nil {
			_, err = readAll(b, "a")
		}
		if err == nil {
			err = b.Delete(t.Context(), "a")
		}
		if !c.Fired() {
			if err != nil {
				t.Errorf("no fault, but %v", err)
			}
			break
		}
		failedWith = append(failedWith, err.Error())
	}
	if len(failedWith) != 5 { // create, create done, get, read, delete
		t.Errorf("%d operations failed: %q", len(failedWith), failedWith)
	}
}

func TestCorrupt(t *testing.T) {
	inner := filled(t, "a", "b")
	b := storagetest.Corrupt(inner, func(key string, data []byte) []byte {
		if key == "a" {
			data[0] ^= 1
			return data[:5]
		}
		return data
	})
	if got, err := readAll(b, "a"); err != nil || got != "bonte" {
		t.Errorf("a is %q, %v", got, err)
	}
	if got, err := readAll(b, "b"); err != nil || got != "content of b" {
		t.Errorf("b is %q, %v", got, err)
	}
	r, err := b.GetRange(t.Context(), "a", 3, 4)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != io.ErrUnexpectedEOF || !bytes.Equal(got, []byte("te")) {
		t.Errorf("range of a is %q, %v", got, err)
	}
	if o, err := b.Stat(t.Context(), "a"); err != nil || o.Size != 5 {
		t.Errorf("Stat of a: %v, %v", o, err)
	}
	for o, err := range b.List(t.Context(), "a", "") {
		if err != nil || o.Size != 5 {
			t.Errorf("List of a: %v, %v", o, err)
		}
	}
	if got, err := readAll(inner, "a"); err != nil || got != "content of a" {
		t.Errorf("what is stored changed: %q, %v", got, err)
	}
}
