//go:build !cgo

package basebackup

// badPages returns the indexes of the pages in buf, whole ones of size bytes, that the server would not accept as the
// blocks from first on.
func badPages(buf []byte, size int, first uint32) (bad []int) {
	for i := 0; (i+1)*size <= len(buf); i++ {
		if !pageGood(buf[i*size:(i+1)*size], first+uint32(i)) {
			bad = append(bad, i)
		}
	}
	return bad
}
