// Package wal owns the bytes of PostgreSQL's write-ahead log, of timeline
// history files and of pg_control, for PostgreSQL 13 to 18, and the index that
// pitr keeps of each WAL segment.
//
// It is pure: it opens no file, reads no clock and sends nothing. Callers hand
// it bytes and get facts. It does not know where segments are stored, how they
// are compressed, which backup a recovery starts from, or what a database is
// called: relations are file numbers here, as they are in the WAL.
//
// All layouts are those of little-endian machines with 8-byte alignment, the
// only ones that PostgreSQL's packages are built for in practice; WAL of another
// kind is refused by its magic number. Every parser accepts arbitrary bytes: it
// answers with an error, never with a panic or an endless loop, and allocates no
// more than a small multiple of what it was given.
//
// Sources, in PostgreSQL's tree: src/include/access/xlogdefs.h,
// xlog_internal.h, xlogrecord.h, xact.h, src/include/catalog/pg_control.h,
// src/backend/access/transam/xlogreader.c, timeline.c, and
// src/backend/postmaster/walsummarizer.c.
package wal
