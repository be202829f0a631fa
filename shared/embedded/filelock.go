package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// FileLock is an advisory lock between processes. The kernel releases it when
// its process ends, however it ends.
type FileLock struct{ file *os.File }

// Lock waits for the exclusive lock on path, creating the file if need be.
// waiting, if not nil, is called once when somebody else holds it.
func Lock(ctx context.Context, path string, waiting func()) (*FileLock, error) {
	for {
		lock, err := TryLock(path, true)
		if lock != nil || err != nil {
			return lock, err
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TryLock takes the lock on path, exclusive or shared, or returns nil, nil when
// that is not possible now.
func TryLock(path string, exclusive bool) (*FileLock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	err = syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
	if err == nil {
		return &FileLock{file}, nil
	}
	_ = file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// Write replaces the content of the lock file, for those who wonder who holds it.
func (l *FileLock) Write(content []byte) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt(content, 0)
	return err
}

// Unlock releases the lock. The file stays: removing it would let two
// processes lock two different files of the same name.
func (l *FileLock) Unlock() { _ = l.file.Close() }
