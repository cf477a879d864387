package repo

import (
	"fmt"
	"strconv"
	"strings"

	"pitr/internal/wal"
)

// The first components of the keys of a lineage. Everything lies under "<system identifier>/".
const (
	factsPrefix    = "repo/"
	WALPrefix      = "wal/"
	IndexPrefix    = "index/"
	PendingPrefix  = "pending/"
	BackupPrefix   = "backup/"
	PackPrefix     = "pack/"
	MarkPrefix     = "mark/"
	PinPrefix      = "pin/"
	AsidePrefix    = "aside/"
	DumpPrefix     = "dump/"
	DumpDataPrefix = "dumpdata/"
)

// TimelineDir is the prefix under which the segments of a timeline lie.
func TimelineDir(tli wal.Timeline) string { return WALPrefix + tli.String() + "/" }

// SegmentDir is the prefix under which a segment's directory lies: the first 16 digits of the
// segment's name (timeline and the upper half of its number) keep a directory to at most 4096
// segments (of 1 MiB; 256 of 16 MiB).
func SegmentDir(name string) string {
	return WALPrefix + name[:8] + "/" + name[:16] + "/"
}

// SegmentPrefix begins every key that belongs to the segment of that name: its content, its
// partial contents, its backup history files and the record of a settled conflict.
func SegmentPrefix(name string) string { return SegmentDir(name) + name }

// SegmentKey names a whole segment by its content.
func SegmentKey(name string, d Digest) string {
	return SegmentPrefix(name) + "-" + d.String() + ".zst"
}

// PartialKey names the valid prefix of a segment, which ends at end.
func PartialKey(name string, end wal.LSN, d Digest) string {
	return fmt.Sprintf("%s.partial-%016X-%s.zst", SegmentPrefix(name), uint64(end), d)
}

// ResolvedKey records that of several contents under one name, d is the one to use. The name is
// that of a segment, a backup history file or a timeline history.
func ResolvedKey(name string, d Digest) string {
	dir := WALPrefix
	if wal.Classify(name) != wal.TimelineHistory {
		dir = SegmentDir(name)
	}
	return dir + name + ".resolved-" + d.String()
}

// PrunedKey records that the segments of a timeline from number first to last were removed because
// nothing needed them: no gap.
func PrunedKey(tli wal.Timeline, first, last uint64) string {
	return fmt.Sprintf("%s%s.pruned-%016X-%016X", WALPrefix, tli, first, last)
}

// ParsePrunedKey is the inverse of PrunedKey.
func ParsePrunedKey(key string) (tli wal.Timeline, first, last uint64, ok bool) {
	const form = WALPrefix + "00000000.pruned-0000000000000000-0000000000000000"
	rest, found := strings.CutPrefix(key, WALPrefix)
	if !found || len(key) != len(form) {
		return 0, 0, 0, false
	}
	t, err := strconv.ParseUint(rest[:8], 16, 32)
	first, err1 := strconv.ParseUint(rest[16:32], 16, 64)
	last, err2 := strconv.ParseUint(rest[33:], 16, 64)
	if err != nil || err1 != nil || err2 != nil || t == 0 || first > last || PrunedKey(wal.Timeline(t), first, last) != key {
		return 0, 0, 0, false
	}
	return wal.Timeline(t), first, last, true
}

// RollUpDir is the prefix under which the rolled-up indexes of a timeline lie.
func RollUpDir(tli wal.Timeline) string { return IndexPrefix + tli.String() + "/" }

// RollUpKey names the rolled-up indexes of a timeline's segments from number first to last by their
// content.
func RollUpKey(tli wal.Timeline, first, last uint64, d Digest) string {
	return fmt.Sprintf("%s%016X-%016X-%s", RollUpDir(tli), first, last, d)
}

// ParseRollUpKey is the inverse of RollUpKey.
func ParseRollUpKey(key string) (tli wal.Timeline, first, last uint64, d Digest, ok bool) {
	const form = IndexPrefix + "00000000/0000000000000000-0000000000000000-00000000000000000000000000000000"
	rest, found := strings.CutPrefix(key, IndexPrefix)
	if !found || len(key) != len(form) {
		return 0, 0, 0, d, false
	}
	t, err := strconv.ParseUint(rest[:8], 16, 32)
	first, err1 := strconv.ParseUint(rest[9:25], 16, 64)
	last, err2 := strconv.ParseUint(rest[26:42], 16, 64)
	d, err3 := ParseDigest(rest[43:])
	tli = wal.Timeline(t)
	if err != nil || err1 != nil || err2 != nil || err3 != nil || t == 0 || first > last || RollUpKey(tli, first, last, d) != key {
		return 0, 0, 0, d, false
	}
	return tli, first, last, d, true
}

// LabelKey names a backup history file ("<segment>.<offset>.backup"), which the server archives
// at the end of a base backup.
func LabelKey(name string, d Digest) string {
	return SegmentDir(name) + name + "-" + d.String()
}

// HistoryKey names a timeline history file.
func HistoryKey(tli wal.Timeline, d Digest) string {
	return WALPrefix + tli.String() + ".history-" + d.String()
}

// AsideKey names content that was refused under its own name and is kept all the same.
// name is what the server called it, for example "000000010000000000000003".
func AsideKey(name string, d Digest) string { return AsidePrefix + name + "-" + d.String() + ".zst" }

// BackupKey names the manifest of a backup; its existence is what makes the backup exist.
func BackupKey(id string) string { return BackupPrefix + id }

// PackKey names the n-th pack of a backup, counted from 1.
func PackKey(id string, n uint32) string { return fmt.Sprintf("%s%s/%06d", PackPrefix, id, n) }

// PendingKey names the n-th sign of life of a backup that is being taken, counted from 1.
func PendingKey(id string, n int) string { return fmt.Sprintf("%s%s/%06d", PendingPrefix, id, n) }

// MarkKey names the mark that the packs of a backup are about to be deleted.
func MarkKey(id string) string { return MarkPrefix + id }

// PinKey names the object that protects a backup from retention.
func PinKey(id string) string { return PinPrefix + id }

// WALObject is what the key of an object under "wal/" says.
type WALObject struct {
	// Name is the file's name as the server knows it: a segment, "<segment>.partial",
	// "<segment>.<offset>.backup" or "<timeline>.history".
	Name     string
	Kind     wal.Kind
	Timeline wal.Timeline
	// End is set for partial segments: the end of their valid WAL.
	End    wal.LSN
	Digest Digest
	// Resolved marks the record of a settled conflict: Digest is the content to use.
	Resolved bool
}

// ParseWALKey reads the key of an object under "wal/". It reports false for keys that this format
// does not have; a reader passes over them.
func ParseWALKey(key string) (WALObject, bool) {
	base := key[strings.LastIndexByte(key, '/')+1:]
	body, isZst := strings.CutSuffix(base, ".zst")
	dash := strings.LastIndexByte(body, '-')
	if dash < 0 {
		return WALObject{}, false
	}
	d, err := ParseDigest(body[dash+1:])
	if err != nil {
		return WALObject{}, false
	}
	o := WALObject{Name: body[:dash], Digest: d}
	if name, ok := strings.CutSuffix(o.Name, ".resolved"); ok {
		o.Name, o.Resolved = name, true
	}
	if i := strings.Index(o.Name, ".partial-"); i >= 0 {
		end, err := strconv.ParseUint(o.Name[i+len(".partial-"):], 16, 64)
		if err != nil || len(o.Name)-i-len(".partial-") != 16 {
			return WALObject{}, false
		}
		o.End, o.Name = wal.LSN(end), o.Name[:i]+".partial"
	}
	o.Kind = wal.Classify(o.Name)
	switch o.Kind {
	case wal.Segment:
		if isZst == o.Resolved {
			return WALObject{}, false
		}
	case wal.Partial:
		if !isZst || o.End == 0 || o.Resolved {
			return WALObject{}, false
		}
	case wal.TimelineHistory, wal.BackupHistory:
		if isZst {
			return WALObject{}, false
		}
	default:
		return WALObject{}, false
	}
	t, err := strconv.ParseUint(o.Name[:8], 16, 32)
	if err != nil || t == 0 {
		return WALObject{}, false
	}
	o.Timeline = wal.Timeline(t)
	return o, true
}
