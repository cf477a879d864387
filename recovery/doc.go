// Package recovery owns the way back: it finds the record at which a recovery has to stop and the base backup it has to
// start from, proves that everything in between is there, puts the files in place, and writes the settings with which
// PostgreSQL replays up to that record and no other.
//
// MakePlan is pure: it looks at the world through a View only, so that each of its decisions can be shown (`--plan`) and
// tested without a server. Restore acts on a plan and decides nothing. Between the two the same proof always stands.
//
// Every target is resolved here, by PostgreSQL's own rule (recoveryStopsBefore and recoveryStopsAfter in
// src/backend/access/transam/xlogrecovery.c, the same from 13 to 18), to one record, and is handed to the server as that
// record's position. So what the plan says and what the server does can't differ, and a server that ends short of it
// stops with an error by itself.
//
// The package does not decode WAL (package wal), does not know how WAL or backups are stored (packages archive and
// basebackup), and does not fetch WAL for the server; it leaves a marker behind that tells whoever does which segments
// are promised (ReadMarker).
package recovery
