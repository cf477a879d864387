package basebackup

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// What is right is settled by real pages, in TestRealPages.
func TestPageSumDependsOnWhatItMust(t *testing.T) {
	page := make([]byte, 8192)
	for i := range page {
		page[i] = byte(i * 7)
	}
	first := pageSum(page, 0)
	if second := pageSum(page, 1); second == first {
		t.Errorf("blocks 0 and 1: both %d", first)
	}
	page[8]++
	page[9] = 0xAA
	if got := pageSum(page, 0); got != first {
		t.Errorf("the checksum field changes the checksum: %d, %d", first, got)
	}
}

// TestBadPagesAgree holds what the build's implementation says against pageGood, for all page sizes, with wrong pages of
// each kind in known places.
func TestBadPagesAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1024, 8192, 32768} {
		const pages = 300
		buf := make([]byte, pages*size)
		want := []int{}
		for i := range pages {
			page := buf[i*size : (i+1)*size]
			if i%10 == 3 { // a page that nobody has written to
				continue
			}
			for j := 0; j < size; j += 8 {
				binary.LittleEndian.PutUint64(page[j:], rnd.Uint64())
			}
			page[pageUpperAt] |= 1
			binary.LittleEndian.PutUint16(page[pageChecksumAt:], pageSum(page, 1000+uint32(i)))
			switch i % 50 {
			case 7: // a flipped bit
				page[rnd.IntN(size)] ^= 1 << rnd.IntN(8)
			case 8: // another block's page
				binary.LittleEndian.PutUint16(page[pageChecksumAt:], pageSum(page, uint32(i)))
			case 9: // no upper bound, and not empty
				binary.LittleEndian.PutUint16(page[pageUpperAt:], 0)
			default:
				continue
			}
			want = append(want, i)
		}
		got := badPages(buf, size, 1000)
		if len(got) != len(want) {
			t.Fatalf("size %d: bad are %v, want %v", size, got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("size %d: bad are %v, want %v", size, got, want)
			}
		}
	}
}

func TestAllZero(t *testing.T) {
	buf := make([]byte, 1000)
	if !allZero(buf) || !allZero(nil) {
		t.Error("zeros are not seen as such")
	}
	for i := range buf {
		buf[i] = 1
		if allZero(buf) {
			t.Errorf("byte %d is not zero", i)
		}
		buf[i] = 0
	}
}

func BenchmarkBadPages(b *testing.B) {
	buf := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], rnd.Uint64())
	}
	for i := range len(buf) / 8192 {
		page := buf[i*8192 : (i+1)*8192]
		page[pageUpperAt] |= 1
		binary.LittleEndian.PutUint16(page[pageChecksumAt:], pageSum(page, uint32(i)))
	}
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if bad := badPages(buf, 8192, 0); bad != nil {
			b.Fatal(bad)
		}
	}
}
