// Package archive owns the WAL of one cluster in a repository: storing what the server archives,
// giving it back, knowing what is there and what is missing, reading the indexes, proving the
// contents, and removing what no backup needs any more.
//
// It does not decode WAL (internal/wal does), does not decide which WAL a recovery needs (package
// recovery) or which backups are kept (package basebackup), and knows nothing of sockets and of
// working ahead of the server (internal/agent).
//
// The names of objects carry a digest of what they hold, and no object is ever changed. Whether a
// segment is archived, and with which content, is therefore always the answer of one listing:
//
//   - one content under the segment's name: that is the segment;
//   - several contents, and a record of which one holds: that one is;
//   - several contents and no record: a conflict. Nothing is served until `pitr wal resolve`
//     records the choice.
//
// Stores that cannot create a key only where there is none need nothing more: two writers meet
// under one key only with the same content. Stores whose listings lag (see
// storage.Capabilities.StrongList) are asked again after Options.ListLag before absence is
// believed, and a new object is read back by its own key before the push is acknowledged.
package archive
