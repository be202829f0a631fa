// Package config is the streamer's configuration, read from the environment.
package config

import (
	"fmt"
	"time"

	"diehard/shared/clickhouse"
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
	MaxLag          settings.Bytes `env:"STREAMER_MAX_LAG" envDefault:"0" doc:"unconfirmed WAL above which /readyz says no; 0 for no limit"`
	Retention       time.Duration  `env:"OUTBOX_RETENTION" envDefault:"168h" doc:"how long delivered events stay in the outbox, at least 1h, by whole days; 0 keeps them for ever"`
	Environment     string         `env:"ENVIRONMENT" envDefault:"Local" doc:"name of the environment, as in logs and Sentry"`
	ShutdownTimeout time.Duration  `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" doc:"longest time between the first signal and the end"`
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
	Publication   string        `env:"REPLICATION_PUBLICATION" envDefault:"outbox_pub" doc:"publication of the outbox table, inserts only"`
	Messages      bool          `env:"REPLICATION_MESSAGES" envDefault:"false" doc:"true delivers events that were published as messages in the WAL, without a table"`
	SenderTimeout time.Duration `env:"REPLICATION_SENDER_TIMEOUT" envDefault:"10s" min:"1s" doc:"silence after which PostgreSQL drops the streamer and a standby takes over"`

	Shard replication.Shard `env:"STREAMER_SHARD" envDefault:"1/1" doc:"part of the events that this streamer delivers, 1/2 and 2/2 for two streamers; its slot and publication are REPLICATION_SLOT and REPLICATION_PUBLICATION with _1_of_2 behind"`
}

// Origin is what r means to package replication.
func (r Replication) Origin() replication.Origin {
	return replication.Origin{
		Slot: r.Shard.Name(r.Slot), Publication: r.Shard.Name(r.Publication), Shard: r.Shard, Messages: r.Messages,
	}
}

// Batch says when rows go to ClickHouse.
type Batch struct {
	Rows          int            `env:"CLICKHOUSE_BATCH_SIZE" envDefault:"50000" min:"1" max:"1000000" doc:"rows of a full batch"`
	Bytes         settings.Bytes `env:"CLICKHOUSE_BATCH_BYTES" envDefault:"6MiB" min:"64KiB" max:"256MiB" doc:"size of a full batch; memory is about seven times as much and 50 MiB"`
	FlushInterval time.Duration  `env:"CLICKHOUSE_FLUSH_INTERVAL" envDefault:"200ms" min:"10ms" max:"10m" doc:"longest wait of a row for others, and shortest time between inserts that are not full"`
	InsertTimeout time.Duration  `env:"CLICKHOUSE_INSERT_TIMEOUT" envDefault:"1m" min:"1s" doc:"longest time of one try at an insert"`
}

// Pipeline is the part of c that the pipeline wants.
func (c Config) Pipeline() pipeline.Config {
	from := c.Replication.Origin()
	return pipeline.Config{
		PostgresURL:   c.Postgres.URL,
		Slot:          from.Slot,
		Publication:   from.Publication,
		Shard:         from.Shard,
		Messages:      from.Messages,
		SenderTimeout: c.Replication.SenderTimeout,
		Tables:        c.Tables(),
		Limits:        batch.Limits{Rows: c.Batch.Rows, Bytes: int(c.Batch.Bytes)},
		FlushInterval: c.Batch.FlushInterval,
		InsertTimeout: c.Batch.InsertTimeout,
		DrainTimeout:  c.ShutdownTimeout,
	}
}

// Tables are those that a sink writes to.
func (c Config) Tables() sink.Tables {
	return sink.Tables{
		EventLog: c.ClickHouse.EventLogTable, DeadLetter: c.ClickHouse.DeadLetterTable,
		Quorum: c.ClickHouse.InsertQuorum > 1,
	}
}
