-- +goose NO TRANSACTION
-- +goose Up
-- Rows that ClickHouse or the decoder refused, with all that is needed to try
-- again. A row is known by its place in the WAL: writing it a second time, or
-- again with retried_at set, replaces it. Read it with FINAL; it is small.
CREATE TABLE IF NOT EXISTS {{.DeadLetter}} {{.OnCluster}} (
    source      LowCardinality(String) COMMENT 'PostgreSQL system identifier and slot',
    commit_lsn  UInt64                 COMMENT 'position of the commit in the WAL',
    commit_seq  UInt32                 COMMENT 'number of the row in its transaction, from 1',
    timeline    UInt32                 COMMENT 'WAL timeline of the commit',
    commit_time DateTime64(6, 'UTC')   COMMENT 'when the transaction was committed',
    event_id    UUID                   COMMENT 'id in the outbox; all zero if it could not be read',
    event_type  String                 COMMENT 'empty if it could not be read',
    raw         String                 COMMENT 'the columns of the row as they came, as JSON' CODEC(ZSTD(1)),
    reason      String                 COMMENT 'why the row was refused',
    error_code  Int32                  COMMENT 'code of the ClickHouse exception, 0 if it was none',
    failed_at   DateTime64(3, 'UTC')   COMMENT 'when the row was written here',
    retried_at  DateTime64(3, 'UTC')   COMMENT 'when it reached the event log after all; 1970 if it has not'
)
ENGINE = {{.ReplacingMergeTree}}
ORDER BY (source, commit_lsn, commit_seq)
SETTINGS {{.Durability}}{{.DeduplicationWindow}}
COMMENT 'Events that could not be stored; see streamer deadletter';
