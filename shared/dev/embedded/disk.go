package embedded

import (
	"fmt"
	"syscall"
)

const (
	megabyte = 1 << 20
	// dataBytes must be free for an engine's data: below it, an engine would
	// soon stop in the middle of something.
	dataBytes = 256 * megabyte
)

// checkDisk returns an error if less than need bytes are free at dir.
func checkDisk(dir string, need uint64, what string) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("too little disk space for %s: %d MB are free at %s, %d MB are needed; free some, "+
			"or set DIEHARD_DEV_DIR to a directory on another disk", what, free/megabyte, dir, need/megabyte)
	}
	return nil
}
