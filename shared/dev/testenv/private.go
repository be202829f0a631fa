package testenv

import (
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
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
// killed, frozen and started again, on a free port. It is not migrated. opts may be
// zero. The engine and its data go when t ends.
func StartClickHouse(t testing.TB, opts embedded.ClickHouseOptions) *embedded.ClickHouse {
	t.Helper()
	opts.DataDir, opts.Log = embedded.ClickHouseDir(privateDir(t)), t.Logf
	engine, err := embedded.StartClickHouse(t.Context(), opts)
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
