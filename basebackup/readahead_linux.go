package basebackup

import (
	"os"

	"golang.org/x/sys/unix"
)

// readAhead tells the kernel that the file will be read from end to end: it then reads further ahead. Nothing depends on
// its doing so.
func readAhead(f dataFile) {
	if f, ok := f.(*os.File); ok {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	}
}
