package testenv

import (
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/embedded"
)

// StartPostgres starts a PostgreSQL that belongs to t alone, which may be killed
// and started again, on a free port. It is not migrated. opts may be zero; the
// settings of tests are the default. The engine and its data go when t ends.
func StartPostgres(t testing.TB, opts embedded.PostgresOptions) *embedded.Postgres {
	t.Helper()
	if opts.Version == "" {
		opts.Version = embedded.PostgresVersion()
	}
	if opts.Settings == nil {
		opts.Settings = embedded.TestSettings()
	}
	opts.DataDir = embedded.PostgresDir(privateDir(t), opts.Version)
	opts.Log = t.Logf
	engine, err := embedded.StartPostgres(t.Context(), opts)
	require.NoError(t, err)
	return engine
}

// StartClickHouse starts a ClickHouse that belongs to t alone, which may be
// killed, frozen and started again, on a free port. It is not migrated. The
// engine and its data go when t ends.
func StartClickHouse(t testing.TB) *embedded.ClickHouse {
	t.Helper()
	engine, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{
		DataDir: embedded.ClickHouseDir(privateDir(t)), Log: t.Logf,
	})
	require.NoError(t, err)
	return engine
}

// privateDir kills the engines in it and is removed when t ends.
func privateDir(t testing.TB) string {
	t.Helper()
	dir, err := embedded.PrivateDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, embedded.RemovePrivate(dir)) })
	return dir
}
