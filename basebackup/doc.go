// Package basebackup owns base backups in a repository: the manifest that says what a backup is made of, the packs that
// hold its data, the taking of a full backup from a running server, the re-reading of one, and which may go.
//
// The manifest is written last and by itself makes the backup exist. It is complete: whoever has it needs no other
// backup's manifest, only packs. The bytes of both are described in docs/format.md.
//
// The package does not restore (package recovery), does not touch WAL (package archive), and takes no incremental
// backups yet, though the format has room for them: an extent may point into another backup's packs.
package basebackup
