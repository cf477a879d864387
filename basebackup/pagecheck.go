package basebackup

import "encoding/binary"

// Every page of a relation carries a checksum of its bytes and its block number where the cluster was made with data
// checksums (src/include/storage/checksum_impl.h): the page is read as rows of 32 little-endian words, one lane of
// FNV-1a, with an extra shift, runs down each column, and the lanes are folded by xor. pageSum of this package's two
// implementations gives the same; the C one takes what vector instructions the machine has.

const (
	pageLanes = 32
	pagePrime = 16777619

	pageChecksumAt = 8  // pd_checksum in PageHeaderData (src/include/storage/bufpage.h)
	pageUpperAt    = 14 // pd_upper
)

// pageLaneStart are the lanes' initial values.
var pageLaneStart = [pageLanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// pageGood tells whether the server would accept a page as block number no of its relation: its checksum is right, or it
// is all zeros, as pages are that the file was extended by and nobody has written to yet.
func pageGood(page []byte, no uint32) bool {
	if binary.LittleEndian.Uint16(page[pageUpperAt:]) == 0 {
		return allZero(page)
	}
	return pageSum(page, no) == binary.LittleEndian.Uint16(page[pageChecksumAt:])
}

// pageSum computes the checksum of a page, whatever its checksum field holds.
func pageSum(page []byte, no uint32) uint16 {
	lanes := pageLaneStart
	var first [4 * pageLanes]byte
	copy(first[:], page)
	first[pageChecksumAt], first[pageChecksumAt+1] = 0, 0
	mixRow(&lanes, first[:])
	for row := page[len(first):]; len(row) >= len(first); row = row[len(first):] {
		mixRow(&lanes, row)
	}
	sum := no
	for _, s := range lanes {
		s = s*pagePrime ^ s>>17
		s = s*pagePrime ^ s>>17
		sum ^= s
	}
	return uint16(sum%65535 + 1)
}

func mixRow(lanes *[pageLanes]uint32, row []byte) {
	_ = row[4*pageLanes-1]
	for i := range lanes {
		v := lanes[i] ^ binary.LittleEndian.Uint32(row[4*i:])
		lanes[i] = v*pagePrime ^ v>>17
	}
}

// allZero tells whether all of b is zero.
func allZero(b []byte) bool {
	// Each byte equals the next: compared with vector instructions by the runtime.
	return len(b) == 0 || b[0] == 0 && string(b[1:]) == string(b[:len(b)-1])
}
