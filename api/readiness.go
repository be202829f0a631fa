package main

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"diehard/api/httpapi"
	"diehard/migrations"
	"diehard/shared/postgres"
)

// readyFor is how long an answer about the database serves further probes: they need
// no key, and must not keep requests from the connections.
const readyFor = time.Second

var errReadOnly = errors.New("PostgreSQL is read-only: a standby, or a database in default_transaction_read_only")

// readiness checks that the api can write: PostgreSQL answers, is no standby, and has
// the tables of this version.
type readiness struct {
	db   postgres.DB
	sets []migrations.Set

	mu      sync.Mutex // held during a check, so that there is one at a time
	checked time.Time
	err     error
}

// check asks the database. Errors: errReadOnly, [*migrations.PendingError], or those of pgx.
func (r *readiness) check(ctx context.Context) error {
	var readOnly bool
	if err := r.db.QueryRow(ctx, "SELECT pg_catalog.current_setting('transaction_read_only')::bool").Scan(&readOnly); err != nil {
		return err
	}
	if readOnly {
		return errReadOnly
	}
	for _, set := range r.sets {
		if err := set.Check(ctx, r.db); err != nil {
			return err
		}
	}
	return nil
}

// ready is check for probes, whose reasons clients may see.
func (r *readiness) ready(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.checked) > readyFor {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
		defer cancel()
		r.err = asProblem(r.check(ctx))
		r.checked = time.Now()
	}
	return r.err
}

func asProblem(err error) error {
	if _, pending := errors.AsType[*migrations.PendingError](err); pending || errors.Is(err, errReadOnly) {
		return &httpapi.Problem{Status: http.StatusServiceUnavailable, Detail: "Not ready: " + err.Error() + "."}
	}
	return err
}
