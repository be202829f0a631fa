package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/dev/embedded"
)

// keyedTable is the outbox of peers that want a primary key.
const keyedTable = `CREATE TABLE outbox_keyed (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(), event_type text NOT NULL, event_date_time timestamptz NOT NULL DEFAULT clock_timestamp(),
	environment text NOT NULL, event_context json NOT NULL)`

var keyed = producing{
	table: "outbox_keyed", id: "id",
	insert: `INSERT INTO outbox_keyed (event_type, environment, event_context) SELECT ` + peerType + `, 'Bench', {context}`,
}

// materialized is the database engine MaterializedPostgreSQL: ClickHouse itself consumes.
type materialized struct {
	b *testbed
}

const materializedDatabase = "bench_materialized"

func (m *materialized) name() string { return "MaterializedPostgreSQL" }
func (m *materialized) config() string {
	return "ClickHouse's database engine (experimental, not in Cloud), materialized_postgresql_tables_list, all else default; the process that is killed is ClickHouse"
}
func (m *materialized) producing() producing { return keyed }

func (m *materialized) arrived() arrival {
	return arrival{
		count: `SELECT count() FROM ` + materializedDatabase + `.outbox_keyed`,
		rows: `SELECT _version, toString(id), JSONExtractInt(event_context, 'w'), JSONExtractInt(event_context, 'n')
		       FROM ` + materializedDatabase + `.outbox_keyed WHERE JSONHas(event_context, 'w')`,
		stored: `SELECT sum(rows) FROM system.parts WHERE database = '` + materializedDatabase + `' AND active`,
		query:  m.b.askClickHouse,
	}
}

// prepare creates the database, which copies the empty table, and pauses the engine.
func (m *materialized) prepare(ctx context.Context, b *testbed) error {
	m.b = b
	if b.env.postgres == nil || b.env.clickhouse == nil {
		return errors.New("needs the benchmark's own engines")
	}
	if _, err := b.pool.Exec(ctx, keyedTable); err != nil {
		return err
	}
	cfg, err := pgx.ParseConfig(b.url)
	if err != nil {
		return err
	}
	experimental := ch.Context(ctx, ch.WithSettings(ch.Settings{"allow_experimental_database_materialized_postgresql": 1}))
	if err := b.ch.Exec(ctx, "DROP DATABASE IF EXISTS "+materializedDatabase+" SYNC"); err != nil {
		return err
	}
	err = b.ch.Exec(experimental, fmt.Sprintf("CREATE DATABASE %s ENGINE = MaterializedPostgreSQL('%s:%d', '%s', '%s', '%s') SETTINGS materialized_postgresql_tables_list = 'outbox_keyed'",
		materializedDatabase, cfg.Host, cfg.Port, cfg.Database, cfg.User, cfg.Password))
	if err != nil {
		return err
	}
	for until := time.Now().Add(time.Minute); ; sleepFor(ctx, 100*time.Millisecond) { // its tables appear after the copy
		if _, err = m.arrived().number(ctx, m.arrived().count); err == nil {
			break
		}
		if time.Now().After(until) {
			return err
		}
	}
	return b.env.clickhouse.Pause()
}

// start resumes the engine, or starts it after kill.
func (m *materialized) start(ctx context.Context) error {
	if m.b.env.clickhouse.Alive() {
		return m.b.env.clickhouse.Resume()
	}
	return m.b.env.clickhouse.Start(ctx)
}

func (m *materialized) kill(context.Context) error { return m.b.env.clickhouse.Kill() }

func (m *materialized) stop(ctx context.Context) error {
	return m.b.ch.Exec(ctx, "DROP DATABASE "+materializedDatabase+" SYNC")
}

// usage is part of ClickHouse's.
func (m *materialized) usage() usage { return usage{} }

// subscription is PostgreSQL's own: the apply worker of a second server.
type subscription struct {
	b      *testbed
	server *embedded.Postgres
	pool   *pgxpool.Pool
	before time.Duration
}

func (s *subscription) name() string { return "PostgreSQL's subscription" }
func (s *subscription) config() string {
	return "into a table with a primary key of a second PostgreSQL, binary = true, all else default; the process that is killed is its postmaster"
}
func (s *subscription) producing() producing { return keyed }

func (s *subscription) arrived() arrival {
	return arrival{
		count: `SELECT count(*) FROM outbox_keyed`,
		rows: `SELECT arrived, id::text, (event_context->>'w')::bigint, (event_context->>'n')::bigint
		       FROM outbox_keyed WHERE event_context->>'w' IS NOT NULL`,
		query: func(ctx context.Context, sql string) (rowScanner, error) {
			rows, err := s.pool.Query(ctx, sql)
			return postgresRows{rows}, err
		},
	}
}

type postgresRows struct{ pgx.Rows }

func (r postgresRows) Close() error {
	r.Rows.Close()
	return r.Err()
}

func (s *subscription) prepare(ctx context.Context, b *testbed) error {
	s.b = b
	if _, err := b.pool.Exec(ctx, keyedTable+`; CREATE PUBLICATION peer_pub FOR TABLE outbox_keyed`); err != nil {
		return err
	}
	var err error
	s.server, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{
		DataDir: filepath.Join(b.env.dir, "postgres-subscriber"), Database: "subscriber", Log: b.env.progress,
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"},
	})
	if err != nil {
		return err
	}
	if s.pool, err = pgxpool.New(ctx, s.server.URL("subscriber")); err != nil {
		return err
	}
	// The slot is made by SQL: CREATE SUBSCRIPTION would wait for every transaction of the source.
	if _, err := b.pool.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, peerSlot); err != nil {
		return err
	}
	if err := s.dropSubscription(ctx); err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, `DROP TABLE IF EXISTS outbox_keyed; `+keyedTable+`; ALTER TABLE outbox_keyed ADD COLUMN arrived bigserial`)
	if err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, fmt.Sprintf(`CREATE SUBSCRIPTION peer_sub CONNECTION '%s' PUBLICATION peer_pub
		WITH (create_slot = false, slot_name = %s, copy_data = false, enabled = false, binary = true)`, b.url, peerSlot))
	s.before = cpuOfTree(s.server.PID())
	return err
}

func (s *subscription) dropSubscription(ctx context.Context) error {
	var n int
	if err := s.pool.QueryRow(ctx, `SELECT count(*) FROM pg_subscription`).Scan(&n); err != nil || n == 0 {
		return err
	}
	for _, sql := range []string{
		`ALTER SUBSCRIPTION peer_sub DISABLE`, `ALTER SUBSCRIPTION peer_sub SET (slot_name = NONE)`, `DROP SUBSCRIPTION peer_sub`,
	} {
		if _, err := s.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (s *subscription) start(ctx context.Context) error {
	if !s.server.Alive() {
		return s.server.Start(ctx)
	}
	_, err := s.pool.Exec(ctx, `ALTER SUBSCRIPTION peer_sub ENABLE`)
	return err
}

func (s *subscription) kill(context.Context) error { return s.server.Kill() }

func (s *subscription) stop(ctx context.Context) error {
	err := s.dropSubscription(ctx)
	s.pool.Close()
	return errors.Join(err, s.b.dropSlot(ctx, peerSlot), s.server.Stop(ctx))
}

func (s *subscription) usage() usage {
	return usage{cpu: cpuOfTree(s.server.PID()) - s.before}
}
