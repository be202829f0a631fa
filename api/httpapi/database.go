package httpapi

import (
	"errors"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/postgres"
)

// operatorProblems are errors of PostgreSQL, by SQLSTATE or its class, that last until
// an operator acts, and what clients may know about them.
var operatorProblems = []struct{ code, detail string }{
	{"28", "PostgreSQL refuses the user or the password of the api: check DATABASE_URL."},
	{pgerrcode.InvalidCatalogName, "The database in DATABASE_URL does not exist."},
	{pgerrcode.InvalidSchemaName, detailSchema}, // no such schema, table, column or function
	{pgerrcode.UndefinedTable, detailSchema},
	{pgerrcode.UndefinedColumn, detailSchema},
	{pgerrcode.UndefinedFunction, detailSchema},
	{pgerrcode.InsufficientPrivilege, "The database user of the api lacks privileges: GRANT diehard_api to it."},
}

const detailSchema = "The tables of the database are older than the api: run `streamer migrate up` and `api migrate up`."

// databaseProblem says why the database cannot be used, or "" if err has another cause.
func databaseProblem(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, p := range operatorProblems {
			if strings.HasPrefix(pgErr.Code, p.code) {
				return p.detail
			}
		}
	}
	if postgres.IsUnavailable(err) {
		return "The database is unavailable. Try again."
	}
	return ""
}
