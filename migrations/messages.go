package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"diehard/shared/event"
	"diehard/shared/postgres"
)

// MessagesFix is a query for the statements of a superuser that take pg_logical_emit_message,
// with which every login can write messages and so forge events, from PUBLIC, and give it
// to the owner of the publishing functions, which alone call it. It returns nothing where
// PUBLIC does not have it. The functions have other arguments from PostgreSQL 17 on.
func MessagesFix(schema event.Schema) string {
	return schema.SQL(`SELECT coalesce(string_agg(format('REVOKE EXECUTE ON FUNCTION %1$s FROM PUBLIC; ', p.oid::regprocedure)
			|| coalesce(format('GRANT EXECUTE ON FUNCTION %1$s TO %2$I; ', p.oid::regprocedure, pg_catalog.pg_get_userbyid(c.relowner)), ''), ''), '')
		FROM pg_catalog.pg_proc AS p LEFT JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass('{outbox}.outbox')
		WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace
		  AND pg_catalog.has_function_privilege('public', p.oid, 'EXECUTE')`)
}

// OpenMessagesError means that every login may write messages.
type OpenMessagesError struct{ Fix string } // statements of a superuser

// Error implements error.
func (e *OpenMessagesError) Error() string {
	return "every login may write messages, which become events: as a superuser run " + e.Fix
}

// CloseMessages runs what [MessagesFix] returns.
//
// Errors: [*OpenMessagesError] when the user is not a superuser.
func (s Set) CloseMessages(ctx context.Context, cfg postgres.Config) error {
	return s.withLock(ctx, cfg, func(db *sql.DB) error {
		fix, err := s.messagesFix(ctx, db)
		if err != nil || fix == "" {
			return err
		}
		if _, err = db.ExecContext(ctx, fix); err != nil {
			return errors.Join(&OpenMessagesError{fix}, err)
		}
		if fix, err = s.messagesFix(ctx, db); err == nil && fix != "" { // a REVOKE without the right to it is a warning
			return &OpenMessagesError{fix}
		}
		return err
	})
}

func (s Set) messagesFix(ctx context.Context, db *sql.DB) (fix string, err error) {
	if err = db.QueryRowContext(ctx, MessagesFix(s.schema)).Scan(&fix); err != nil {
		return "", fmt.Errorf("read who may write messages: %w", err)
	}
	return fix, nil
}
