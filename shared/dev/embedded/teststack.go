package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The engines that all test programs of a checkout share live in TestDir. Their
// data does not survive a stop: every start is empty, so that they can run without
// fsync and no test inherits data.

// TestDir is where the engines for tests are kept.
func TestDir() (string, error) {
	dev, err := DevDir()
	return filepath.Join(dev, "test"), err
}

// testLock serialises start and stop of the engines for tests.
func testLock(dir string) string { return filepath.Join(dir, "start.lock") }

// usersLock is held, shared, by every program that uses the engines for tests.
func usersLock(dir string) string { return filepath.Join(dir, "users.lock") }

// UseTestStack makes sure that the shared engines for tests run, by the
// devstack program: as its children they do not depend on the test program.
// They stay until StopTestStack; held, they are not stopped or replaced.
func UseTestStack(ctx context.Context, start func(context.Context) error) (*Postgres, *ClickHouse, *FileLock, error) {
	dir, err := TestDir()
	if err != nil {
		return nil, nil, nil, err
	}
	lock, err := Lock(ctx, testLock(dir), nil)
	if err != nil {
		return nil, nil, nil, err
	}
	defer lock.Unlock()
	if err := start(ctx); err != nil {
		return nil, nil, nil, err
	}
	postgres, clickhouse := FindPostgres(PostgresDir(dir, PostgresVersion())), FindClickHouse(ClickHouseDir(dir))
	if postgres == nil || clickhouse == nil {
		return nil, nil, nil, fmt.Errorf("the engines for tests ended at once: see the logs in %s", dir)
	}
	held, err := TryLock(usersLock(dir), false)
	if err == nil && held == nil {
		err = fmt.Errorf("%s is locked", usersLock(dir))
	}
	return postgres, clickhouse, held, err
}

// StartTestStack starts the engines for tests, empty, unless they run. Engines
// of an older build or with other options are replaced if they are not in use.
func StartTestStack(ctx context.Context, log LogFunc) (*Stack, error) {
	dir, err := TestDir()
	if err != nil {
		return nil, err
	}
	making, err := Lock(ctx, filepath.Join(dir, "making.lock"), nil)
	if err != nil {
		return nil, err
	}
	defer making.Unlock()
	unused, err := TryLock(usersLock(dir), true)
	if err != nil {
		return nil, err
	}
	if unused != nil {
		defer unused.Unlock()
	}
	postgresDir, clickhouseDir := PostgresDir(dir, PostgresVersion()), ClickHouseDir(dir)
	if FindPostgres(postgresDir) == nil {
		if err := Remove(postgresDir); err != nil {
			return nil, err
		}
	}
	if FindClickHouse(clickhouseDir) == nil {
		if err := Remove(clickhouseDir); err != nil {
			return nil, err
		}
	}
	return StartStack(ctx, StackOptions{
		Postgres: &PostgresOptions{
			DataDir: postgresDir, Settings: TestSettings(), Adopt: unused == nil, Log: log,
		},
		ClickHouse: &ClickHouseOptions{DataDir: clickhouseDir, Adopt: unused == nil, Log: log},
	})
}

// TestSettings make PostgreSQL fast rather than durable, with room for many
// tests at once. A killed process loses nothing by them; a killed machine would.
func TestSettings() map[string]string {
	return map[string]string{
		"fsync": "off", "full_page_writes": "off",
		"max_connections": "500", "max_wal_senders": "200", "max_replication_slots": "200",
		"max_slot_wal_keep_size": "-1", "max_wal_size": "4GB",
	}
}

// StopTestStack stops the engines for tests, and private ones whose test program
// died. It returns what it stopped, and used if others use the shared ones, which
// are left alone then.
func StopTestStack(ctx context.Context) (stopped []Engine, used bool, err error) {
	dir, err := TestDir()
	if err != nil {
		return nil, false, err
	}
	lock, err := Lock(ctx, testLock(dir), nil)
	if err != nil {
		return nil, false, err
	}
	defer lock.Unlock()
	if err := SweepPrivate(); err != nil {
		return nil, false, err
	}
	unused, err := TryLock(usersLock(dir), true)
	if err != nil || unused == nil {
		return nil, err == nil, err
	}
	defer unused.Unlock()
	stopped, err = StopEngines(ctx, dir)
	return stopped, false, err
}

// PrivateDir makes a directory for engines that one test owns. SweepPrivate
// clears up after test programs that were killed.
func PrivateDir() (string, error) {
	dir, err := TestDir()
	if err != nil {
		return "", err
	}
	private := filepath.Join(dir, "private")
	if err := os.MkdirAll(private, 0o755); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(private, strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", err
	}
	return made, os.Chmod(made, 0o755) // the PostgreSQL user must pass through
}

// SweepPrivate kills the private engines of test programs that are gone, and
// removes their directories.
func SweepPrivate() error {
	dir, err := TestDir()
	if err != nil {
		return err
	}
	owned, _ := filepath.Glob(filepath.Join(dir, "private", "*-*"))
	for _, home := range owned {
		owner, _, _ := strings.Cut(filepath.Base(home), "-")
		if pid, err := strconv.Atoi(owner); err == nil && pidAlive(pid) {
			continue
		}
		if err := RemovePrivate(home); err != nil {
			return err
		}
	}
	return nil
}

// RemovePrivate kills the engines in a directory of PrivateDir and removes it.
func RemovePrivate(home string) error {
	for _, engine := range FindEngines(home) {
		if err := engine.Kill(); err != nil {
			return err
		}
	}
	for _, version := range PostgresVersions {
		if err := Remove(PostgresDir(home, version)); err != nil {
			return err
		}
	}
	return os.RemoveAll(home)
}
