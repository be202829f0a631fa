-- +goose Up
-- How far the logical slots of this database are behind: psql -c 'table slot_lag'.
-- Columns that came with PostgreSQL 17 are read by name through to_jsonb, so
-- that one definition serves 14 to 18 (NULL where a version has no such column)
-- and survives pg_upgrade. On a standby the end of the WAL is what was replayed.
CREATE VIEW slot_lag AS
SELECT s.slot_name,
       s.active,
       s.wal_status,
       s.restart_lsn,
       s.confirmed_flush_lsn,
       pg_wal_lsn_diff(wal.tip, s.confirmed_flush_lsn)::bigint           AS lag_bytes,
       pg_size_pretty(pg_wal_lsn_diff(wal.tip, s.confirmed_flush_lsn))   AS lag,
       pg_wal_lsn_diff(wal.tip, s.restart_lsn)::bigint                   AS retained_bytes,
       s.safe_wal_size                                                   AS safe_wal_bytes,
       (to_jsonb(s) ->> 'inactive_since')::timestamptz                   AS inactive_since,
       to_jsonb(s) ->> 'invalidation_reason'                             AS invalidation_reason
FROM pg_replication_slots AS s
CROSS JOIN (
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS tip
) AS wal
WHERE s.slot_type = 'logical' AND s.database = current_database();
