package postgres_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// A password that changes is read at each connection, whichever program connects.
func TestPasswordsAreReadAtEachConnection(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	role := env.Slot + "_rotating"
	mustExec(t, env, "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD 'first'")
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role)
		assert.NoError(t, err)
	})
	file := filepath.Join(t.TempDir(), "it's a password")
	write := func(password string) {
		require.NoError(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	}
	write("first")
	address, err := url.Parse(testenv.AsUser(t, env.PostgresURL, role, "wrong"))
	require.NoError(t, err)
	host, port := address.Hostname(), address.Port()
	configs := map[string]postgres.Config{
		"file":        {URL: address.String(), PasswordFile: file},
		"command":     {URL: address.String(), PasswordCommand: `cat "` + file + `"`},
		"key=value":   {URL: "host=" + host + " port=" + port + " user=" + role + " dbname=" + env.Slot + " sslmode=disable", PasswordFile: file},
		"URL without": {URL: "postgres://" + role + "@" + address.Host + "/" + env.Slot, PasswordCommand: `cat "` + file + `" # 100%`},
	}
	pool, err := postgres.NewPool(t.Context(), configs["file"], "test")
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, pool.Ping(t.Context()))
	mustExec(t, env, "ALTER ROLE "+role+" PASSWORD 'second'")
	_, err = postgres.Connect(t.Context(), configs["file"], postgres.Options{})
	require.Error(t, err)
	assert.Equal(t, failure.Transient, failure.Of(err))
	assert.ErrorContains(t, err, "the password is read again at the next connection")
	write("second")
	pool.Reset()
	require.NoError(t, pool.Ping(t.Context()))
	for name, cfg := range configs {
		for way, connect := range sessions {
			_, err := connect(t.Context(), cfg)
			require.NoErrorf(t, err, "%s, %s", name, way)
			_, err = connect(t.Context(), postgres.Config{URL: cfg.Address()})
			require.NoErrorf(t, err, "%s, %s, in the address", name, way)
		}
	}
}

func TestPasswordsDoNotShowInErrors(t *testing.T) {
	t.Parallel()
	for says, cfg := range map[string]postgres.Config{
		"exit status 127":   {PasswordCommand: "hunter2"},
		"exit status 3":     {PasswordCommand: "echo hunter2; exit 3"},
		"password is empty": {PasswordCommand: "true"},
		"one line":          {PasswordCommand: "echo hunter2; echo hunter2"},
		"no such file":      {PasswordFile: "/no/such/file"},
		"has at most":       {PasswordCommand: "head -c 100000 /dev/zero | tr '\\0' 'x'"},
	} {
		cfg.URL = "postgres://app@127.0.0.1:1/app"
		_, err := postgres.Connect(t.Context(), cfg, postgres.Options{})
		require.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, "DATABASE_PASSWORD_")
		assert.NotContains(t, err.Error(), "hunter2")
	}
	both := postgres.Config{URL: "postgres://app@db/app", PasswordFile: "a", PasswordCommand: "b"}
	assert.ErrorContains(t, both.Validate(), "unset one")
	assert.NotContains(t, postgres.RedactURL(postgres.Config{URL: "host=db", PasswordCommand: "hunter2 x"}.Address()), "hunter2")
	assert.NotContains(t, postgres.RedactURL(postgres.Config{URL: "postgres://db/app", PasswordCommand: "hunter2 x"}.Address()), "hunter2")
}
