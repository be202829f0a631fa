package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/migrations"
	"diehard/shared/postgres"
	"diehard/streamer/ops"
)

// askTimeout bounds all questions to one database.
const askTimeout = 30 * time.Second

// postgresFacts is what the checks of PostgreSQL judge.
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

	senders, slots   int // in use
	standbys         int // physical ones that are connected
	mayReplicate     bool
	openPublic       bool     // PUBLIC may create in schema public
	missing          []string // privileges
	tables           []string // of the publication
	publicationOID   uint32
	slotPlugin       string
	slotDatabase     string
	slotFailover     *bool // nil before PostgreSQL 17
	slotKnown        bool  // streamer_slot remembers it
	slotOtherPublic  bool  // for another publication
	oldestTx         time.Duration
	oldestPrepared   time.Duration
	columns          map[string]string // of the outbox
	outbox           *ops.Outbox
	outboxErr        error
	pendingMigration int
	migrationsErr    error
}

func askPostgres(ctx context.Context, p Patient) (*postgresFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := p.Probe.AskPostgres(ctx)
	if err != nil {
		return nil, err
	}
	f := &postgresFacts{
		Postgres: answer, slotName: p.Probe.Slot, slot: answer.Slot(p.Probe.Slot), publication: p.Probe.Publication,
		skew: answer.Skew(), settings: map[string]string{}, columns: map[string]string{},
	}
	for _, ask := range []func(context.Context, *ops.Probe) error{
		f.askSettings, f.askServer, f.askPrivileges, f.askPublication, f.askSlot, f.askTransactions, f.askColumns,
	} {
		if err := ask(ctx, p.Probe); err != nil {
			return nil, fmt.Errorf("examine PostgreSQL: %w", postgres.Redact(err))
		}
	}
	f.outbox, f.outboxErr = p.Probe.AskOutbox(ctx)
	var list []migrations.Status
	list, f.migrationsErr = migrations.StatusPostgres(ctx, p.PostgresURL)
	f.pendingMigration = pending(list)
	return f, nil
}

func (f *postgresFacts) askSettings(ctx context.Context, p *ops.Probe) error {
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

func (f *postgresFacts) askServer(ctx context.Context, p *ops.Probe) error {
	return p.Postgres.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_database(), current_user,
		       (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
		       coalesce((SELECT has_schema_privilege('public', oid, 'CREATE') FROM pg_catalog.pg_namespace WHERE nspname = 'public'), false),
		       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender'),
		       (SELECT count(*) FROM pg_catalog.pg_replication_slots),
		       (SELECT count(*) FROM pg_catalog.pg_stat_replication r WHERE NOT EXISTS (
		           SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))`).
		Scan(&f.number, &f.database, &f.user, &f.mayReplicate, &f.openPublic, &f.senders, &f.slots, &f.standbys)
}

// askPrivileges lists what the user lacks. A table or function that is missing
// is the migrations' matter.
func (f *postgresFacts) askPrivileges(ctx context.Context, p *ops.Probe) error {
	rows, err := p.Postgres.Query(ctx, `
		SELECT privilege || ' on ' || name FROM (VALUES
			('public.outbox', 'SELECT'), ('public.outbox_partitions', 'SELECT'), ('public.outbox_retired', 'SELECT'),
			('public.slot_lag', 'SELECT'),
			('public.streamer_slot', 'SELECT'), ('public.streamer_slot', 'INSERT'), ('public.streamer_slot', 'DELETE')
		) AS t (name, privilege)
		WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege(to_regclass(name), privilege)
		UNION ALL
		SELECT 'UPDATE on public.streamer_slot (' || name || ')' FROM (VALUES ('delivered_since'), ('messages'), ('messages_from'), ('publication_state')) AS c (name)
		WHERE EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('public.streamer_slot') AND attname = name)
		  AND NOT has_column_privilege(to_regclass('public.streamer_slot'), name, 'UPDATE')
		UNION ALL
		SELECT 'EXECUTE on ' || name FROM (VALUES
			('public.outbox_create_partitions(int)'), ('public.outbox_retire_partitions(interval)')
		) AS f (name)
		WHERE to_regprocedure(name) IS NOT NULL AND NOT has_function_privilege(to_regprocedure(name), 'EXECUTE')`)
	if err != nil {
		return err
	}
	f.missing, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

func (f *postgresFacts) askPublication(ctx context.Context, p *ops.Probe) error {
	err := p.Postgres.QueryRow(ctx, `
		SELECT oid, ARRAY(SELECT schemaname || '.' || tablename FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname)
		FROM pg_catalog.pg_publication p WHERE pubname = $1`, p.Publication).Scan(&f.publicationOID, &f.tables)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

func (f *postgresFacts) askSlot(ctx context.Context, p *ops.Probe) error {
	err := p.Postgres.QueryRow(ctx, `
		SELECT coalesce(plugin, ''), coalesce(database, ''), (to_jsonb(s)->>'failover')::boolean
		FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1`, p.Slot).
		Scan(&f.slotPlugin, &f.slotDatabase, &f.slotFailover)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	var there bool
	err = p.Postgres.QueryRow(ctx, `
		SELECT coalesce(has_table_privilege(to_regclass('public.streamer_slot'), 'SELECT'), false)`).Scan(&there)
	if err != nil || !there {
		return err
	}
	var oid uint32
	err = p.Postgres.QueryRow(ctx, `SELECT publication_oid FROM public.streamer_slot WHERE slot_name = $1`, p.Slot).Scan(&oid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	f.slotKnown, f.slotOtherPublic = true, oid != f.publicationOID
	return err
}

// askTransactions sees only what the user may see of others' sessions.
func (f *postgresFacts) askTransactions(ctx context.Context, p *ops.Probe) error {
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

func (f *postgresFacts) askColumns(ctx context.Context, p *ops.Probe) error {
	rows, err := p.Postgres.Query(ctx, `
		SELECT attname::text, format_type(atttypid, NULL) FROM pg_catalog.pg_attribute
		WHERE attrelid = to_regclass('public.outbox') AND attnum > 0 AND NOT attisdropped`)
	if err != nil {
		return err
	}
	var name, kind string
	_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		f.columns[name] = kind
		return nil
	})
	return err
}
