package embedded

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
)

// Host is the address that the engines listen on, if nothing else is asked for.
const Host = "127.0.0.1"

// LogFunc receives progress for people, such as "fetching PostgreSQL 18".
// A nil LogFunc stays silent.
type LogFunc func(format string, args ...any)

func (f LogFunc) printf(format string, args ...any) {
	if f != nil {
		f(format, args...)
	}
}

// Root returns the checkout that the working directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module diehard\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside a checkout of Die Hard: change into it first")
		}
		dir = parent
	}
}

// DevDir returns the absolute path of the directory for all local state:
// DIEHARD_DEV_DIR, or .dev of the checkout. It creates it, closed to other users.
func DevDir() (string, error) {
	dir := os.Getenv("DIEHARD_DEV_DIR")
	if dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		return dir, os.MkdirAll(dir, 0o700) //nolint:gosec // the variable is the user's own; an existing one is the user's to open or close
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(root, ".dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, closeDir(dir)
}

// closeDir takes the rights of other users on dir away.
func closeDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// EnginesDir returns the absolute path of the directory for fetched engines:
// DIEHARD_ENGINES_DIR, or engines in DevDir. It need not exist yet.
func EnginesDir() (string, error) {
	if dir := os.Getenv("DIEHARD_ENGINES_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	dev, err := DevDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dev, "engines"), nil
}
