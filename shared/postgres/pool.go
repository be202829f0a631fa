package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/singleflight"
)

// DB is what a program that publishes events needs: a [Pool], or a [pgxpool.Pool].
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
	Config() *pgxpool.Config
}

// Pool is for programs that publish events. It works behind a connection pooler in
// transaction mode, too: there each transaction brings the settings that a session
// has otherwise, because the server's sessions are shared with other clients.
//
// Unlike the streamer it leaves default_transaction_read_only and synchronous_commit
// as the role and the database have them.
type Pool struct {
	pool   *pgxpool.Pool
	direct atomic.Bool // the address is PostgreSQL's own
	pooler atomic.Bool // the address is a pooler's

	detection singleflight.Group
}

// NewProducerPool returns a pool with the errors of [NewPool]. Acquiring a connection
// fails with ErrEncoding where events could not be stored as they are.
func NewProducerPool(cfg Config, application string) (*Pool, error) {
	config, err := cfg.pool(application)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withParameters(config.ConnConfig.RuntimeParams)
	p := &Pool{}
	own := config.ConnConfig.Copy()
	made := &owners{schema: cfg.Schema, relations: slices.Concat(OutboxRelations, APIRelations), functions: Functions}
	config.PrepareConn = made.again
	config.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error {
		if err := cfg.beforeConnect(ctx, c); err != nil {
			return err
		}
		if !p.direct.Load() && !p.pooler.Load() {
			_, err, _ := p.detection.Do("", func() (any, error) { return nil, p.detect(ctx, c.Copy()) })
			if err != nil {
				return err
			}
		}
		p.configure(c, own)
		c.AfterConnect = made.after(c.AfterConnect)
		return nil
	}
	p.pool, err = newPool(config)
	return p, err
}

// detect opens one connection to find out what answers at the address.
func (p *Pool) detect(ctx context.Context, config *pgx.ConnConfig) error {
	setParams(config.RuntimeParams, sessionSettings...)
	config.AfterConnect = prove
	pg, err := pgconn.ConnectConfig(ctx, &config.Config)
	switch {
	case err == nil:
		p.direct.Store(true)
		_ = pg.Close(ctx) // it has served
	case errors.Is(err, ErrPooler), refusedByPooler(err):
		p.pooler.Store(true)
	default:
		return err
	}
	return nil
}

// configure prepares the next connection. given is what the connection string says.
func (p *Pool) configure(c, given *pgx.ConnConfig) {
	if p.direct.Load() {
		setParams(c.RuntimeParams, sessionSettings...)
		c.AfterConnect = prove
		return
	}
	setParams(c.RuntimeParams, poolerSettings...)
	c.AfterConnect = func(_ context.Context, pg *pgconn.PgConn) error { return checkEncoding(pg) }
	if given.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement { // pgx's default
		c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // prepared statements belong to one server session
	}
}

// Ping opens a connection, if there is none, and uses it.
func (p *Pool) Ping(ctx context.Context) error { return p.pool.Ping(ctx) }

// Close waits until all connections are given back.
func (p *Pool) Close() { p.pool.Close() }

// Config is a copy of the pool's configuration.
func (p *Pool) Config() *pgxpool.Config { return p.pool.Config() }

// setPerTransaction reports that transactions must bring their settings. Until a
// connection has shown what answers at the address, they do.
func (p *Pool) setPerTransaction(ctx context.Context) bool {
	if !p.direct.Load() && !p.pooler.Load() {
		if conn, err := p.pool.Acquire(ctx); err == nil { // otherwise the caller gets the same error
			conn.Release()
		}
	}
	return !p.direct.Load()
}

// transactionSettings is a SELECT that fixes the settings of the running transaction.
var transactionSettings = func() string {
	var b strings.Builder
	b.WriteString("SELECT ")
	for _, s := range sessionSettings {
		if s.name == "client_encoding" || strings.HasPrefix(s.name, "default_") || strings.HasPrefix(s.name, "tcp_") {
			continue // the pooler tracks it; decided before the first statement; a property of the connection
		}
		fmt.Fprintf(&b, "pg_catalog.set_config('%s', '%s', true), ", s.name, s.value)
	}
	b.WriteString("CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL " +
		"THEN pg_catalog.set_config('transaction_timeout', '0', true) END")
	return b.String()
}()

// Begin begins a transaction.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx begins a transaction. Without an isolation level it is read committed.
func (p *Pool) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	if p.setPerTransaction(ctx) && options.BeginQuery == "" {
		if options.IsoLevel == "" {
			options.IsoLevel = pgx.ReadCommitted
		}
		words := []string{"BEGIN ISOLATION LEVEL", string(options.IsoLevel), string(options.AccessMode), string(options.DeferrableMode)}
		options = pgx.TxOptions{BeginQuery: strings.Join(words, " ") + "; " + transactionSettings}
	}
	return p.pool.BeginTx(ctx, options)
}

// Exec runs one statement in a transaction of its own.
func (p *Pool) Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error) {
	if !p.setPerTransaction(ctx) {
		return p.pool.Exec(ctx, sql, arguments...)
	}
	var batch pgx.Batch
	batch.Queue(sql, arguments...)
	results := p.SendBatch(ctx, &batch)
	tag, err := results.Exec()
	return tag, errors.Join(err, results.Close())
}

// QueryRow runs one statement in a transaction of its own, which ends with Scan.
func (p *Pool) QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row {
	if !p.setPerTransaction(ctx) {
		return p.pool.QueryRow(ctx, sql, arguments...)
	}
	var batch pgx.Batch
	batch.Queue(sql, arguments...)
	return batchRow{p.SendBatch(ctx, &batch)}
}

// batchRow is the only row of a batch.
type batchRow struct{ results pgx.BatchResults }

func (r batchRow) Scan(into ...any) error {
	err := r.results.QueryRow().Scan(into...)
	if closing := r.results.Close(); err == nil {
		err = closing
	}
	return err
}

// SendBatch runs the statements of a batch in one transaction.
func (p *Pool) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	if !p.setPerTransaction(ctx) {
		return p.pool.SendBatch(ctx, batch)
	}
	first := &pgx.QueuedQuery{SQL: transactionSettings}
	results := p.pool.SendBatch(ctx, &pgx.Batch{QueuedQueries: append([]*pgx.QueuedQuery{first}, batch.QueuedQueries...)})
	_, _ = results.Exec() // its error is that of every following statement
	return results
}

// CopyFrom copies rows into a table. Behind a pooler it is a transaction with the
// settings of the others.
func (p *Pool) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (n int64, err error) {
	if !p.setPerTransaction(ctx) {
		return p.pool.CopyFrom(ctx, table, columns, rows)
	}
	err = pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
		n, err = tx.CopyFrom(ctx, table, columns, rows)
		return err
	})
	return n, err
}
