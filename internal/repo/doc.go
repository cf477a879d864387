// Package repo owns what every part of the repository has in common: where the objects of one
// server lineage lie in a bucket, the document that says which format they are in, the digests and
// the compression that they use, and the small self-checking documents beside them.
//
// It does not know what stands inside a WAL object (package archive), a manifest or a pack
// (package basebackup), and it does not decide what may be deleted. The bytes of every format are
// described in docs/format.md, which is normative.
//
// All access to a lineage goes through [Repo], so that sealing objects to recipients can be added
// in one place.
package repo
