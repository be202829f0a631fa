package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/event"
	"diehard/shared/failure"
)

// What the migrations create and the programs use, in the schema of the outbox.
var (
	// OutboxRelations are what `streamer migrate up` creates.
	OutboxRelations = []string{
		"outbox", "slot_lag", "diehard_events", "diehard_slot", "diehard_intent", "diehard_retired", "diehard_partitions",
		"diehard_published_keys", "diehard_outbox_default", "diehard_outbox_version",
	}
	// APIRelations are what `api migrate up` creates.
	APIRelations = []string{"users", "diehard_api_version", "diehard_idempotency_keys"}

	// Functions are those of both.
	Functions = []string{
		"publish_event", "publish_events", "publish_event_message", "event_id_for", "diehard_problem", "diehard_claim_key", "diehard_delete_keys",
		"diehard_check_event", "diehard_is_plain", "diehard_refuses_encoding", "diehard_refuse_events", "diehard_publish_messages",
		"outbox_create_partitions", "outbox_retire_partitions", "outbox_replace_default", "outbox_confirmed", "diehard_mark_wal",
		"diehard_slot_record", "diehard_slot_replace", "diehard_slot_accept", "diehard_slot_undelivered", "diehard_slot_missed", "diehard_slot_delivered",
		"diehard_slot_messages", "diehard_slot_delete", "diehard_intent_claim", "diehard_intent_confirm", "diehard_intent_write", "diehard_intent_creating",
		"diehard_intent_created", "diehard_intent_delete", "diehard_idempotency_keys_clean",
	}
)

// GrantedOwner is a condition on the role owner and the schema n, a row of pg_namespace: the role is
// a superuser or the owner of the database, or CREATE on the schema was granted to it. A
// role that may create there only as every login may is a stranger.
const GrantedOwner = `(owner IN (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolsuper)
	OR owner = (SELECT d.datdba FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
	OR EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS a
		WHERE a.grantee <> 0 AND a.privilege_type = 'CREATE' AND pg_catalog.pg_has_role(owner, a.grantee, 'USAGE')))`

// strangers finds what has a name of ours and a stranger for its owner, and counts the relations. A
// function of a stranger beside one of ours is none of them: we call ours with the types
// of all arguments. One that is there before ours is a stranger's.
const strangers = `
	SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = '%[1]s' AND c.relname = ANY ('{%[2]s}')), s.name, s.owner
	FROM (SELECT) AS one LEFT JOIN (
		SELECT o.name, pg_catalog.pg_get_userbyid(pg_catalog.min(o.owner)) AS owner
		FROM pg_catalog.pg_namespace AS n, LATERAL (
			SELECT c.relname, c.relowner, 'pg_class' FROM pg_catalog.pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = ANY ('{%[2]s}')
			UNION ALL
			SELECT p.proname, p.proowner, 'pg_proc' FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = ANY ('{%[3]s}')) AS o (name, owner, kind)
		WHERE n.nspname = '%[1]s'
		GROUP BY o.kind, o.name HAVING NOT pg_catalog.bool_or(` + GrantedOwner + `
			OR owner = (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user))
		ORDER BY o.name LIMIT 1) AS s ON true`

// StrangerError means that something with a name of ours was made by another role.
type StrangerError struct {
	Schema      event.Schema
	Name, Owner string
}

// Error implements error.
func (e *StrangerError) Error() string {
	return fmt.Sprintf("%s.%s belongs to %s, to whom CREATE on the schema was not granted, and is not used: if that role ran the migrations, "+
		"GRANT CREATE ON SCHEMA %s TO %q; otherwise drop it, or set OUTBOX_SCHEMA to another schema", e.Schema.Quoted(), e.Name, e.Owner, e.Schema.Quoted(), e.Owner)
}

// owners refuses a database in which a stranger has made what the programs would read,
// call or write to: that runs with the rights of the session. Where PUBLIC may create in
// the schema, every login can do that before the migrations run; once all is there, none.
type owners struct {
	schema    event.Schema
	relations []string
	functions []string
	complete  atomic.Bool // all relations are there
}

// prove asks on a session that may be a pooler's, with the search_path of the client before.
//
// Errors: failure.Fatal with a [*StrangerError].
func (o *owners) prove(ctx context.Context, pg *pgconn.PgConn) error {
	query := fmt.Sprintf(strangers, strings.ReplaceAll(o.schema.Name(), "'", "''"), strings.Join(o.relations, ","), strings.Join(o.functions, ","))
	results, err := pg.Exec(ctx, "SELECT pg_catalog.set_config('search_path', '"+searchPath+"', true); "+query).ReadAll()
	if err != nil {
		return fmt.Errorf("look for the owners of the outbox: %w", err)
	}
	row := results[len(results)-1].Rows[0]
	if row[1] != nil {
		return failure.Wrap(failure.Fatal, &StrangerError{o.schema, string(row[1]), string(row[2])})
	}
	o.complete.Store(string(row[0]) == strconv.Itoa(len(o.relations)))
	return nil
}

// ProveOutbox proves once more, on a connection that may be older than what a stranger made,
// and reports whether all relations of the outbox are there. Then nothing can be added any more
// that the programs would read or call.
//
// Errors: failure.Fatal with a [*StrangerError].
func ProveOutbox(ctx context.Context, conn *pgx.Conn, schema event.Schema) (complete bool, err error) {
	o := &owners{schema: schema, relations: OutboxRelations, functions: Functions}
	err = o.prove(ctx, conn.PgConn())
	return o.complete.Load(), err
}

// after is first, and then prove.
func (o *owners) after(first pgconn.AfterConnectFunc) pgconn.AfterConnectFunc {
	return func(ctx context.Context, pg *pgconn.PgConn) error {
		if err := first(ctx, pg); err != nil {
			return err
		}
		return o.prove(ctx, pg)
	}
}

// again is for a pool, whose sessions are used for long. Whether something was made since is
// asked until all is there.
func (o *owners) again(ctx context.Context, conn *pgx.Conn) (bool, error) {
	if o.complete.Load() {
		return true, nil
	}
	err := o.prove(ctx, conn.PgConn())
	return err == nil, err
}
