package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"diehard/shared/postgres"
)

// uninstall lists the statements that remove an outbox, in order: slots, publications,
// views, the outbox's constraint, functions, tables. $1 is the outbox with its schema, $2 the slots that are recorded.
// What begins with diehard_ is ours, except for what the api's migrations create.
const uninstall = `
WITH outbox AS (SELECT c.oid, c.relnamespace, c.relowner FROM pg_class AS c WHERE c.oid = to_regclass($1)),
relation AS (
	SELECT c.oid, c.relkind, c.relname FROM pg_class AS c, outbox AS o
	WHERE c.relnamespace = o.relnamespace AND NOT c.relispartition
	  AND (c.oid = o.oid OR c.relname = 'slot_lag' OR c.relname LIKE 'diehard\_%')
	  AND c.relname <> 'diehard_api_version' AND c.relname NOT LIKE 'diehard\_idempotency\_keys%'),
statement (position, name, text) AS (
	SELECT 1, s.slot_name::text, format('SELECT pg_catalog.pg_drop_replication_slot(%L)', s.slot_name)
	FROM pg_replication_slots AS s
	WHERE s.database = current_database() AND EXISTS (
		SELECT FROM unnest($2::text[]) AS known WHERE s.slot_name = known OR starts_with(s.slot_name, known || '_bm_'))
	UNION ALL
	SELECT 2, p.pubname::text, format('DROP PUBLICATION %I', p.pubname) FROM pg_publication AS p, outbox AS o
	WHERE o.oid = ALL (SELECT r.prrelid FROM pg_publication_rel AS r WHERE r.prpubid = p.oid)
	  AND EXISTS (SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid)
	UNION ALL
	SELECT 3, '', 'DROP VIEW ' || string_agg(r.oid::regclass::text, ', ' ORDER BY r.relname) FROM relation AS r WHERE r.relkind = 'v'
	UNION ALL
	SELECT 4, r.relname::text, format('ALTER TABLE %s DROP CONSTRAINT outbox_event', r.oid::regclass) FROM relation AS r, pg_constraint AS c
	WHERE c.conrelid = r.oid AND c.conname = 'outbox_event'
	UNION ALL
	SELECT 5, '', 'DROP FUNCTION ' || string_agg(f.oid::regprocedure::text, ', ' ORDER BY f.oid::regprocedure::text) FROM pg_proc AS f, outbox AS o
	WHERE f.pronamespace = o.relnamespace AND f.proowner = o.relowner AND f.proname <> 'diehard_idempotency_keys_clean'
	  AND (f.proname LIKE 'diehard\_%' OR f.proname LIKE 'outbox\_%' OR f.proname IN ('publish_event', 'publish_events', 'publish_event_message', 'event_id_for'))
	UNION ALL
	SELECT 6, '', 'DROP TABLE ' || string_agg(r.oid::regclass::text, ', ' ORDER BY r.relname) FROM relation AS r WHERE r.relkind IN ('r', 'p'))
SELECT text, position = 1 FROM statement WHERE text IS NOT NULL ORDER BY position, name`

// Uninstall removes the outbox with its slots, publications and functions, and writes the
// statements to w. Unless really is true it only writes them. Roles stay: other
// databases of the server may use them; and so does the schema.
//
// Errors: a slot is active; the outbox does not exist.
func (s Set) Uninstall(ctx context.Context, cfg postgres.Config, really bool, w io.Writer) error {
	return s.withLock(ctx, cfg, func(db *sql.DB) error {
		slots, statements, err := s.removal(ctx, db)
		if err != nil {
			return err
		}
		for _, statement := range append(append([]string{}, slots...), statements...) {
			if _, err := fmt.Fprintln(w, statement+";"); err != nil {
				return err
			}
		}
		if !really {
			return nil
		}
		for _, statement := range slots { // cannot be taken back, so first
			if _, err := db.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w (stop the streamer first)", statement, err)
			}
		}
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		defer func() { _ = tx.Rollback() }()
		for _, statement := range statements {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return tx.Commit()
	})
}

// removal returns the statements that drop slots, and the others.
func (s Set) removal(ctx context.Context, db *sql.DB) (slots, others []string, err error) {
	var exists bool
	outbox := s.schema.SQL("{outbox}.outbox")
	if err := db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", outbox).Scan(&exists); err != nil {
		return nil, nil, fmt.Errorf("look for the outbox: %w", err)
	}
	if !exists {
		return nil, nil, errors.New("there is no " + outbox + ": nothing to uninstall")
	}
	var known string
	if err := db.QueryRowContext(ctx, s.schema.SQL("SELECT coalesce(array_agg(slot_name), '{}')::text FROM {outbox}.diehard_slot")).Scan(&known); err != nil {
		return nil, nil, fmt.Errorf("read diehard_slot: %w", err)
	}
	rows, err := db.QueryContext(ctx, uninstall, outbox, known)
	if err != nil {
		return nil, nil, fmt.Errorf("list what to uninstall: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var statement string
		var slot bool
		if err := rows.Scan(&statement, &slot); err != nil {
			return nil, nil, fmt.Errorf("list what to uninstall: %w", err)
		}
		if slot {
			slots = append(slots, statement)
		} else {
			others = append(others, statement)
		}
	}
	return slots, others, rows.Err()
}
