package wal

import "fmt"

// Operations of the resource managers that are looked into. Sources: pg_control.h,
// xact.h, storage_xlog.h, dbcommands_xlog.h, tablespace.h, standbydefs.h,
// heapam_xlog.h.
const (
	xlogCheckpointShutdown = 0x00
	xlogCheckpointOnline   = 0x10
	xlogSwitch             = 0x40
	xlogBackupEnd          = 0x50
	xlogParameterChange    = 0x60
	xlogRestorePoint       = 0x70
	xlogFPWChange          = 0x80
	xlogEndOfRecovery      = 0x90
	xlogOverwrite          = 0xD0
	xlogCheckpointRedo     = 0xE0

	xactCommit         = 0x00
	xactPrepare        = 0x10
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactOpMask         = 0x70
	xactHasInfo        = 0x80

	infoSpecialUpdate = 0x01 // XLR_SPECIAL_REL_UPDATE, in every record's info

	smgrCreate   = 0x10
	smgrTruncate = 0x20

	// TruncateMain and TruncateVM are FileTruncate.Flags.
	TruncateMain = 0x1
	TruncateVM   = 0x2

	spcCreate = 0x00
	spcDrop   = 0x10

	relmapUpdate  = 0x00
	standbyXacts  = 0x10
	heapTruncate  = 0x30
	heapOpMask    = 0x70
	restoreName   = 64 // MAXFNAMELEN
	preparedMagic = 0x57F94534
)

// What a commit or abort record holds (XACT_XINFO_* in xact.h), in this order.
const (
	xinfoDB      = 1 << 0
	xinfoSubxids = 1 << 1
	xinfoRels    = 1 << 2
	xinfoInvals  = 1 << 3
	xinfoTwo     = 1 << 4
	xinfoOrigin  = 1 << 5
	xinfoGID     = 1 << 7
	xinfoStats   = 1 << 8
)

// malformed says that a record with a right checksum has a body that no
// supported server writes.
func (r *Record) malformed(what string) error {
	return fmt.Errorf("%s record at %s is malformed", what, r.LSN)
}

// Txn decodes a commit or abort record (ParseCommitRecord and ParseAbortRecord
// in xactdesc.c). False: the record is of another kind.
func (r *Record) Txn() (Txn, bool, error) {
	if r.Rmgr != RmgrXact {
		return Txn{}, false, nil
	}
	t := Txn{Start: r.LSN, End: r.End, XID: r.XID}
	switch r.Info & xactOpMask {
	case xactCommit:
		t.Kind = Commit
	case xactAbort:
		t.Kind = Abort
	case xactCommitPrepared:
		t.Kind = CommitPrepared
	case xactAbortPrepared:
		t.Kind = AbortPrepared
	default:
		return Txn{}, false, nil
	}
	b := body{p: r.Main}
	t.Time = Timestamp(b.u64())
	if r.Info&xactHasInfo == 0 {
		if b.bad {
			return Txn{}, false, r.malformed(t.Kind.String())
		}
		return t, true, nil
	}
	info := b.u32()
	var d TxnDetail
	if info&xinfoDB != 0 {
		t.DB = b.u32()
		b.u32() // the database's tablespace
	}
	if info&xinfoSubxids != 0 {
		d.Subxids = b.u32s(b.count(4))
	}
	if info&xinfoRels != 0 {
		if n := b.count(12); n > 0 {
			d.Dropped = make([]RelFile, n)
			for i := range d.Dropped {
				d.Dropped[i] = b.relFile()
			}
		}
	}
	if info&xinfoStats != 0 && r.Major >= 15 {
		size := 12
		if r.Major >= 18 {
			size = 16 // object numbers grew to 64 bits
		}
		b.take(b.count(size) * size)
	}
	if info&xinfoInvals != 0 && t.Kind.Committed() {
		b.take(b.count(16) * 16)
	}
	if info&xinfoTwo != 0 {
		t.XID = b.u32()
		if info&xinfoGID != 0 {
			d.GID = text(b.p)
			b.take(len(d.GID) + 1)
		}
	}
	if info&xinfoOrigin != 0 {
		d.OriginLSN = LSN(b.u64())
		d.OriginTime = Timestamp(b.u64())
	}
	if b.bad {
		return Txn{}, false, r.malformed(t.Kind.String())
	}
	if d.Subxids != nil || d.Dropped != nil || d.GID != "" || d.OriginLSN != 0 {
		detail := d // so that d itself stays off the heap
		t.Detail = &detail
	}
	return t, true, nil
}

// Prepared decodes a PREPARE TRANSACTION (xl_xact_prepare and
// ParsePrepareRecord). False: the record is of another kind.
func (r *Record) Prepared() (Prepared, bool, error) {
	if r.Rmgr != RmgrXact || r.Info&xactOpMask != xactPrepare {
		return Prepared{}, false, nil
	}
	b := body{p: r.Main}
	magic := b.u32()
	b.u32() // total length
	p := Prepared{Start: r.LSN, End: r.End, XID: b.u32(), DB: b.u32(), Time: Timestamp(b.u64())}
	b.u32() // owner
	nsub := int(int32(b.u32()))
	b.take(8) // numbers of files removed at commit and at abort
	if r.Major >= 15 {
		b.take(8) // and of statistics
	}
	b.take(4) // number of invalidation messages
	b.take(2) // initfileinval and padding
	gidLen := int(b.u16())
	b.take(16) // origin
	gid := b.take(align8(gidLen))
	if b.bad || magic != preparedMagic || nsub < 0 || gidLen > len(gid) {
		return Prepared{}, false, r.malformed("PREPARE")
	}
	p.GID = text(gid[:gidLen])
	p.Subxids = b.u32s(nsub)
	if b.bad {
		return Prepared{}, false, r.malformed("PREPARE")
	}
	return p, true, nil
}

// Facts collects what a run of records tells, in WAL order.
type Facts struct {
	Transactions   []Txn
	Prepared       []Prepared
	RestorePoints  []RestorePoint
	Checkpoints    []CheckpointRecord
	EndsOfRecovery []EndOfRecovery
	Parameters     []Parameters
	BackupEnds     []BackupEnd
	Overwrites     []Overwrite
	Creates        []FileCreate
	Truncates      []FileTruncate
	TableTruncates []TableTruncate
	DBChanges      []DBChange
	Tablespaces    []Tablespace
	RelMaps        []RelMap
	Running        Running // the last one; LSN 0: none

	// Minimal is the first record that shows wal_level to be minimal, 0: none.
	// What follows was not logged in full: no recovery and no incremental backup
	// may cross it.
	Minimal LSN
	// FPWOff is the first record that shows full_page_writes to be off, 0: none.
	FPWOff LSN
	// Opaque is the first record that changes relation files in a way that only
	// the extension that wrote it knows (XLR_SPECIAL_REL_UPDATE), 0: none. Which
	// blocks changed cannot be told from here on.
	Opaque LSN
}

// add takes in one record. What no fact is told of is passed over.
func (f *Facts) add(r *Record) error {
	if r.Info&infoSpecialUpdate != 0 && f.Opaque == 0 && r.Rmgr != RmgrXact && r.Rmgr != RmgrSmgr && r.Rmgr != RmgrDatabase {
		f.Opaque = r.LSN
	}
	switch r.Rmgr {
	case RmgrXact:
		return f.addXact(r)
	case RmgrXLOG:
		return f.addXLOG(r)
	case RmgrSmgr:
		return f.addStorage(r)
	case RmgrDatabase:
		return f.addDatabase(r)
	case RmgrTablespace:
		return f.addTablespace(r)
	case RmgrRelMap:
		b := body{p: r.Main}
		if r.Op() == relmapUpdate {
			m := RelMap{LSN: r.LSN, XID: r.XID, DB: b.u32(), Spc: b.u32()}
			if b.bad {
				return r.malformed("relation map")
			}
			f.RelMaps = append(f.RelMaps, m)
		}
	case RmgrStandby:
		if r.Op() == standbyXacts {
			b := body{p: r.Main}
			b.take(12) // counts, and whether subtransactions are missing
			run := Running{LSN: r.LSN, NextXID: b.u32(), OldestRunning: b.u32()}
			if b.bad {
				return r.malformed("RUNNING_XACTS")
			}
			f.Running = run
		}
	case RmgrHeap:
		if r.Info&heapOpMask == heapTruncate {
			b := body{p: r.Main}
			t := TableTruncate{LSN: r.LSN, XID: r.XID, DB: b.u32()}
			n := int(int32(b.u32()))
			b.take(4) // flags and padding
			t.OIDs = b.u32s(n)
			if b.bad {
				return r.malformed("TRUNCATE")
			}
			f.TableTruncates = append(f.TableTruncates, t)
		}
	}
	return nil
}

func (f *Facts) addXact(r *Record) error {
	t, ok, err := r.Txn()
	if err != nil {
		return err
	}
	if ok {
		f.Transactions = append(f.Transactions, t)
		return nil
	}
	p, ok, err := r.Prepared()
	if ok {
		f.Prepared = append(f.Prepared, p)
	}
	return err
}

// sawLevel takes note of evidence of wal_level.
func (f *Facts) sawLevel(r *Record, level Level) {
	if level == LevelMinimal && f.Minimal == 0 {
		f.Minimal = r.LSN
	}
}

// sawFPW takes note of evidence of full_page_writes.
func (f *Facts) sawFPW(r *Record, on bool) {
	if !on && f.FPWOff == 0 {
		f.FPWOff = r.LSN
	}
}

func (f *Facts) addXLOG(r *Record) error {
	b := body{p: r.Main}
	what := "" // set where the body turned out to be too short
	switch r.Op() {
	case xlogCheckpointShutdown, xlogCheckpointOnline:
		c, ok := parseCheckpoint(r.Main, r.Major)
		if !ok {
			return r.malformed("checkpoint")
		}
		shutdown := r.Op() == xlogCheckpointShutdown
		f.Checkpoints = append(f.Checkpoints, CheckpointRecord{Start: r.LSN, End: r.End, Shutdown: shutdown, Checkpoint: c})
		f.sawFPW(r, c.FullPageWrites)
		if r.Major >= 17 && shutdown {
			f.sawLevel(r, c.WALLevel)
		}
	case xlogCheckpointRedo:
		if r.Major < 17 {
			return nil
		}
		level := Level(b.u32())
		if b.bad {
			what = "CHECKPOINT_REDO"
			break
		}
		f.sawLevel(r, level)
	case xlogBackupEnd:
		e := BackupEnd{Start: r.LSN, End: r.End, BackupStart: LSN(b.u64())}
		if b.bad {
			what = "BACKUP_END"
			break
		}
		f.BackupEnds = append(f.BackupEnds, e)
	case xlogParameterChange:
		p := Parameters{Start: r.LSN, End: r.End,
			MaxConnections: int32(b.u32()), MaxWorkerProcesses: int32(b.u32()), MaxWALSenders: int32(b.u32()),
			MaxPreparedXacts: int32(b.u32()), MaxLocksPerXact: int32(b.u32()), Level: Level(b.u32()),
			WALLogHints: b.u8() != 0, TrackCommitTimestamp: b.u8() != 0}
		if b.bad {
			what = "PARAMETER_CHANGE"
			break
		}
		f.Parameters = append(f.Parameters, p)
		f.sawLevel(r, p.Level)
	case xlogRestorePoint:
		p := RestorePoint{Start: r.LSN, End: r.End, Time: Timestamp(b.u64()), Name: text(b.take(restoreName))}
		if b.bad {
			what = "RESTORE_POINT"
			break
		}
		f.RestorePoints = append(f.RestorePoints, p)
	case xlogFPWChange:
		on := b.u8() != 0
		if b.bad {
			what = "FPW_CHANGE"
			break
		}
		f.sawFPW(r, on)
	case xlogEndOfRecovery:
		e := EndOfRecovery{Start: r.LSN, End: r.End, Time: Timestamp(b.u64()), Timeline: Timeline(b.u32()), PrevTimeline: Timeline(b.u32())}
		if r.Major >= 17 {
			e.Level = Level(b.u32())
		}
		if b.bad {
			what = "END_OF_RECOVERY"
			break
		}
		f.EndsOfRecovery = append(f.EndsOfRecovery, e)
		if r.Major >= 17 {
			f.sawLevel(r, e.Level)
		}
	case xlogOverwrite:
		o := Overwrite{Start: r.LSN, End: r.End, Overwritten: LSN(b.u64()), Time: Timestamp(b.u64())}
		if b.bad {
			what = "OVERWRITE_CONTRECORD"
			break
		}
		f.Overwrites = append(f.Overwrites, o)
	}
	if what != "" {
		return r.malformed(what)
	}
	return nil
}

func (f *Facts) addStorage(r *Record) error {
	b := body{p: r.Main}
	switch r.Op() {
	case smgrCreate:
		c := FileCreate{LSN: r.LSN, XID: r.XID, Rel: b.relFile()}
		fork := b.u32()
		if b.bad || fork > ForkInit {
			return r.malformed("storage CREATE")
		}
		c.Fork = uint8(fork)
		f.Creates = append(f.Creates, c)
	case smgrTruncate:
		t := FileTruncate{LSN: r.LSN, XID: r.XID, Blocks: b.u32(), Rel: b.relFile(), Flags: b.u32()}
		if b.bad {
			return r.malformed("storage TRUNCATE")
		}
		f.Truncates = append(f.Truncates, t)
	}
	return nil
}

func (f *Facts) addDatabase(r *Record) error {
	// PostgreSQL 15 gave the operations new numbers when it learned to create a
	// database through the log.
	const (
		create14 = 0x00
		drop14   = 0x10

		createCopy = 0x00
		createLog  = 0x10
		drop       = 0x20
	)
	kind := DBKind(0)
	switch op := r.Op(); {
	case r.Major < 15 && op == create14, r.Major >= 15 && op == createCopy:
		kind = DBCopied
	case r.Major >= 15 && op == createLog:
		kind = DBLogged
	case r.Major < 15 && op == drop14, r.Major >= 15 && op == drop:
		kind = DBDropped
	default:
		return nil
	}
	b := body{p: r.Main}
	d := DBChange{LSN: r.LSN, XID: r.XID, Kind: kind, DB: b.u32()}
	switch kind {
	case DBCopied:
		d.Spc = []uint32{b.u32()}
		d.SrcDB, d.SrcSpc = b.u32(), b.u32()
	case DBLogged:
		d.Spc = []uint32{b.u32()}
	case DBDropped:
		d.Spc = b.u32s(b.count(4))
	}
	if b.bad {
		return r.malformed("database")
	}
	f.DBChanges = append(f.DBChanges, d)
	return nil
}

func (f *Facts) addTablespace(r *Record) error {
	b := body{p: r.Main}
	t := Tablespace{LSN: r.LSN, XID: r.XID, OID: b.u32()}
	switch r.Op() {
	case spcCreate:
		t.Path = text(b.p)
	case spcDrop:
		t.Dropped = true
	default:
		return nil
	}
	if b.bad {
		return r.malformed("tablespace")
	}
	f.Tablespaces = append(f.Tablespaces, t)
	return nil
}
