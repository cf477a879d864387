package storage_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"pitr/storage"
	"pitr/storage/storagetest"
)

// TestSwift runs everything that needs a real Swift against one.
func TestSwift(t *testing.T) {
	server := storagetest.StartSwift(t)
	var containers atomic.Int32
	fresh := func(t *testing.T, prefix string) storage.Bucket {
		t.Helper()
		c := server.Config(fmt.Sprintf("Contract_%d", containers.Add(1)))
		c.URL += prefix
		b, err := storage.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Run("contract", func(t *testing.T) {
		storagetest.Contract{
			Open: func(t *testing.T) storage.Bucket { return fresh(t, "/a prefix/50%25 é") },
			Plant: func(t *testing.T, b storage.Bucket, keys []string) {
				create(t, b, keys[0], "x") // the container
				if err := b.Delete(t.Context(), keys[0]); err != nil {
					t.Fatal(err)
				}
				names := make([]string, len(keys))
				for i, key := range keys {
					names[i] = "a prefix/50% é/" + key
				}
				container := strings.TrimPrefix(b.String(), "swift://")
				container, _, _ = strings.Cut(container, "/")
				server.Plant(t, container, names)
			},
		}.Run(t)
	})
	s := swiftTests{server, fresh}
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"large objects stay", s.largeStays},
		{"nothing left of what failed", s.nothingLeft},
		{"sweep", s.sweep},
		{"tokens are renewed", s.renewed},
		{"container that is not there", s.noContainer},
		{"container that vanishes", s.vanishes},
		{"storage policy", s.policy},
		{"identity services", s.identity},
		{"answers that are lost", s.lostAnswers},
		{"trouble", s.trouble},
		{"errors", s.errors},
		{"without bulk deletes", s.noBulk},
	} {
		t.Run(part.name, part.run)
	}
}

type swiftTests struct {
	server *storagetest.Swift
	fresh  func(t *testing.T, prefix string) storage.Bucket
}
