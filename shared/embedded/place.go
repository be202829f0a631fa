package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the unprivileged user that PostgreSQL runs as when we are root.
type account struct{ uid, gid uint32 }

// unprivileged returns nil when we are not root: PostgreSQL then runs as we do.
func unprivileged() *account {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if errU == nil && errG == nil && uid != 0 {
			return &account{uint32(uid), uint32(gid)}
		}
	}
	return &account{65534, 65534}
}

func (a *account) sysProcAttr() *syscall.SysProcAttr {
	if a == nil {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid}}
}

func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// canReach reports whether the account may pass through every parent of dir.
func (a *account) canReach(dir string) bool {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return false
		}
		mode, owner := info.Mode(), info.Sys().(*syscall.Stat_t)
		switch {
		case owner.Uid == a.uid && mode&0o100 == 0,
			owner.Uid != a.uid && mode&0o001 == 0:
			return false
		}
		if parent == filepath.Dir(parent) {
			return true
		}
	}
}

// place makes sure that dir exists where the PostgreSQL user can reach it, and
// returns its real path. Under a folder closed to that user, the directory lives
// in standIn(dir) and dir becomes a link to it, so that it is found again, and
// removed, by its old name.
func place(ctx context.Context, dir string, who *account) (string, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil { // nothing there yet, or a link to nothing
		if real, err = filepath.EvalSymlinks(filepath.Dir(dir)); err != nil {
			return "", err
		}
		real = filepath.Join(real, filepath.Base(dir))
	}
	if who == nil || who.canReach(real) {
		return real, makeDir(dir, real)
	}
	return moveToStandIn(ctx, dir, real)
}

// makeDir creates dir unless it exists; a link left without its target goes.
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

// standIn is where dir lives when it cannot be reached by its own name. A
// directory of that name by another user than root is not trusted.
func standIn(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join("/var/tmp", "diehard-"+hex.EncodeToString(sum[:6]))
}

func moveToStandIn(ctx context.Context, dir, real string) (string, error) {
	shelter := standIn(dir)
	if err := os.Mkdir(shelter, 0o755); err != nil && !os.IsExist(err) {
		return "", err
	}
	info, err := os.Lstat(shelter)
	if err != nil {
		return "", err
	}
	if !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != 0 {
		return "", fmt.Errorf("%s belongs to somebody else: remove it", shelter)
	}
	if err := os.Chmod(shelter, 0o755); err != nil { // a umask may have closed it
		return "", err
	}
	inside := filepath.Join(shelter, filepath.Base(dir))
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		if err := discard(ctx, inside); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat(real); err == nil {
		// mv also moves between file systems. It is not interrupted halfway.
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

// discard deletes what a link led to that somebody removed: with .dev deleted,
// nobody expects its data to come back.
func discard(ctx context.Context, inside string) error {
	if left := readPostmaster(inside); left.alive() {
		if err := left.kill(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(inside)
}

// Remove deletes a directory that place made, with its stand-in.
func Remove(dir string) error {
	if real, err := filepath.EvalSymlinks(dir); err == nil && filepath.Dir(real) == standIn(dir) {
		if err := os.RemoveAll(standIn(dir)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
