package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/failure"
)

// setting is one parameter of a session.
type setting struct{ name, value string }

const (
	searchPath  = "pg_catalog, pg_temp"
	rowSecurity = "off"
)

// sessionSettings decide what statements return and whether they finish. Sent at the
// start of a session they override what ALTER ROLE and ALTER DATABASE say.
// transaction_timeout, which PostgreSQL has since version 17, follows in prove.
//
// Source: PostgreSQL docs, "Client Connection Defaults", "Version and Platform Compatibility".
var sessionSettings = []setting{
	{"client_encoding", "UTF8"},
	{"search_path", searchPath},
	{"row_security", rowSecurity}, // an error instead of the rows that a policy shows
	{"DateStyle", "ISO, MDY"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"bytea_output", "hex"},
	{"extra_float_digits", "1"},
	{"xmlbinary", "base64"},
	{"standard_conforming_strings", "on"},
	{"array_nulls", "on"},
	{"transform_null_equals", "off"},
	{"quote_all_identifiers", "off"}, // changes the text of a row filter
	{"exit_on_error", "off"},
	{"default_table_access_method", "heap"}, // others, such as columnar ones, are not decoded
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"tcp_user_timeout", "0"},
}

// streamerSettings are those of the streamer and its commands. Providers make a
// database read-only when its disk is full, often because of a slot: only the streamer
// can free the disk then. Its commits must not wait for synchronous standbys, because
// the streamer itself can be one.
var streamerSettings = []setting{
	{"default_transaction_read_only", "off"},
	{"synchronous_commit", "local"},
}

// poolerSettings are the parameters that every version of PgBouncer tracks for each
// client; it refuses others.
//
// Source: PgBouncer docs, "Config", ignore_startup_parameters.
var poolerSettings = []setting{
	{"client_encoding", "UTF8"},
	{"DateStyle", "ISO, MDY"},
	{"TimeZone", "UTC"},
	{"standard_conforming_strings", "on"},
}

// SessionSettings are the names of the settings, in lower case, that the sessions of the
// streamer and its commands have whatever ALTER ROLE and ALTER DATABASE say.
func SessionSettings() []string {
	names := []string{"transaction_timeout"}
	for _, s := range slices.Concat(sessionSettings, streamerSettings) {
		names = append(names, strings.ToLower(s.name))
	}
	return names
}

// setParams replaces parameters of the connection string, whose names are not
// case-sensitive.
func setParams(params map[string]string, settings ...setting) {
	for _, s := range settings {
		for name := range params {
			if strings.EqualFold(name, s.name) {
				delete(params, name)
			}
		}
		params[s.name] = s.value
	}
}

// ErrPooler means that the address is a connection pooler's.
var ErrPooler = failure.Wrap(failure.Fatal, errors.New("DATABASE_URL is the address of a connection pooler, and replication needs the address "+
	"of PostgreSQL itself: set the server's own host and port"))

// ErrEncoding means that the database does not store UTF-8.
var ErrEncoding = failure.Wrap(failure.Fatal, errors.New("the encoding of the database must be UTF8: create one with "+
	"CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, copy the data with pg_dump, and change DATABASE_URL"))

// checkEncoding refuses a database that does not store UTF-8: events would be
// converted, or could hold bytes that are no text.
func checkEncoding(pg *pgconn.PgConn) error {
	if encoding := pg.ParameterStatus("server_encoding"); encoding != "UTF8" && encoding != "" { // not every pooler sends it
		return fmt.Errorf("encoding %s: %w", encoding, ErrEncoding)
	}
	return nil
}

// prove demands that this session is one of PostgreSQL itself, with the settings that
// were sent. A pooler announces a process id of its own, or drops the settings.
func prove(ctx context.Context, pg *pgconn.PgConn) error {
	if err := checkEncoding(pg); err != nil {
		return err
	}
	direct := fmt.Sprintf(`pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) %d
		AND pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.=) '%s'
		AND pg_catalog.current_setting('row_security') OPERATOR(pg_catalog.=) '%s'`, pg.PID(), searchPath, rowSecurity)
	results, err := pg.Exec(ctx, `SELECT `+direct+`,
		CASE WHEN `+direct+` AND pg_catalog.current_setting('transaction_timeout', true) OPERATOR(pg_catalog.<>) '0'
		     THEN pg_catalog.set_config('transaction_timeout', '0', false) END`).ReadAll()
	switch {
	case err != nil:
		return fmt.Errorf("check the session: %w", err)
	case len(results) != 1 || len(results[0].Rows) != 1 || string(results[0].Rows[0][0]) != "t":
		return ErrPooler
	}
	return nil
}

// refusedByPooler reports that a pooler does not know a parameter of the session.
func refusedByPooler(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.Contains(pg.Message, "unsupported startup parameter")
}
