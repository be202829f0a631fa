package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// passing are the SQLSTATE classes and codes of errors that are not about the
// statement: the same statement works when the server is well again.
// Source: PostgreSQL docs, "PostgreSQL Error Codes".
var passing = []string{
	"08",    // connection exceptions
	"53",    // insufficient resources: too many connections, disk full, out of memory
	"57P",   // operator intervention: shutdown, crash, starting up
	"57014", // query canceled, by statement_timeout
	"58",    // system errors: I/O
	"25006", // read-only transaction: this server is a standby now
	"40001", // serialization failure
	"40P01", // deadlock
	"55P03", // lock not available, by lock_timeout
}

// IsUnavailable tells whether err means that the server could not be reached or
// could not work, rather than that something is wrong with the statement. The
// statement may have been executed all the same.
func IsUnavailable(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, code := range passing {
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
