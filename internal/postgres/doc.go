// Package postgres is what pitr asks of one PostgreSQL server, version 13 to 18, and of that server's data directory:
// a session with it, the start and stop of its process, the files by which it says who it is, and the text of its
// configuration.
//
// It is the only package that speaks the protocol and that starts `postgres`. It does not know what a backup or an
// archive is, reads no WAL, and decides nothing: callers say when to start, stop or change a server.
//
// Servers never run as root. Where pitr itself is root, everything that is started here runs as the data directory's
// owner (Account).
package postgres
