package wal

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	segmentNameLen  = 24
	timelineNameLen = 8
	partialSuffix   = ".partial"
	historySuffix   = ".history"
	backupSuffix    = ".backup"
)

// Kind says what a name in pg_wal, or one that PostgreSQL asks to archive or to
// restore, stands for.
type Kind int

const (
	// Other is any name that PostgreSQL's archiver never uses.
	Other Kind = iota
	// Segment is a complete WAL segment.
	Segment
	// Partial is a segment's beginning, closed at the end of a timeline.
	Partial
	// TimelineHistory is a timeline's list of ancestors.
	TimelineHistory
	// BackupHistory tells of a base backup that began in a segment.
	BackupHistory
)

// String names the kind for messages.
func (k Kind) String() string {
	switch k {
	case Segment:
		return "segment"
	case Partial:
		return "partial segment"
	case TimelineHistory:
		return "timeline history"
	case BackupHistory:
		return "backup history"
	default:
		return "other file"
	}
}

// Classify says what name stands for, from its form alone (the macros beside
// XLogFileName in src/include/access/xlog_internal.h). PostgreSQL accepts
// anything between the segment and ".backup"; here it must be the eight digits
// that PostgreSQL writes, so that no odd name reaches a store.
func Classify(name string) Kind {
	if len(name) < timelineNameLen || !isUpperHex(name[:timelineNameLen]) {
		return Other
	}
	if name[timelineNameLen:] == historySuffix {
		return TimelineHistory
	}
	if len(name) < segmentNameLen || !isUpperHex(name[:segmentNameLen]) {
		return Other
	}
	switch rest := name[segmentNameLen:]; {
	case rest == "":
		return Segment
	case rest == partialSuffix:
		return Partial
	case len(rest) == 9+len(backupSuffix) && rest[0] == '.' && isUpperHex(rest[1:9]) && rest[9:] == backupSuffix:
		return BackupHistory
	}
	return Other
}

// isUpperHex reports whether s is made of the digits that PostgreSQL's file
// names are made of.
func isUpperHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return s != ""
}

// SegmentName returns the file name of segment number no on timeline tli, for
// segments of segSize bytes.
func SegmentName(tli Timeline, no uint64, segSize int64) string {
	per := segmentsPerLog(segSize)
	return fmt.Sprintf("%08X%08X%08X", uint32(tli), uint32(no/per), uint32(no%per))
}

// ParseSegmentName splits the name of a segment of segSize bytes into timeline
// and segment number. Suffixes are not accepted. A name that no segment of that
// size can have is an error: it shows that segSize is wrong or the name forged.
func ParseSegmentName(name string, segSize int64) (Timeline, uint64, error) {
	if !ValidSegSize(segSize) {
		return 0, 0, fmt.Errorf("invalid WAL segment size %d", segSize)
	}
	if Classify(name) != Segment {
		return 0, 0, fmt.Errorf("%q is not the name of a WAL segment", name)
	}
	tli := parseHex32(name[:8])
	log, seg := uint64(parseHex32(name[8:16])), uint64(parseHex32(name[16:24]))
	if tli == 0 {
		return 0, 0, fmt.Errorf("WAL segment %s: timeline 0 does not exist", name)
	}
	per := segmentsPerLog(segSize)
	if seg >= per {
		return 0, 0, fmt.Errorf("WAL segment %s: no segment of %d bytes has this name", name, segSize)
	}
	return Timeline(tli), log*per + seg, nil
}

// HistoryName returns the file name of tli's history.
func HistoryName(tli Timeline) string { return tli.String() + historySuffix }

// ParseHistoryName returns the timeline that a history file belongs to.
func ParseHistoryName(name string) (Timeline, error) {
	if Classify(name) != TimelineHistory {
		return 0, fmt.Errorf("%q is not the name of a timeline history", name)
	}
	return Timeline(parseHex32(name[:8])), nil
}

// PartialBase returns the name of the segment that a partial segment begins, and
// whether name is that of a partial segment.
func PartialBase(name string) (string, bool) {
	if Classify(name) != Partial {
		return "", false
	}
	return strings.TrimSuffix(name, partialSuffix), true
}

// ParseBackupHistoryName returns timeline, segment number and start position of
// the base backup that a backup history file tells of.
func ParseBackupHistoryName(name string, segSize int64) (Timeline, uint64, LSN, error) {
	if Classify(name) != BackupHistory {
		return 0, 0, 0, fmt.Errorf("%q is not the name of a backup history file", name)
	}
	tli, no, err := ParseSegmentName(name[:segmentNameLen], segSize)
	if err != nil {
		return 0, 0, 0, err
	}
	offset := int64(parseHex32(name[segmentNameLen+1 : segmentNameLen+9]))
	if offset >= segSize {
		return 0, 0, 0, fmt.Errorf("backup history %s: offset lies beyond a segment of %d bytes", name, segSize)
	}
	return tli, no, SegmentStart(no, segSize) + LSN(offset), nil
}

// segmentsPerLog is the number of segments whose names share the middle eight
// digits (XLogSegmentsPerXLogId).
func segmentsPerLog(segSize int64) uint64 { return (1 << 32) / uint64(segSize) }

// parseHex32 reads eight digits that Classify has already accepted.
func parseHex32(s string) uint32 {
	v, _ := strconv.ParseUint(s, 16, 32)
	return uint32(v)
}
