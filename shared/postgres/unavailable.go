package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
)

// transientCodes are SQLSTATE classes and codes of errors that are not caused by the
// statement: the same statement succeeds once the server has recovered.
// Source: PostgreSQL docs, "PostgreSQL Error Codes".
var transientCodes = []string{
	"08",                             // connection exceptions
	"53",                             // insufficient resources: too many connections, disk full, out of memory
	"57P",                            // operator intervention: shutdown, crash, starting up
	pgerrcode.QueryCanceled,          // query canceled, by statement_timeout
	"58",                             // system errors: I/O
	pgerrcode.ReadOnlySQLTransaction, // read-only transaction: a standby
	pgerrcode.SerializationFailure,   // serialization failure
	pgerrcode.DeadlockDetected,       // deadlock
	pgerrcode.LockNotAvailable,       // lock not available, by lock_timeout
}

// IsCode reports whether err is the server's error with the given SQLSTATE.
func IsCode(err error, code string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == code
}

// IsUnavailable reports whether err means that the server could not be reached or
// could not execute, as opposed to an error in the statement. The statement may
// have been executed nevertheless.
func IsUnavailable(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, code := range transientCodes {
			if strings.HasPrefix(pgErr.Code, code) {
				return true
			}
		}
		return false
	}
	if _, ok := errors.AsType[net.Error](err); ok { // includes time limits
		return true
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}
