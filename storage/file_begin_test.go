package storage

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Of several that write first to a store that does not exist yet, each finds it begun or begins it: none takes it for one
// that has vanished.
func TestFileBegunBySeveral(t *testing.T) {
	for round := range 100 {
		b, err := Open(context.Background(), Config{URL: "file://" + filepath.Join(t.TempDir(), fmt.Sprint(round))})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 32 {
			all.Go(func() {
				if err := b.Create(context.Background(), fmt.Sprintf("k/%d", i), strings.NewReader("x")); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}
