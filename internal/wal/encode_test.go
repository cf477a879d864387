package wal_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"pitr/internal/wal"
)

// golden is the index of fuzzSegment(15), field by field as
// docs/format-wal-index.md has them. Archives are full of such bytes: what
// changes here needs a new version of the format.
var golden = strings.Join([]string{
	"50574958", "01", // PWIX, version
	"01", "2f", // the summary
	"8180f09d99ddbf9261", "01", "8080c001", "808040", "0f", // system identifier, timeline, start, size, major
	"a880c001", "e8c7c001", "90c8c001", // first, last, valid end
	"00", "90c8c001", "00", "00", "00", // stop: kind, place, later page, reason; flags
	"02", "00", "64", "28", "05", "07", // commits, aborts, times, transactions
	"00", "00", "00", // minimal, page writes off, opaque
	"02", "10", "00000000000000000000000000", "000000", // no facts, no running transactions
	"03", "0a", "02", // two transactions: flags, start, xid, time
	"00", "0a", "00", "00",
	"00", "f011", "04", "28",
	"04", "0b", "01", // one fork: relation, fork, limit, pages
	"ff0c", "05", "808001", "00", "00", "01", "03",
	"05", "07", "00000000000000", // no head
	"06", "07", "00000000000000", // no tail
	"b8771de0",
}, "")

func TestIndexGolden(t *testing.T) {
	ix, err := wal.BuildIndex(fuzzSegment(15), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(ix.Encode()); got != golden {
		t.Errorf("the index is stored as\n%s, want\n%s", got, golden)
	}
}

func TestDecodeIndexRefuses(t *testing.T) {
	ix, err := wal.BuildIndex(fuzzSegment(15), 1)
	if err != nil {
		t.Fatal(err)
	}
	good := ix.Encode()
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0x10
		if _, err := wal.DecodeIndex(bad); err == nil {
			t.Errorf("byte %d of %d damaged, and nobody noticed", i, len(good))
		}
		if _, err := wal.DecodeIndex(good[:i]); err == nil {
			t.Errorf("cut to %d of %d bytes, and nobody noticed", i, len(good))
		}
	}
	newer := append([]byte(nil), good...)
	newer[4] = 2
	if _, err := wal.DecodeIndex(newer); err == nil || err.Error() != "WAL index: version 2, but this pitr knows only version 1" {
		t.Errorf("a newer version: %v", err)
	}
}
