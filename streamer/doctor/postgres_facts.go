package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/migrations"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/streamer/ops"
	"diehard/streamer/replication"
)

// readTimeout bounds all queries to one database.
const readTimeout = 30 * time.Second

// postgresFacts is the input of the PostgreSQL checks.
type postgresFacts struct {
	*ops.Postgres
	slotName    string
	slot        *ops.Slot
	publication string
	skew        time.Duration

	number   int               // server_version_num
	settings map[string]string // in the unit of pg_settings
	database string
	user     string

	senders, slots   int              // in use
	standbys         int              // physical ones that are connected; a logical session has a database
	unmet            map[string]error // preconditions of the streamer, by name
	replicationErr   error            // of a replication connection
	warnings         []replication.Warning
	overridden       []string // settings of the role and the database that the streamer's sessions do not take over
	schema           event.Schema
	openPublic       bool     // PUBLIC may create in the outbox's schema
	missing          []string // privileges
	openMessages     string   // statements that close them; empty where messages are not read, or closed
	oldestTx         time.Duration
	oldestPrepared   time.Duration
	columns          map[string]column // of the outbox
	outbox           *ops.Outbox
	outboxErr        error
	pendingMigration int
	migrationsErr    error
}

func readPostgres(ctx context.Context, p Target) (*postgresFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	answer, err := p.Probe.AskPostgres(ctx)
	if err != nil {
		return nil, err
	}
	from := p.Probe.Origin
	f := &postgresFacts{
		Postgres: answer, schema: from.Schema, slotName: from.SlotName(), slot: answer.Slot(from.SlotName()), publication: from.PublicationName(),
		skew: answer.Skew(), unmet: map[string]error{}, settings: map[string]string{}, columns: map[string]column{},
	}
	for _, ask := range []func(context.Context, *ops.Probe) error{
		f.readSettings, f.readServer, f.readPrivileges, f.readTransactions, f.readColumns,
	} {
		if err := ask(ctx, p.Probe); err != nil {
			return nil, fmt.Errorf("examine PostgreSQL: %w", postgres.Redact(err))
		}
	}
	if err := f.readPreconditions(ctx, p); err != nil {
		return nil, err
	}
	f.outbox, f.outboxErr = p.Probe.AskOutbox(ctx)
	var list []migrations.Status
	list, f.migrationsErr = migrations.Outbox(from.Schema, from.Publication).Status(ctx, postgres.Config{URL: p.PostgresURL})
	f.pendingMigration = pending(list)
	return f, nil
}

func (f *postgresFacts) readSettings(ctx context.Context, p *ops.Probe) error {
	rows, err := p.Postgres.Query(ctx, `SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN (
		'wal_level', 'max_wal_senders', 'max_replication_slots', 'max_slot_wal_keep_size', 'wal_sender_timeout',
		'idle_replication_slot_timeout', 'synchronized_standby_slots', 'fsync', 'full_page_writes')`)
	if err != nil {
		return err
	}
	var name, setting string
	_, err = pgx.ForEachRow(rows, []any{&name, &setting}, func() error {
		f.settings[name] = setting
		return nil
	})
	return err
}

func (f *postgresFacts) readServer(ctx context.Context, p *ops.Probe) error {
	return p.Postgres.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_database(), current_user,
		       ARRAY (SELECT DISTINCT c FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) AS c
		              WHERE lower(split_part(c, '=', 1)) = ANY ($2)
		                AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
		                AND s.setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)) ORDER BY c),
		       coalesce((SELECT has_schema_privilege('public', oid, 'CREATE') FROM pg_catalog.pg_namespace WHERE nspname = $1), false),
		       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender'),
		       (SELECT count(*) FROM pg_catalog.pg_replication_slots),
		       (SELECT count(*) FROM pg_catalog.pg_stat_replication r JOIN pg_catalog.pg_stat_activity a USING (pid)
		        WHERE a.datid IS NULL)`, p.Origin.Schema.Name(), postgres.SessionSettings()).
		Scan(&f.number, &f.database, &f.user, &f.overridden, &f.openPublic, &f.senders, &f.slots, &f.standbys)
}

// readPrivileges lists what the user lacks of the rights of diehard_streamer. The check of the
// migrations reports missing tables and functions.
func (f *postgresFacts) readPrivileges(ctx context.Context, p *ops.Probe) error {
	rows, err := p.Postgres.Query(ctx, p.Origin.Schema.SQL(`
		SELECT 'SELECT on ' || oid::regclass FROM pg_catalog.pg_class
		WHERE relnamespace = to_regnamespace('{outbox}') AND relkind IN ('r', 'p', 'v')
		  AND has_table_privilege(to_regrole('diehard_streamer'), oid, 'SELECT') AND NOT has_table_privilege(oid, 'SELECT')
		UNION ALL
		SELECT 'EXECUTE on ' || oid::regprocedure FROM pg_catalog.pg_proc
		WHERE pronamespace = to_regnamespace('{outbox}')
		  AND has_function_privilege(to_regrole('diehard_streamer'), oid, 'EXECUTE') AND NOT has_function_privilege(oid, 'EXECUTE')`))
	if err != nil {
		return err
	}
	f.missing, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

// readPreconditions runs the checks of `streamer run`, and opens a connection like its own.
func (f *postgresFacts) readPreconditions(ctx context.Context, p Target) error {
	control, err := replication.OpenControl(ctx, p.PostgresURL, "diehard-streamer-doctor", p.Probe.Origin)
	if err != nil {
		return err
	}
	defer control.Close(ctx)
	_, checks := control.Preconditions(ctx, false)
	for _, check := range checks {
		if check.Err != nil {
			f.unmet[check.Name] = check.Err
		}
	}
	if with, err := control.WithMessages(ctx); err == nil && with {
		if err := p.Probe.Postgres.QueryRow(ctx, migrations.MessagesFix(f.schema)).Scan(&f.openMessages); err != nil {
			return fmt.Errorf("read who may write messages: %w", err)
		}
	}
	if f.warnings, err = control.Warnings(ctx); err != nil {
		return err
	}
	conn, err := replication.Connect(ctx, p.PostgresURL, "diehard-streamer-doctor", readTimeout, nil)
	if err == nil {
		defer conn.Close()
		_, err = conn.Identify(ctx)
	}
	f.replicationErr = err
	return nil
}

// readTransactions sees what the user may see of other sessions.
func (f *postgresFacts) readTransactions(ctx context.Context, p *ops.Probe) error {
	var open, prepared float64
	err := p.Postgres.QueryRow(ctx, `
		SELECT coalesce(extract(epoch FROM max(now() - xact_start) FILTER (WHERE backend_xid IS NOT NULL)), 0)::float8,
		       (SELECT coalesce(extract(epoch FROM max(now() - prepared)), 0)::float8
		        FROM pg_catalog.pg_prepared_xacts WHERE database = current_database())
		FROM pg_catalog.pg_stat_activity WHERE datname = current_database()`).Scan(&open, &prepared)
	f.oldestTx = time.Duration(open * float64(time.Second))
	f.oldestPrepared = time.Duration(prepared * float64(time.Second))
	return err
}

// column is the type of a column of the outbox.
type column struct {
	oid uint32
	typ string
}

func (f *postgresFacts) readColumns(ctx context.Context, p *ops.Probe) error {
	rows, err := p.Postgres.Query(ctx, p.Origin.Schema.SQL(`
		SELECT attname::text, atttypid, format_type(atttypid, NULL) FROM pg_catalog.pg_attribute
		WHERE attrelid = to_regclass('{outbox}.outbox') AND attnum > 0 AND NOT attisdropped`))
	if err != nil {
		return err
	}
	var name string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&name, &c.oid, &c.typ}, func() error {
		f.columns[name] = c
		return nil
	})
	return err
}
