package storage_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"pitr/storage"
	"pitr/storage/storagetest"
	"pitr/storage/storagetest/s3server"
)

func openBucket(t *testing.T, c storage.Config) storage.Bucket {
	t.Helper()
	b, err := storage.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestS3Contract(t *testing.T) {
	server := s3server.Start(t)
	const prefix = "some/where: 100% é"
	var n atomic.Int32
	var bucket string
	storagetest.Contract{
		Open: func(t *testing.T) storage.Bucket {
			bucket = fmt.Sprintf("contract-%d", n.Add(1))
			whole := openBucket(t, server.Bucket(t, bucket, ""))
			for _, key := range []string{"some/where.else", "some/where", "some/a", "z"} {
				create(t, whole, key, "x")
			}
			t.Cleanup(func() {
				if left := server.Uploads(t, bucket); len(left) > 0 {
					t.Errorf("uploads are left: %q", left)
				}
			})
			return openBucket(t, server.Bucket(t, bucket, "some/where:%20100%25%20é"))
		},
		Plant: func(t *testing.T, _ storage.Bucket, keys []string) { server.Plant(t, bucket, prefix, keys) },
		Many:  20_000, // the server reads the directories anew for each page
	}.Run(t)
}

// TestS3RaceOfLargeObjects: uploads in parts race for one key, and it is their completion that decides.
func TestS3RaceOfLargeObjects(t *testing.T) {
	server := s3server.Start(t)
	b := openBucket(t, server.Bucket(t, "race", ""))
	const writers, size = 4, 25 << 20
	for round := range 4 {
		key := fmt.Sprintf("race/%d", round)
		errs := make([]error, writers)
		var group sync.WaitGroup
		for i := range writers {
			group.Go(func() {
				content := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
				errs[i] = b.Create(t.Context(), key, content)
			})
		}
		group.Wait()
		winner := slices.Index(errs, nil)
		for i, err := range errs {
			if i != winner && !errors.Is(err, storage.ErrExists) {
				t.Errorf("round %d: writer %d: %v", round, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won", round)
		}
		want := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(winner)}).Read(want)
		if got, err := read(b, key); err != nil || got != string(want) {
			t.Errorf("round %d: the object is not the winner's: %v", round, err)
		}
	}
	if left := server.Uploads(t, "race"); len(left) > 0 {
		t.Errorf("uploads are left: %q", left)
	}
}
