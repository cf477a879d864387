package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the WAL of one cluster (XLogRecPtr). Zero is no
// position: the first segment of a cluster is never used.
type LSN uint64

// String prints the position as PostgreSQL does, for example "16/B374D848".
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// MarshalText makes JSON hold positions in PostgreSQL's notation.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads PostgreSQL's notation.
func (l *LSN) UnmarshalText(text []byte) error {
	v, err := ParseLSN(string(text))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// ParseLSN reads a position in PostgreSQL's notation: two hexadecimal numbers of
// one to eight digits, separated by a slash.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || !isHex(hi) || !isHex(lo) || len(hi) > 8 || len(lo) > 8 {
		return 0, fmt.Errorf("invalid WAL position %q: want two hexadecimal numbers with a slash between, such as 16/B374D848", s)
	}
	// Cannot fail: both halves are one to eight hexadecimal digits.
	h, _ := strconv.ParseUint(hi, 16, 32)
	l, _ := strconv.ParseUint(lo, 16, 32)
	return LSN(h<<32 | l), nil
}

// isHex reports whether s is one or more hexadecimal digits of either case.
func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'F') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// Timeline numbers one line of a cluster's history. The first is 1; zero is no
// timeline.
type Timeline uint32

// String prints the timeline as file names hold it: eight hexadecimal digits,
// upper case.
func (t Timeline) String() string { return fmt.Sprintf("%08X", uint32(t)) }

const (
	// MinSegSize and MaxSegSize bound wal_segment_size, in bytes; it is a power
	// of two.
	MinSegSize = 1 << 20
	MaxSegSize = 1 << 30
)

// ValidSegSize reports whether n bytes is a size that a WAL segment can have.
func ValidSegSize(n int64) bool {
	return n >= MinSegSize && n <= MaxSegSize && n&(n-1) == 0
}

// SegmentStart returns the position of the first byte of segment number no.
func SegmentStart(no uint64, segSize int64) LSN { return LSN(no * uint64(segSize)) }

// SegmentOf returns the number of the segment that holds the byte at lsn. For
// the end of a record, which may be the first byte after a segment, callers ask
// for lsn-1.
func SegmentOf(lsn LSN, segSize int64) uint64 { return uint64(lsn) / uint64(segSize) }
