package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// osUser is the unprivileged user that runs PostgreSQL when we are root.
type osUser struct{ uid, gid uint32 }

// unprivileged returns nil when we are not root: PostgreSQL then runs as we do.
func unprivileged() *osUser {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(found.Uid, 10, 32)
		gid, errG := strconv.ParseUint(found.Gid, 10, 32)
		if errU == nil && errG == nil && uid != 0 {
			return &osUser{uint32(uid), uint32(gid)}
		}
	}
	return &osUser{65534, 65534}
}

func (u *osUser) sysProcAttr() *syscall.SysProcAttr {
	if u == nil {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid}}
}

func (u *osUser) chown(path string) error {
	if u == nil {
		return nil
	}
	return os.Chown(path, int(u.uid), int(u.gid))
}

// canReach reports whether the user may enter every parent folder of dir.
func (u *osUser) canReach(dir string) bool {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return false
		}
		mode, owner := info.Mode(), info.Sys().(*syscall.Stat_t)
		switch {
		case owner.Uid == u.uid && mode&0o100 == 0,
			owner.Uid != u.uid && mode&0o001 == 0:
			return false
		}
		if parent == filepath.Dir(parent) {
			return true
		}
	}
}

// relocate creates dir where the PostgreSQL user can reach it, and returns its real
// path. In a folder closed to that user, it creates fallbackDir(dir) and makes dir
// a link to it, so that dir is found and removed by its own name.
func relocate(ctx context.Context, dir string, user *osUser) (string, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil { // missing, or a link whose target is missing
		if real, err = filepath.EvalSymlinks(filepath.Dir(dir)); err != nil {
			return "", err
		}
		real = filepath.Join(real, filepath.Base(dir))
	}
	if user == nil || user.canReach(real) {
		return real, makeDir(dir, real)
	}
	return moveToFallback(ctx, dir, real)
}

// makeDir creates dir unless it exists, and replaces a link whose target is missing.
func makeDir(dir, real string) error {
	if _, err := os.Stat(real); err == nil {
		return nil
	}
	if info, err := os.Lstat(dir); err == nil && info.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return os.MkdirAll(real, 0o755)
}

// fallbackDir is the folder that dir is moved into when the PostgreSQL user cannot
// reach it. A folder of that name that does not belong to root is not trusted.
func fallbackDir(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join("/var/tmp", "diehard-"+hex.EncodeToString(sum[:6]))
}

func moveToFallback(ctx context.Context, dir, real string) (string, error) {
	fallback := fallbackDir(dir)
	if err := os.Mkdir(fallback, 0o755); err != nil && !os.IsExist(err) {
		return "", err
	}
	info, err := os.Lstat(fallback)
	if err != nil {
		return "", err
	}
	if !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != 0 {
		return "", fmt.Errorf("%s belongs to another user: remove it", fallback)
	}
	if err := os.Chmod(fallback, 0o755); err != nil { // a umask may have closed it
		return "", err
	}
	inside := filepath.Join(fallback, filepath.Base(dir))
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		if err := removeOrphan(ctx, inside); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat(real); err == nil {
		// mv also moves between file systems. It must not be interrupted.
		if out, err := exec.Command("mv", real, inside).CombinedOutput(); err != nil { //nolint:noctx // see above
			return "", fmt.Errorf("move %s to %s: %w: %s", real, inside, err, out)
		}
	}
	if err := os.MkdirAll(inside, 0o755); err != nil {
		return "", err
	}
	_ = os.Remove(dir) // an old link
	return inside, os.Symlink(inside, dir)
}

// removeOrphan deletes the target of a link that no longer exists: data must not
// come back after .dev was deleted.
func removeOrphan(ctx context.Context, inside string) error {
	if left := readPostmaster(inside); left.alive() {
		if err := left.kill(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(inside)
}

// Remove deletes a directory made by relocate, the fallback that it links to, and
// the password of the data in it.
func Remove(dir string) error {
	if real, err := filepath.EvalSymlinks(dir); err == nil && filepath.Dir(real) == fallbackDir(dir) {
		if err := os.RemoveAll(fallbackDir(dir)); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(passwordFile(dir)))
}
