package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// poolers are configurations that differ in what a client notices.
var poolers = map[string][]string{
	"transaction": {"pool_mode = transaction"},
	"session":     {"pool_mode = session", "default_pool_size = 60"},
	"that drops settings": {"pool_mode = transaction", "ignore_startup_parameters = search_path, row_security, intervalstyle, bytea_output, extra_float_digits," +
		"xmlbinary, array_nulls, transform_null_equals, quote_all_identifiers, exit_on_error, default_transaction_isolation, " +
		"default_transaction_deferrable, statement_timeout, lock_timeout, idle_in_transaction_session_timeout, idle_session_timeout, " +
		"tcp_user_timeout, default_transaction_read_only, synchronous_commit, replication, wal_sender_timeout, IntervalStyle"},
}

func TestTheStreamerRefusesAPooler(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for name, settings := range poolers {
		cfg := postgres.Config{URL: testenv.PgBouncer(t, env.PostgresURL, settings...)}
		for way, read := range sessions {
			if way == "NewProducerPool" {
				continue
			}
			_, err := read(t.Context(), cfg)
			require.Errorf(t, err, "%s, %s", name, way)
			if way == "NewPool" || way == "OpenDB" {
				err = postgres.Explain(err)
			}
			assert.ErrorContainsf(t, err, "replication needs the address of PostgreSQL itself", "%s, %s", name, way)
			assert.Equal(t, failure.Fatal, failure.Of(err), "%s, %s", name, way)
		}
	}
}

func TestProducersWorkBehindAPooler(t *testing.T) {
	t.Parallel()
	for name, settings := range poolers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			for _, statement := range []string{
				"CREATE TABLE items (id int)", "CREATE TABLE guarded (id int)", "INSERT INTO guarded VALUES (1)", "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
				"CREATE ROLE " + env.Slot + "_app LOGIN PASSWORD 'secret'", "GRANT SELECT, INSERT ON items, guarded TO " + env.Slot + "_app",
			} {
				mustExec(t, env, statement)
			}
			t.Cleanup(func() {
				_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+env.Slot+"_app; DROP ROLE "+env.Slot+"_app")
				assert.NoError(t, err)
			})
			direct := *env
			direct.PostgresURL = testenv.AsUser(t, env.PostgresURL, env.Slot+"_app", "secret")
			pool, err := postgres.NewProducerPool(postgres.Config{URL: testenv.PgBouncer(t, direct.PostgresURL, settings...), MaxConns: 50}, "test")
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			var group sync.WaitGroup
			for n := range 200 {
				group.Go(func() { assert.NoError(t, use(t.Context(), pool, n)) })
			}
			group.Wait()
			assert.True(t, pool.BehindPooler())
			var rows int
			require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM items").Scan(&rows))
			assert.Equal(t, 4*200, rows)
			assert.ErrorContains(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM public.guarded").Scan(&rows), "row-level security")

			// The server's sessions belong to other clients as well.
			other, err := pgx.Connect(t.Context(), pool.Config().ConnString())
			require.NoError(t, err)
			defer func() { _ = other.Close(context.WithoutCancel(t.Context())) }()
			var path, security string
			require.NoError(t, other.QueryRow(t.Context(), "SELECT current_setting('search_path'), current_setting('row_security')",
				pgx.QueryExecModeSimpleProtocol).Scan(&path, &security))
			assert.Equal(t, []string{`"$user", public`, "on"}, []string{path, security})
		})
	}
}

// use does what programs do with a pool, each with arguments and with its own session settings.
func use(ctx context.Context, pool *postgres.Pool, n int) error {
	const insert = "INSERT INTO public.items SELECT $1 WHERE current_setting('row_security') = 'off' AND current_setting('search_path') = 'pg_catalog, pg_temp'"
	if _, err := pool.Exec(ctx, insert, n); err != nil {
		return err
	}
	var got int
	if err := pool.QueryRow(ctx, insert+" RETURNING id", n).Scan(&got); err != nil {
		return err
	}
	var batch pgx.Batch
	batch.Queue(insert, n)
	batch.Queue("SELECT $1::int + 1", n).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
	if err := pool.SendBatch(ctx, &batch).Close(); err != nil {
		return err
	}
	if got != n+1 {
		return fmt.Errorf("the batch has %d for %d", got, n+1)
	}
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, insert, n)
		return err
	})
}
