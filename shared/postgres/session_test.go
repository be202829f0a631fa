package postgres_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// hostile are settings that change what statements return, or whether they finish.
var hostile = map[string]string{
	"client_encoding": "LATIN1", "search_path": "evil", "row_security": "on", "DateStyle": "SQL, DMY", "IntervalStyle": "iso_8601",
	"TimeZone": "Asia/Kathmandu", "bytea_output": "escape", "extra_float_digits": "-15", "xmlbinary": "hex",
	"standard_conforming_strings": "off", "array_nulls": "off", "transform_null_equals": "on", "quote_all_identifiers": "on",
	"exit_on_error": "on", "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
	"default_transaction_read_only": "on", "synchronous_commit": "remote_apply",
	"statement_timeout": "60s", "lock_timeout": "60s", "idle_in_transaction_session_timeout": "60s", "idle_session_timeout": "60s",
	"tcp_user_timeout": "60s", "transaction_timeout": "60s", // 17 and newer
}

// sessionText is every setting that is in hostile, and those that transactions have of them.
const sessionText = `SELECT pg_catalog.string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_catalog.pg_settings
	WHERE pg_catalog.lower(name) = ANY (pg_catalog.string_to_array('%s', ' '))`

func sessionQuery() string {
	names := []string{"transaction_read_only", "transaction_isolation", "transaction_deferrable"}
	for name := range hostile {
		names = append(names, strings.ToLower(name))
	}
	return fmt.Sprintf(sessionText, strings.Join(names, " "))
}

// sessions are the ways to connect: each returns what sessionQuery says.
var sessions = map[string]func(context.Context, postgres.Config) (string, error){
	"Connect": func(ctx context.Context, cfg postgres.Config) (text string, err error) {
		conn, err := postgres.Connect(ctx, cfg, postgres.Options{Application: "test"})
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		return text, conn.QueryRow(ctx, sessionQuery()).Scan(&text)
	},
	"ConnectReplication": func(ctx context.Context, cfg postgres.Config) (string, error) {
		pg, err := postgres.ConnectReplication(ctx, cfg, postgres.Options{Application: "test", SenderTimeout: time.Minute})
		if err != nil {
			return "", err
		}
		defer func() { _ = pg.Close(context.WithoutCancel(ctx)) }()
		results, err := pg.Exec(ctx, sessionQuery()).ReadAll()
		if err != nil {
			return "", err
		}
		return string(results[0].Rows[0][0]), nil
	},
	"NewPool": func(ctx context.Context, cfg postgres.Config) (text string, err error) {
		pool, err := postgres.NewPool(ctx, cfg, "test")
		if err != nil {
			return "", err
		}
		defer pool.Close()
		return text, pool.QueryRow(ctx, sessionQuery()).Scan(&text)
	},
	"OpenDB": func(ctx context.Context, cfg postgres.Config) (text string, err error) {
		db, err := postgres.OpenDB(cfg, "test", nil)
		if err != nil {
			return "", err
		}
		defer db.Close()
		return text, db.QueryRowContext(ctx, sessionQuery()).Scan(&text)
	},
	"NewProducerPool": func(ctx context.Context, cfg postgres.Config) (text string, err error) {
		pool, err := postgres.NewProducerPool(cfg, "test")
		if err != nil {
			return "", err
		}
		defer pool.Close()
		return text, pool.QueryRow(ctx, sessionQuery()).Scan(&text)
	},
}

func TestNoSettingOfRoleOrDatabaseReachesASession(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	role := env.Slot + "_hostile"
	mustExec(t, env, "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD 'secret'")
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role)
		assert.NoError(t, err)
	})
	cfg := postgres.Config{URL: testenv.AsUser(t, env.PostgresURL, role, "secret")}
	before := map[string]string{}
	for name, read := range sessions {
		text, err := read(t.Context(), cfg)
		require.NoError(t, err, name)
		before[name] = text
	}
	for _, target := range []string{"ROLE " + role, "DATABASE " + env.Slot, "ROLE " + role + " IN DATABASE " + env.Slot} {
		for name, value := range hostile {
			if name == "transaction_timeout" && env.Major(t) < 17 {
				continue
			}
			mustExec(t, env, fmt.Sprintf("ALTER %s SET %s = '%s'", target, name, value))
		}
		for name, read := range sessions {
			text, err := read(t.Context(), cfg)
			require.NoError(t, err, "%s, %s", target, name)
			if name == "NewProducerPool" { // on purpose
				text = strings.NewReplacer("read_only=on", "read_only=off", "synchronous_commit=remote_apply", "synchronous_commit=on").Replace(text)
			}
			assert.Equal(t, before[name], text, "%s, %s", target, name)
		}
		mustExec(t, env, "ALTER "+target+" RESET ALL")
	}
	// What the connection string says about them does not count either.
	address, err := url.Parse(cfg.URL)
	require.NoError(t, err)
	query := address.Query()
	query.Set("timezone", "Asia/Kathmandu")
	query.Set("options", "-c search_path=evil -c row_security=on")
	address.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	text, err := sessions["Connect"](t.Context(), postgres.Config{URL: address.String()})
	require.NoError(t, err)
	assert.Equal(t, before["Connect"], text)
}

func mustExec(t *testing.T, env *testenv.Env, sql string) {
	t.Helper()
	_, err := env.Pool.Exec(t.Context(), sql)
	require.NoError(t, err, sql)
}

// Text that the database cannot hold as it is must not be accepted at all.
func TestOnlyUTF8DatabasesAreUsed(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, encoding := range []string{"WIN1252", "LATIN1", "SQL_ASCII", "EUC_JP"} {
		name := env.Slot + "_" + strings.ToLower(encoding)
		mustExec(t, env, fmt.Sprintf("CREATE DATABASE %s ENCODING '%s' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0", name, encoding))
		t.Cleanup(func() {
			_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP DATABASE "+name+" WITH (FORCE)")
			assert.NoError(t, err)
		})
		for way, read := range sessions {
			_, err := read(t.Context(), postgres.Config{URL: strings.Replace(env.PostgresURL, "/"+env.Slot, "/"+name, 1)})
			require.ErrorIs(t, err, postgres.ErrEncoding, way)
			assert.ErrorContains(t, err, "encoding "+encoding+": ", way)
			assert.Equal(t, failure.Fatal, failure.Of(err), way)
		}
	}
}

func TestApplicationNames(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for url, want := range map[string]string{env.PostgresURL: "mine", env.PostgresURL + "&application_name=theirs": "theirs"} {
		pool, err := postgres.NewProducerPool(postgres.Config{URL: url}, "mine")
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		var name string
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT current_setting('application_name')").Scan(&name))
		assert.Equal(t, want, name)
		conn, err := postgres.Connect(t.Context(), postgres.Config{URL: url}, postgres.Options{Application: "mine"})
		require.NoError(t, err)
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT current_setting('application_name')").Scan(&name))
		assert.Equal(t, "mine", name, "the proof that a slot is ours needs it")
		require.NoError(t, conn.Close(t.Context()))
	}
}
