package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// FileLock is an advisory lock between processes. The kernel releases it when
// its process ends, however it ends.
type FileLock struct{ lock *flock.Flock }

// lockPoll is the time between two tries to take a lock.
const lockPoll = 50 * time.Millisecond

// Lock waits for the exclusive lock on path, creating the file if need be.
// waiting, if not nil, is called once when another process holds it.
func Lock(ctx context.Context, path string, waiting func()) (*FileLock, error) {
	held, err := TryLock(path, true)
	if held != nil || err != nil {
		return held, err
	}
	if waiting != nil {
		waiting()
	}
	l := newLock(path)
	if _, err := l.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for lock %s: %w", path, err)
	}
	return &FileLock{l}, nil
}

// TryLock takes the lock on path, exclusive or shared. It returns nil, nil when
// another process holds it.
func TryLock(path string, exclusive bool) (*FileLock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l := newLock(path)
	try := l.TryRLock
	if exclusive {
		try = l.TryLock
	}
	switch held, err := try(); {
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", path, err)
	case !held:
		return nil, nil
	default:
		return &FileLock{l}, nil
	}
}

func newLock(path string) *flock.Flock { return flock.New(path, flock.SetPermissions(0o644)) }

// Write replaces the content of the lock file, which describes the holder.
func (l *FileLock) Write(content []byte) error { return os.WriteFile(l.lock.Path(), content, 0o600) }

// Unlock releases the lock. The file stays: removing it would let two
// processes lock two different files of the same name.
func (l *FileLock) Unlock() { _ = l.lock.Unlock() }
