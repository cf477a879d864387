package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// wholeMax is the largest file that is read into memory as a whole. Larger ones are mapped.
const wholeMax = 32 << 20

// A source is a file in memory: read into a buffer where it is small enough, so that nobody can
// change it under the hands of the reader, and mapped where it is large.
type source struct {
	data   []byte
	mapped bool
}

// readSource reads the file, which must be a regular one of exactly size bytes (any up to max
// where size is negative), into the kit's buffer, or maps it.
func readSource(path string, size, max int64, k *kit) (*source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch n := info.Size(); {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrSource, path)
	case size >= 0 && n != size:
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d", ErrSource, path, n, size)
	case size < 0 && n > max:
		return nil, fmt.Errorf("%w: %s has %d bytes, the most is %d", ErrSource, path, n, max)
	default:
		size = n
	}
	if size > wholeMax {
		data, err := mapFile(f, int(size))
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", path, err)
		}
		return &source{data: data, mapped: true}, nil
	}
	data := room(&k.whole, int(size))
	if _, err := io.ReadFull(f, data); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s shrank while it was read", ErrSource, path)
		}
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &source{data: data}, nil
}

// close ends the mapping. The data must not be used afterwards.
func (s *source) close() error {
	if s == nil || !s.mapped {
		return nil
	}
	data := s.data
	s.data = nil
	return unmapFile(data)
}

// part returns n bytes from off on; those of a mapped file as a copy in *buf.
func (s *source) part(off int64, n int, buf *[]byte) ([]byte, error) {
	part := s.data[off : off+int64(n)]
	if !s.mapped {
		return part, nil
	}
	out := room(buf, n)
	return out, guard(func() error { copy(out, part); return nil })
}

// guarded runs f, which looks at the data. Reading a mapped page that the file system can't supply
// (the file was cut off, the disk fails) becomes an error.
func (s *source) guarded(f func(data []byte) error) error {
	if !s.mapped {
		return f(s.data)
	}
	return guard(func() error { return f(s.data) })
}

func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("read a mapped file: the page at %#x is not there: the file was cut off or the disk fails", fault.Addr())
		}
	}()
	return f()
}

// mapFile maps the file so that what is changed in memory changes nothing in the file.
func mapFile(f *os.File, n int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
}

func unmapFile(data []byte) error { return unix.Munmap(data) }
