//go:build cgo

package basebackup

/*
#cgo CFLAGS: -O3
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 32 };

// The body is compiled once for each set of vector instructions; being inlined, it is vectorised by those of its caller.
// Words are little-endian, as are the machines that this is compiled for.
static inline __attribute__((always_inline)) uint32_t page_sum(const uint8_t *page, size_t size, const uint32_t *start)
{
	uint32_t lane[LANES], row[LANES];

	memcpy(lane, start, sizeof lane);
	memcpy(row, page, sizeof row);
	row[2] &= 0xffff0000u; // the checksum itself
	for (size_t at = 0;;) {
		for (int i = 0; i < LANES; i++) {
			uint32_t v = lane[i] ^ row[i];
			lane[i] = v * 16777619u ^ v >> 17;
		}
		at += sizeof row;
		if (at >= size)
			break;
		memcpy(row, page + at, sizeof row);
	}
	uint32_t sum = 0;
	for (int i = 0; i < LANES; i++) {
		uint32_t v = lane[i];
		v = v * 16777619u ^ v >> 17;
		v = v * 16777619u ^ v >> 17;
		sum ^= v;
	}
	return sum;
}

// Fills suspect with the indexes of the pages whose checksum is wrong and returns how many those are. Pages without an
// upper bound, which may be new ones, count as suspect.
static inline __attribute__((always_inline)) size_t scan(const uint8_t *buf, size_t pages, size_t size, uint32_t first,
	const uint32_t *start, uint32_t *suspect)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++) {
		const uint8_t *page = buf + i * size;
		uint16_t stored, upper;

		memcpy(&stored, page + 8, sizeof stored);
		memcpy(&upper, page + 14, sizeof upper);
		if (upper == 0 || (page_sum(page, size, start) ^ (first + (uint32_t) i)) % 65535 + 1 != stored)
			suspect[n++] = (uint32_t) i;
	}
	return n;
}

#if defined(__x86_64__)
static __attribute__((target("avx2"))) size_t scan_avx2(const uint8_t *buf, size_t pages, size_t size, uint32_t first,
	const uint32_t *start, uint32_t *suspect)
{
	return scan(buf, pages, size, first, start, suspect);
}

static __attribute__((target("sse4.1"))) size_t scan_sse41(const uint8_t *buf, size_t pages, size_t size, uint32_t first,
	const uint32_t *start, uint32_t *suspect)
{
	return scan(buf, pages, size, first, start, suspect);
}
#endif

static size_t scan_pages(const uint8_t *buf, size_t pages, size_t size, uint32_t first, const uint32_t *start, uint32_t *suspect)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx2"))
		return scan_avx2(buf, pages, size, first, start, suspect);
	if (__builtin_cpu_supports("sse4.1"))
		return scan_sse41(buf, pages, size, first, start, suspect);
#endif
	return scan(buf, pages, size, first, start, suspect);
}
*/
import "C"

import "unsafe"

// badPages returns the indexes of the pages in buf, whole ones of size bytes, that the server would not accept as the
// blocks from first on.
func badPages(buf []byte, size int, first uint32) (bad []int) {
	const batch = 128
	var suspect [batch]uint32
	for at := 0; ; at += batch {
		pages := min(len(buf)/size-at, batch)
		if pages <= 0 {
			return bad
		}
		part := buf[at*size:]
		n := C.scan_pages((*C.uint8_t)(unsafe.Pointer(&part[0])), C.size_t(pages), C.size_t(size), C.uint32_t(first+uint32(at)),
			(*C.uint32_t)(unsafe.Pointer(&pageLaneStart[0])), (*C.uint32_t)(unsafe.Pointer(&suspect[0])))
		for _, i := range suspect[:n] {
			// The last word is Go's, also about pages that nobody has written to yet.
			if page := part[int(i)*size : (int(i)+1)*size]; !pageGood(page, first+uint32(at)+i) {
				bad = append(bad, at+int(i))
			}
		}
	}
}
