package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"

	"diehard/shared/event"
	"diehard/shared/postgres"
)

//go:embed outbox/*.sql api/*.sql
var postgresFiles embed.FS

const (
	// DefaultPublication is the publication of an [Outbox] without another name.
	DefaultPublication = "outbox_pub"
	// lockKey is "diehard" in ASCII: the advisory lock of who migrates.
	lockKey = 0x64696568617264
)

// Set is a set of migrations of PostgreSQL with a version table of its own. The
// zero value is of no use: see [Outbox] and [API].
type Set struct {
	name    string // folder of the files
	command string // that runs the set
	fix     string // where another table has the name of ours
	schema  event.Schema
	made    []string // relations that the set begins with
	called  []string // functions that producers call by name: an overload of another's may fit better
	// publication is the name of the one that the set makes; empty for none.
	publication string
	// relations are what no stranger may have made; another's users are found by prepare.
	relations []string
	data      templateData
}

// templateData fills the templates. Identifiers are quoted as such, texts as literals.
type templateData struct {
	Schema, SchemaText string
	OutboxText         string // the table, as a text for a cast to regclass
	Publication        string
	JSONTypes          []string // beside json
	AllJSONTypes       []string
}

// Outbox returns the migrations of the outbox: its tables, functions, views,
// publication and roles. An empty publication is [DefaultPublication].
func Outbox(schema event.Schema, publication string) Set {
	if publication == "" {
		publication = DefaultPublication
	}
	s := newSet("outbox", "streamer migrate up",
		"set OUTBOX_SCHEMA to another schema, for example diehard, which is created if it is missing", schema, "outbox", "slot_lag", "diehard_events")
	s.data.Publication = pgx.Identifier{publication}.Sanitize()
	s.relations = postgres.OutboxRelations
	s.called, s.publication = []string{"publish_event", "publish_events", "publish_event_message", "event_id_for"}, publication
	return s
}

// API returns the migrations of the api: its users and idempotency keys. Those of
// the outbox must have run.
func API(schema event.Schema) Set {
	s := newSet("api", "api migrate up",
		"the api is an example with users of its own: give it another database, or leave it out", schema, "users")
	s.relations = slices.DeleteFunc(slices.Clone(postgres.APIRelations), func(name string) bool { return name == "users" })
	return s
}

func newSet(name, command, fix string, schema event.Schema, made ...string) Set {
	others := []string{"jsonb", "text"}
	return Set{name: name, command: command, fix: fix, schema: schema, made: made, data: templateData{
		Schema: schema.Quoted(), SchemaText: literal(schema.Name()), OutboxText: literal(schema.SQL("{outbox}.outbox")),
		JSONTypes: others, AllJSONTypes: append([]string{"json"}, others...),
	}}
}

// literal quotes text as a string of SQL.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// Up runs what is pending. A process that does the same at the time is waited for.
func (s Set) Up(ctx context.Context, cfg postgres.Config, log *slog.Logger) error {
	return s.withLock(ctx, cfg, func(db *sql.DB) error { return s.up(ctx, db, log) })
}

func (s Set) up(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	if err := s.prepare(ctx, db); err != nil {
		return err
	}
	provider, err := s.provider(db)
	if err != nil {
		return err
	}
	if err := up(ctx, provider, PostgreSQL, log); err != nil {
		return err
	}
	return s.warn(ctx, db, log)
}

// Status lists the migrations in order. It changes nothing.
func (s Set) Status(ctx context.Context, cfg postgres.Config) ([]Status, error) {
	db, err := s.openPostgres(cfg)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	provider, err := s.provider(db)
	if err != nil {
		return nil, err
	}
	versioned, err := s.store().TableExists(ctx, db)
	if err != nil {
		return nil, postgres.Explain(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	return statuses(ctx, provider, PostgreSQL, versioned)
}

func (s Set) store() store {
	return store{schema: s.schema, table: "diehard_" + s.name + "_version"}
}

func (s Set) files() (fs.FS, error) {
	files, err := fs.Sub(postgresFiles, s.name)
	if err != nil {
		return nil, fmt.Errorf("embedded migrations: %w", err)
	}
	return rendered{files, s.data}, nil
}

func (s Set) provider(db *sql.DB) (*goose.Provider, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	provider, err := goose.NewProvider(goose.DialectCustom, db, files,
		goose.WithStore(s.store()), goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, fmt.Errorf("migrations of PostgreSQL: %w", err)
	}
	return provider, nil
}

// openPostgres opens sessions in which nothing is resolved through a schema that
// others can write to.
func (s Set) openPostgres(cfg postgres.Config) (*sql.DB, error) {
	cfg.Schema = s.schema
	return postgres.OpenDB(cfg, "diehard-migrate", s.relations)
}

// withLock runs do while this process is the only one that migrates the
// database. One lock around all of goose, because goose looks at its version
// table before it takes a lock of its own.
func (s Set) withLock(ctx context.Context, cfg postgres.Config, do func(*sql.DB) error) error {
	db, err := s.openPostgres(cfg)
	if err != nil {
		return err
	}
	defer db.Close() // ends the session and with it the lock
	holder, err := db.Conn(ctx)
	if err != nil {
		return postgres.Explain(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	defer holder.Close()
	if _, err := holder.ExecContext(ctx, "SELECT pg_catalog.pg_advisory_lock($1)", int64(lockKey)); err != nil {
		return fmt.Errorf("wait for another migration to end: %w", err)
	}
	return postgres.Redact(do(db))
}
