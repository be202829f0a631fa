-- +goose NO TRANSACTION
-- +goose Up
-- One row per event, exactly once: (source, commit_lsn, commit_seq) is unique.
-- ingested_at is one value per batch, so that a batch is one part in one
-- partition and lands as a whole or not at all.
CREATE TABLE IF NOT EXISTS {{.EventLog}} {{.OnCluster}} (
    event_id         UUID                   COMMENT 'id in the outbox' CODEC(ZSTD(1)),
    event_type       LowCardinality(String) COMMENT 'what kind of event, e.g. user_created',
    event_date_time  DateTime64(6, 'UTC')   COMMENT 'when it happened' CODEC(Delta(8), ZSTD(1)),
    environment      LowCardinality(String) COMMENT 'where it happened, e.g. Production',
    event_context    String                 COMMENT 'what happened: JSON, byte for byte as published' CODEC(ZSTD(1)),
    metadata_version UInt64                 COMMENT 'version of the layout of event_context' CODEC(ZSTD(1)),
    source           LowCardinality(String) COMMENT 'PostgreSQL system identifier and slot',
    commit_lsn       UInt64                 COMMENT 'position of the commit in the WAL' CODEC(Delta(8), ZSTD(1)),
    commit_seq       UInt32                 COMMENT 'number of the row in its transaction, from 1' CODEC(Delta(4), ZSTD(1)),
    timeline         UInt32                 COMMENT 'WAL timeline of the commit' CODEC(ZSTD(1)),
    commit_time      DateTime64(6, 'UTC')   COMMENT 'when the transaction was committed' CODEC(Delta(8), ZSTD(1)),
    ingested_at      DateTime64(3, 'UTC')   COMMENT 'when the streamer wrote the batch' CODEC(Delta(8), ZSTD(1)),
    -- Where to go on after a restart, without reading the table.
    PROJECTION p_resume (
        SELECT source, max((commit_lsn, commit_seq)), max((commit_lsn, commit_seq, timeline)) GROUP BY source
    )
)
ENGINE = {{.MergeTree}}
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (event_type, event_date_time, event_id)
SETTINGS {{.DeduplicationWindow}}, fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Events of the outbox, exactly once';

-- A context that the JSON type cannot hold (an array at the top, numbers beyond
-- 64 bits, a path twice) is {} here; its bytes are in the table.
CREATE VIEW IF NOT EXISTS {{.EventLogJSON}} {{.OnCluster}} AS
SELECT * REPLACE (assumeNotNull(accurateCastOrNull(event_context, 'JSON')) AS event_context)
FROM {{.EventLog}};
{{- if .OnCluster}}

-- The whole cluster, for reading. Writers use the table of their own node, where a batch is atomic.
CREATE TABLE IF NOT EXISTS {{.EventLogAll}} {{.OnCluster}} AS {{.EventLog}}
ENGINE = {{.DistributedEventLog}};
{{- end}}
