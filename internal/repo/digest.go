package repo

import (
	"encoding/hex"
	"fmt"

	"github.com/zeebo/xxh3"
)

// Digest is the XXH3 128-bit hash (seed 0) of an object's content, high half first in big-endian order. It stands in
// names, so that two writers with different content never meet under one key. It tells contents apart that differ by
// accident, not ones that somebody made to collide: who can write an unencrypted repository can forge it anyway.
type Digest [16]byte

// DigestOf hashes data.
func DigestOf(data []byte) Digest { return Digest(xxh3.Hash128(data).Bytes()) }

// String gives 32 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText makes JSON hold digests as String prints them.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// ParseDigest is the inverse of String.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) || hex.EncodedLen(len(d)) != len(s) {
		return d, fmt.Errorf("digest %q: want 32 hexadecimal digits", s)
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return d, fmt.Errorf("digest %q: want 32 hexadecimal digits in lower case", s)
		}
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err
}

// Hasher computes a Digest piecewise. It is not safe for concurrent use.
type Hasher struct{ h *xxh3.Hasher128 }

// NewHasher starts an empty one.
func NewHasher() Hasher { return Hasher{xxh3.New128()} }

// Write never fails.
func (h Hasher) Write(p []byte) (int, error) { return h.h.Write(p) }

// Digest returns the digest of what has been written so far.
func (h Hasher) Digest() Digest {
	return Digest(h.h.Sum128().Bytes())
}

// Check is the XXH3 128-bit hash (seed 0) of the raw content of a frame, high half first in
// big-endian order. It is fast enough to be taken of every byte of a database and guards against
// accidents; whoever can write the repository can forge it (encryption is the guard against that).
type Check [16]byte

// CheckOf hashes data.
func CheckOf(data []byte) Check { return Check(xxh3.Hash128(data).Bytes()) }
