package basebackup

import (
	"strconv"
	"strings"
)

// What a backup leaves out follows PostgreSQL's own (src/backend/backup/basebackup.c, of 13 to 18): what the server
// throws away or writes anew when it starts. Beyond that, the signal files are left out, since whoever restores says how
// recovery goes, and what belongs to the running server alone: current_logfiles, locks of sockets.

// emptied are the directories in the data directory of which only the directory itself is taken. Links to directories in
// their place are taken as directories.
var emptied = map[string]bool{
	"pg_dynshmem":  true,
	"pg_notify":    true,
	"pg_replslot":  true,
	"pg_serial":    true,
	"pg_snapshots": true,
	"pg_stat_tmp":  true,
	"pg_subtrans":  true,
}

// walDir is treated likewise, but keeps the directories that the server expects in it.
const walDir = "pg_wal"

// walSubdirs are those; the second is PostgreSQL 17's.
var walSubdirs = []string{"archive_status", "summaries"}

// dataDirs are what a server can't be without. PostgreSQL's own backup passes over links in their place, or in them; to
// do the same would make a backup that can't be restored.
var dataDirs = map[string]bool{
	"base": true, "global": true, "pg_commit_ts": true, "pg_logical": true, "pg_multixact": true, "pg_stat": true,
	"pg_tblspc": true, "pg_twophase": true, "pg_xact": true,
}

// rootExcluded tells whether an entry of the data directory itself is left out altogether.
func rootExcluded(name string) bool {
	switch name {
	case "backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest",
		"postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles", "current_logfiles.tmp",
		"recovery.signal", "standby.signal", "lost+found":
		return true
	}
	// The marker of an unfinished or unadopted restore; sockets' locks, where sockets are made in the data directory.
	return strings.HasPrefix(name, "pitr.restore") || strings.HasPrefix(name, ".s.PGSQL.")
}

// excluded tells whether an entry is left out wherever it is: temporary files (PG_TEMP_FILE_PREFIX), the relation
// cache, which is rebuilt.
func excluded(name string) bool {
	return strings.HasPrefix(name, "pgsql_tmp") || strings.HasPrefix(name, "pg_internal.init")
}

// relFile is a name of a file that holds blocks of a relation.
type relFile struct {
	rel     string // relation file number, or "t<backend>_<number>" of a temporary one
	fork    string // "" (main), "fsm", "vm", "init"
	segment uint32
	temp    bool
}

// parseRelFile reads a name as in src/common/relpath.c: [t<backend>_]<number>[_<fork>][.<segment>].
func parseRelFile(name string) (relFile, bool) {
	var f relFile
	body, seg, has := strings.Cut(name, ".")
	if has {
		n, err := strconv.ParseUint(seg, 10, 32)
		if err != nil || n == 0 || seg[0] == '0' {
			return f, false
		}
		f.segment = uint32(n)
	}
	number, prefix := body, ""
	if rest, ok := strings.CutPrefix(body, "t"); ok {
		backend, rel, ok := strings.Cut(rest, "_")
		if !ok || !digits(backend) {
			return f, false
		}
		f.temp, number, prefix = true, rel, "t"+backend+"_"
	}
	number, f.fork, has = strings.Cut(number, "_")
	if has && f.fork != "fsm" && f.fork != "vm" && f.fork != "init" || !digits(number) {
		return f, false
	}
	f.rel = prefix + number
	return f, true
}

// isDatabaseDir tells whether relations of one database are in the directory at path.
func isDatabaseDir(path string) bool {
	c := strings.Split(path, "/")
	switch {
	case len(c) == 2 && c[0] == "base":
		return digits(c[1])
	case len(c) == 4 && c[0] == "pg_tblspc":
		return digits(c[1]) && strings.HasPrefix(c[2], "PG_") && digits(c[3])
	}
	return false
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
