package basebackup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pitr/internal/repo"
	"pitr/storage/storagetest"
)

// packed stores frames of random sizes in packs of two, and returns them with what is in them.
func packed(t *testing.T, r *repo.Repo, n int) (frames []Frame, raw [][]byte) {
	t.Helper()
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(3, 4))
	p, err := newPacks(r, testID, 1, 1).newPacker()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for i := range n {
		data := make([]byte, 1+rnd.IntN(5000))
		for j := range data {
			data[j] = byte(rnd.IntN(20))
		}
		f, err := p.add(ctx, data)
		if err != nil {
			t.Fatal(err)
		}
		frames, raw = append(frames, f), append(raw, data)
		if i%2 == 1 {
			if err := p.finish(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	return frames, raw
}

// read gives the content of each frame that is whole, and how many are not.
func read(t *testing.T, fr *FrameReader, frames []Frame) (got map[int][]byte, damaged int) {
	t.Helper()
	got = make(map[int][]byte)
	for _, run := range Runs(testHeader(testID), frames) {
		err := fr.Read(context.Background(), frames, run, func(i int, raw []byte, err error) error {
			if err != nil {
				if !errors.Is(err, repo.ErrDamaged) || raw != nil {
					t.Errorf("frame %d: %d bytes, %v", i, len(raw), err)
				}
				damaged++
				return nil
			}
			if _, twice := got[i]; twice {
				t.Errorf("frame %d is given twice", i)
			}
			got[i] = slices.Clone(raw)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return got, damaged
}

func newFrameReader(t *testing.T, r *repo.Repo) *FrameReader {
	t.Helper()
	fr, err := NewFrameReader(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fr.Close)
	return fr
}

func TestRuns(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	frames, raw := packed(t, r, 10)
	// In any order, some of them again.
	want := []int{9, 0, 3, 0, 4, 4, 8, 2, 1}
	var asked []Frame
	for _, i := range want {
		asked = append(asked, frames[i])
	}
	fr := newFrameReader(t, r)
	runs := Runs(testHeader(testID), asked)
	if len(runs) != 4 { // one for each pack: nothing is asked of the fourth
		t.Errorf("%d runs: %+v", len(runs), runs)
	}
	got, damaged := read(t, fr, asked)
	if damaged != 0 || len(got) != len(want) {
		t.Fatalf("%d frames, %d damaged", len(got), damaged)
	}
	for i, w := range want {
		if !bytes.Equal(got[i], raw[w]) {
			t.Errorf("frame %d is not what was stored", i)
		}
	}
}

func TestRunsAreBounded(t *testing.T) {
	var frames []Frame
	for i := range 100 {
		frames = append(frames, Frame{Pack: 1, Offset: int64(i) * 900_000, Stored: 900_000, Raw: MaxFrameRaw})
	}
	frames = append(frames, Frame{Pack: 1, Offset: 100*900_000 + 1, Stored: 5, Raw: 5}) // behind a hole
	runs := Runs(testHeader(testID), frames)
	n := 0
	for _, run := range runs {
		if n += len(run.Frames); run.Length > MaxRun {
			t.Errorf("%+v", run)
		}
	}
	if n != 101 || len(runs) != 13 {
		t.Errorf("%d frames in %d runs", n, len(runs))
	}
}

// TestEveryFlippedBitOfAPackIsNoticed turns each bit over. Whatever is damaged, also for whom asks for it twice, the other
// frames are given as they were.
func TestEveryFlippedBitOfAPackIsNoticed(t *testing.T) {
	ctx := context.Background()
	r := testRepo(t, storagetest.Memory())
	frames, raw := packed(t, r, 2)
	asked := []Frame{frames[0], frames[0], frames[1]}
	key := repo.PackKey(testID, 1)
	whole, err := r.ReadAll(ctx, key, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	fr := newFrameReader(t, r)
	for i := range 8 * len(whole) {
		data := slices.Clone(whole)
		data[i/8] ^= 1 << (i % 8)
		if err := r.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		if err := r.Create(ctx, key, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		got, damaged := read(t, fr, asked)
		want := 1
		if i/8 < int(frames[0].Stored) {
			want = 2
		}
		if damaged != want {
			t.Fatalf("bit %d: %d damaged, want %d", i, damaged, want)
		}
		for j, data := range got {
			if !bytes.Equal(data, raw[map[int]int{0: 0, 1: 0, 2: 1}[j]]) {
				t.Fatalf("bit %d: frame %d is not what was stored", i, j)
			}
		}
	}
}
