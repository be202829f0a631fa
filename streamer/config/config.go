// Package config is the streamer's configuration, read from the environment.
package config

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/failure"
	"diehard/shared/postgres"
	"diehard/shared/settings"
	"diehard/shared/telemetry"
	"diehard/streamer/batch"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// Config of the streamer. Tags: see package settings.
type Config struct {
	Postgres    postgres.Config
	ClickHouse  clickhouse.Config
	Replication Replication
	Batch       Batch
	Log         telemetry.LogConfig
	Sentry      telemetry.SentryConfig

	Addr            string         `env:"STREAMER_ADDR" envDefault:"127.0.0.1:8081" form:"address" doc:"address and port of health, metrics and the live page"`
	Hosts           []string       `env:"STREAMER_HOSTS" doc:"names, separated by commas, that requests may have as Host beside localhost and loopback addresses, if STREAMER_ADDR is a loopback address; others are answered with 421; empty for no other names"`
	MaxLag          settings.Bytes `env:"STREAMER_MAX_LAG" envDefault:"0" doc:"unconfirmed WAL above which /readyz is 503; 0 for no limit"`
	Retention       time.Duration  `env:"OUTBOX_RETENTION" envDefault:"168h" doc:"how long delivered events stay in the outbox, at least 1h, by whole days; 0 keeps them for ever"`
	ExitOnFailure   bool           `env:"STREAMER_EXIT_ON_FAILURE" envDefault:"false" doc:"true exits when an operator must act; false stays up, not ready, and retries"`
	Environment     string         `env:"ENVIRONMENT" envDefault:"Local" doc:"name of this installation: in logs and Sentry, and stored with events that the api publishes without an environment"`
	ShutdownTimeout time.Duration  `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" doc:"timeout of a graceful stop after SIGTERM or SIGINT"`
}

// Validate reports what single variables cannot.
func (c Config) Validate() error {
	if c.Retention != 0 && c.Retention < time.Hour {
		return fmt.Errorf("OUTBOX_RETENTION = %s is less than 1h; 0 keeps events for ever", c.Retention)
	}
	return nil
}

// Replication says where events come from.
type Replication struct {
	Slot          string        `env:"REPLICATION_SLOT" envDefault:"outbox_streamer" doc:"logical replication slot: lower-case letters, digits and _; created if it never existed"`
	Publication   string        `env:"REPLICATION_PUBLICATION" envDefault:"outbox_pub" doc:"publication of the outbox, inserts only"`
	Messages      bool          `env:"REPLICATION_MESSAGES" envDefault:"false" doc:"true delivers events that were published as messages in the WAL, without a table"`
	Origin        string        `env:"REPLICATION_ORIGIN" envDefault:"any" oneof:"any none" doc:"any delivers every event; none skips those that a subscription of this database wrote, which are another streamer's (PostgreSQL 16 and later)"`
	SenderTimeout time.Duration `env:"REPLICATION_SENDER_TIMEOUT" envDefault:"10s" min:"1s" doc:"timeout (wal_sender_timeout) of the streamer's session; a standby takes over after it"`

	Shard replication.Shard `env:"STREAMER_SHARD" envDefault:"1/1" doc:"part of the events that this streamer delivers, 1/2 and 2/2 for two streamers; its slot and publication are REPLICATION_SLOT and REPLICATION_PUBLICATION with the suffix _1_of_2"`
}

// Origin is what c means to package replication.
func (c Config) Origin() replication.Origin {
	r := c.Replication
	return replication.Origin{
		Slot: r.Slot, Publication: r.Publication, Shard: r.Shard, Messages: r.Messages, LocalOnly: r.Origin == "none", Schema: c.Postgres.Schema,
	}
}

// Batch says when rows go to ClickHouse.
type Batch struct {
	Rows          int            `env:"CLICKHOUSE_BATCH_SIZE" envDefault:"50000" min:"1" max:"1000000" doc:"maximum rows of a batch"`
	Bytes         settings.Bytes `env:"CLICKHOUSE_BATCH_BYTES" envDefault:"12MiB" min:"64KiB" max:"256MiB" doc:"maximum size of a batch; memory is about four times as much and 50 MiB"`
	FlushInterval time.Duration  `env:"CLICKHOUSE_FLUSH_INTERVAL" envDefault:"200ms" min:"10ms" max:"10m" doc:"maximum wait of a row for others, or an eighth of its lateness in a backlog, a second at most; minimum time between inserts that are not full"`
	InsertTimeout time.Duration  `env:"CLICKHOUSE_INSERT_TIMEOUT" envDefault:"1m" min:"1s" doc:"timeout of one insert attempt"`
}

// Pipeline is the part of c that the pipeline wants.
func (c Config) Pipeline() pipeline.Config {
	return pipeline.Config{
		PostgresURL:   c.Postgres.Address(),
		Origin:        c.Origin(),
		Migrated:      c.migrated,
		SenderTimeout: c.Replication.SenderTimeout,
		Tables:        c.Tables(),
		Limits:        batch.Limits{Rows: c.Batch.Rows, Bytes: int(c.Batch.Bytes)},
		FlushInterval: c.Batch.FlushInterval,
		InsertTimeout: c.Batch.InsertTimeout,
		DrainTimeout:  c.ShutdownTimeout,
	}
}

// migrated reports whether the outbox has the tables of this version.
//
// Errors: failure.Fatal, if they are older.
func (c Config) migrated(ctx context.Context, db *pgx.Conn) error {
	err := migrations.Outbox(c.Postgres.Schema, "").Check(ctx, db)
	if _, pending := errors.AsType[*migrations.PendingError](err); pending {
		return failure.Wrap(failure.Fatal, failure.Because(failure.Schema, err))
	}
	return err
}

// Tables are those that a sink writes to.
func (c Config) Tables() sink.Tables {
	return sink.Tables{
		EventLog: c.ClickHouse.EventLogTable, DeadLetter: c.ClickHouse.DeadLetterTable,
		Quorum: c.ClickHouse.InsertQuorum > 1, Cluster: c.ClickHouse.Cluster,
	}
}
