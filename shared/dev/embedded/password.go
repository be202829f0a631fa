package embedded

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Each data folder has a random password, which its engine asks for. It is kept
// beside the folder, readable by its owner alone.
func passwordFile(dataDir string) string { return dataDir + ".password" }

// Password returns the password of the engine on dataDir, "" if it has none yet.
func Password(dataDir string) (string, error) {
	password, err := os.ReadFile(passwordFile(dataDir))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(password), err
}

// ensurePassword returns the password of dataDir, and made if it is new. The
// caller holds the lock of dataDir.
func ensurePassword(dataDir string) (password string, made bool, err error) {
	password, err = Password(dataDir)
	if err != nil || password != "" {
		return password, false, err
	}
	password = rand.Text()
	if err := writePrivate(passwordFile(dataDir), password, nil); err != nil {
		return "", false, fmt.Errorf("store the password of %s: %w", dataDir, err)
	}
	return password, true, nil
}

// writePrivate writes a file that only its owner can read: user, or ourselves if
// that is nil. The file is complete or absent.
func writePrivate(path, content string, user *osUser) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(content)
	if err := errors.Join(err, file.Close(), user.chown(file.Name())); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
