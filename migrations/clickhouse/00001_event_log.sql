-- +goose NO TRANSACTION
-- +goose Up
-- One row per event, exactly once: (source, commit_lsn, commit_seq) is unique.
-- ingested_at is one value per batch, so that a batch is one part in one
-- partition and is written as a whole or not at all.
CREATE TABLE IF NOT EXISTS {{.EventLog}} {{.OnCluster}} (
    event_id         UUID                   COMMENT 'id in the outbox' CODEC(ZSTD(1)),
    event_type       LowCardinality(String) COMMENT 'what kind of event, e.g. user_created',
    event_date_time  DateTime64(6, 'UTC')   COMMENT 'when it happened' CODEC(Delta(8), ZSTD(1)),
    environment      LowCardinality(String) COMMENT 'where it happened, e.g. Production',
    event_context    String                 COMMENT 'what happened: JSON, byte for byte as published' CODEC(ZSTD(1)),
    metadata_version UInt64                 COMMENT 'version of the layout of event_context' CODEC(ZSTD(1)),
    trace_id         String                 COMMENT 'W3C trace id of the request that caused it, 32 characters; empty without one' CODEC(ZSTD(1)),
    published_by     LowCardinality(String) COMMENT 'login of the session that published it, or the caller of the api',
    source           LowCardinality(String) COMMENT 'PostgreSQL system identifier and slot',
    commit_lsn       UInt64                 COMMENT 'position of the commit in the WAL' CODEC(Delta(8), ZSTD(1)),
    commit_seq       UInt32                 COMMENT 'number of the row in its transaction, from 1' CODEC(Delta(4), ZSTD(1)),
    timeline         UInt32                 COMMENT 'WAL timeline of the commit' CODEC(ZSTD(1)),
    commit_time      DateTime64(6, 'UTC')   COMMENT 'when the transaction was committed' CODEC(Delta(8), ZSTD(1)),
    ingested_at      DateTime64(3, 'UTC')   COMMENT 'when the streamer wrote the batch' CODEC(Delta(8), ZSTD(1)),
    -- The questions of an investigation: one event, one transaction, one hour of all types, one trace.
    INDEX by_position commit_lsn      TYPE minmax             GRANULARITY 1,
    INDEX by_time     event_date_time TYPE minmax             GRANULARITY 1,
    INDEX by_id       event_id        TYPE bloom_filter(0.01) GRANULARITY 2,
    INDEX by_trace    trace_id        TYPE bloom_filter(0.01) GRANULARITY 2,
    -- The last row of a source, for a restart, without reading the table.
    PROJECTION p_position (
        SELECT source, max(bitOr(bitShiftLeft(toUInt128(commit_lsn), 64), toUInt128(bitOr(bitShiftLeft(toUInt64(commit_seq), 32), toUInt64(timeline))))) GROUP BY source
    )
)
ENGINE = {{.MergeTree}}
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (event_type, event_date_time, event_id)
SETTINGS {{.Durability}}{{.DeduplicationWindow}},
    index_granularity = 2048, -- granules are read whole, and consecutive events lie in one or two of each type
    merge_selector_base = 10, -- fewer and wider merges, so that a row is rewritten less often
    lightweight_mutation_projection_mode = 'rebuild' -- DELETE FROM works beside a projection
COMMENT 'Events of the outbox, exactly once';

-- For looking at some events: whatever is asked of event_context, every row that is
-- read is parsed whole. JSONExtract… on the table parse for one path alone.
-- A context that the JSON type cannot hold (an array at the top, numbers beyond
-- 64 bits, a path twice) is {} here; its bytes are in the table.
CREATE VIEW IF NOT EXISTS {{.EventLogJSON}} {{.OnCluster}} AS
SELECT * REPLACE (assumeNotNull(accurateCastOrNull(event_context, 'JSON')) AS event_context)
FROM {{.EventLog}}
COMMENT 'event_log with event_context as JSON, for looking at some events: each row that is read is parsed whole. To filter or add up many, use JSONExtractString(event_context, …) and its like on event_log';
{{- if .OnCluster}}

-- The whole cluster, for reading. Writers use the table of their own node, where a batch is atomic.
CREATE TABLE IF NOT EXISTS {{.EventLogAll}} {{.OnCluster}} AS {{.EventLog}}
ENGINE = {{.DistributedEventLog}};
{{- end}}
