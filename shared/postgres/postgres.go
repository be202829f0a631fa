// Package postgres makes every connection to PostgreSQL. Each session brings its own
// settings, so that no ALTER ROLE or ALTER DATABASE changes a result.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	connectTimeout  = 5 * time.Second
	maxConnLifetime = time.Hour
	maxConnIdleTime = 10 * time.Minute
)

// Options of a connection of the streamer or one of its commands.
type Options struct {
	// Application is the session's application_name.
	Application string
	// Dial connects to an address; nil: over the network.
	Dial pgconn.DialFunc
	// Outbox says that the session uses what is in [Config.Schema]: nothing there may be a stranger's.
	Outbox bool
	// SenderTimeout is the session's wal_sender_timeout; 0: the server's.
	SenderTimeout time.Duration
	// BuildFrontend reads and writes the messages; nil: pgx's.
	BuildFrontend pgconn.BuildFrontendFunc
}

// Connect opens one connection.
//
// Errors: ErrPooler, ErrEncoding, [*StrangerError]. No error has the password.
func Connect(ctx context.Context, cfg Config, o Options) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err)
	}
	cfg = cfg.withParameters(config.RuntimeParams)
	o.apply(&config.Config)
	if o.Outbox {
		config.AfterConnect = (&owners{schema: cfg.Schema, relations: OutboxRelations, functions: Functions}).after(prove)
	}
	if config.Password, err = cfg.password(ctx, config.Password); err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	return conn, cfg.explain(err)
}

// ConnectReplication opens a connection to a walsender that can decode.
//
// Errors: as those of [Connect].
func ConnectReplication(ctx context.Context, cfg Config, o Options) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err)
	}
	cfg = cfg.withParameters(config.RuntimeParams)
	o.apply(config)
	setParams(config.RuntimeParams, setting{"replication", "database"})
	if config.Password, err = cfg.password(ctx, config.Password); err != nil {
		return nil, err
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	return pg, cfg.explain(err)
}

// NewPool returns a pool that connects when first used, so that a program starts
// while the server is down. An error is a mistake in cfg and does not have the
// password; acquiring a connection fails as [Connect] does.
func NewPool(_ context.Context, cfg Config, application string) (*pgxpool.Pool, error) {
	config, err := cfg.pool(application)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withParameters(config.ConnConfig.RuntimeParams)
	Options{Application: application}.apply(&config.ConnConfig.Config)
	own := &owners{schema: cfg.Schema, relations: OutboxRelations, functions: Functions}
	config.ConnConfig.AfterConnect, config.PrepareConn = own.after(prove), own.again
	config.BeforeConnect = cfg.beforeConnect
	return newPool(config)
}

// OpenDB is [NewPool] for database/sql. Statements are not prepared. It is for the migrations,
// which call none of our functions before they have made it; of relations none may be a stranger's.
func OpenDB(cfg Config, application string, relations []string) (*sql.DB, error) {
	config, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err)
	}
	cfg = cfg.withParameters(config.RuntimeParams)
	Options{Application: application}.apply(&config.Config)
	config.AfterConnect = (&owners{schema: cfg.Schema, relations: relations}).after(prove)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	return stdlib.OpenDB(*config, stdlib.OptionBeforeConnect(cfg.beforeConnect)), nil
}

// apply makes the sessions of config those of the streamer.
func (o Options) apply(config *pgconn.Config) {
	setDefaults(config, o.Application)
	setParams(config.RuntimeParams, setting{"application_name", o.Application})
	setParams(config.RuntimeParams, sessionSettings...)
	setParams(config.RuntimeParams, streamerSettings...)
	if o.SenderTimeout > 0 {
		setParams(config.RuntimeParams, setting{"wal_sender_timeout", strconv.FormatInt(o.SenderTimeout.Milliseconds(), 10) + "ms"})
	}
	if o.Dial != nil {
		config.DialFunc = o.Dial
	}
	if o.BuildFrontend != nil {
		config.BuildFrontend = o.BuildFrontend
	}
	config.AfterConnect = prove
}

// setDefaults fills what the connection string leaves open.
func setDefaults(config *pgconn.Config, application string) {
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = application
	}
}

// pool is the part of a pool's configuration that all pools share.
func (c Config) pool(application string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, badURL(err)
	}
	setDefaults(&config.ConnConfig.Config, application)
	if c.MaxConns > 0 {
		config.MaxConns = c.MaxConns
	}
	config.MaxConnLifetime = maxConnLifetime
	config.MaxConnLifetimeJitter = maxConnLifetime / 10
	config.MaxConnIdleTime = maxConnIdleTime
	return config, nil
}

// newPool does not connect, and so needs no context.
func newPool(config *pgxpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, Redact(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	return pool, nil
}

// beforeConnect gives each connection the password of the moment.
func (c Config) beforeConnect(ctx context.Context, config *pgx.ConnConfig) (err error) {
	config.Password, err = c.password(ctx, config.Password)
	return err
}

// explain says what is to be done about an error of connecting.
func (c Config) explain(err error) error {
	pg, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return nil
	case pg != nil && c.rotates() && (pg.Code == pgerrcode.InvalidPassword || pg.Code == pgerrcode.InvalidAuthorizationSpecification):
		return &passwordRejected{Redact(err).Error()}
	}
	return Explain(fmt.Errorf("connect to PostgreSQL: %w", err))
}

// passwordRejected is no *pgconn.PgError: a password that changes may be right at the
// next connection.
type passwordRejected struct{ text string }

func (p *passwordRejected) Error() string {
	return "connect to PostgreSQL: " + p.text + " (the password is read again at the next connection)"
}
