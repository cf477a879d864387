//go:build !linux

package basebackup

// readAhead would tell the kernel that the file will be read from end to end.
func readAhead(dataFile) {}
