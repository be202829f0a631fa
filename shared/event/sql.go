package event

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// Execer is a *sql.Tx, *sql.DB or *sql.Conn, or what wraps one.
type Execer interface {
	ExecContext(ctx context.Context, query string, arguments ...any) (sql.Result, error)
}

// SQL lets [Publish] and [PublishMessages] write through database/sql:
//
//	err = event.Publish(ctx, event.SQL(tx), paid)
//
// Every argument of the statements is text, so that any driver for PostgreSQL
// will do, in any of its modes.
func SQL(db Execer) DB { return sqlDB{db} }

type sqlDB struct{ db Execer }

// Exec makes sqlDB a DB.
func (d sqlDB) Exec(ctx context.Context, query string, arguments ...any) (pgconn.CommandTag, error) {
	result, err := d.db.ExecContext(ctx, query, arguments...)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	n, err := result.RowsAffected()
	return pgconn.NewCommandTag("INSERT 0 " + strconv.FormatInt(n, 10)), err
}
