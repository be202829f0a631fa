-- +goose Up
-- How far the logical slots of this database are behind: psql -c 'table slot_lag'.
-- Columns that came with PostgreSQL 17 are read by name through to_jsonb, so
-- that one definition serves 14 to 18 (NULL where a version has no such column)
-- and survives pg_upgrade. On a standby the end of the WAL is what was replayed.
CREATE VIEW {{.Schema}}.slot_lag AS
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
FROM pg_catalog.pg_replication_slots AS s
CROSS JOIN (
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS tip
) AS wal
WHERE s.slot_type = 'logical' AND s.database = current_database();

-- What is known of the streamers' slots. One row per slot: it distinguishes a slot that
-- was dropped from one that never was, and a publication that was changed or recreated
-- (rows committed in between may not have been sent) from the original.
--
-- delivered_since: rows published since then were committed after the slot was created,
--                  or have been replayed. `streamer replay --from-table` moves it back.
-- messages:        REPLICATION_MESSAGES of the streamer. Without a slot that has it,
--                  publishing a message is refused, for it would be lost.
-- messages_from:   in transactions that were committed there or later, messages are
--                  events; once set it stays. A message takes a number (commit_seq)
--                  like a row, so which transactions have them must never change.
CREATE TABLE {{.Schema}}.diehard_slot (
    slot_name         text        PRIMARY KEY,
    publication_state text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    delivered_since   timestamptz NOT NULL DEFAULT now(),
    messages          boolean     NOT NULL DEFAULT false,
    messages_from     pg_lsn
);

-- The streamer's role writes the table through the functions below alone: retention
-- trusts it, so a forged row could cost events.

-- Records which publication a slot was created for, once. Messages are events from
-- messages_from on; if that is NULL, from where the slot stands, which is its
-- beginning. A slot that is still being created stands nowhere: diehard_slot_messages
-- records them then.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_record(slot text, publication text, state text, messages boolean, messages_from pg_lsn) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known record;
BEGIN
    SELECT s.confirmed_flush_lsn INTO known FROM pg_replication_slots AS s
    WHERE s.slot_name = slot AND s.database = current_database() AND s.plugin = 'pgoutput';
    IF NOT FOUND OR NOT EXISTS (SELECT FROM pg_publication AS p WHERE p.pubname = publication) THEN
        RAISE EXCEPTION 'there is no slot % with plugin pgoutput in this database, or no publication %', slot, publication
            USING ERRCODE = 'undefined_object';
    END IF;
    INSERT INTO {{.Schema}}.diehard_slot AS s (slot_name, publication_state, messages, messages_from)
    VALUES (slot, state,
        diehard_slot_record.messages AND coalesce(diehard_slot_record.messages_from, known.confirmed_flush_lsn) IS NOT NULL,
        coalesce(diehard_slot_record.messages_from, CASE WHEN diehard_slot_record.messages THEN known.confirmed_flush_lsn END))
    ON CONFLICT (slot_name) DO UPDATE SET publication_state = excluded.publication_state WHERE s.publication_state IS NULL;
END $$;
-- +goose StatementEnd

-- Records a slot that was created again. messages_from stays: what was delivered since
-- is numbered so. There is no moment at which nothing is recorded.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_replace(slot text, publication text, state text, messages boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    since pg_lsn;
BEGIN
    DELETE FROM {{.Schema}}.diehard_slot AS s WHERE s.slot_name = slot RETURNING s.messages_from INTO since;
    PERFORM {{.Schema}}.diehard_slot_record(slot, publication, state, messages, since);
END $$;
-- +goose StatementEnd

-- Accepts the publication as it is now: it was proved that nothing was lost. Or the operator
-- says so: then what was published before counts as undelivered until it is replayed, and a
-- session that compares it ends.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_accept(slot text, publication text, state text, proved boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_slot AS s
    SET publication_state = state, delivered_since = CASE WHEN proved THEN s.delivered_since ELSE clock_timestamp() END
    WHERE s.slot_name = slot AND EXISTS (SELECT FROM pg_publication AS p WHERE p.pubname = publication);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'slot % is not recorded, or there is no publication %', slot, publication USING ERRCODE = 'undefined_object';
    END IF;
    UPDATE {{.Schema}}.diehard_intent AS i
    SET unproved_since = NULL, unproved_until = NULL, began = pg_snapshot_xmax(pg_current_snapshot()), epoch = i.epoch + 1, confirm_lsn = greatest(i.confirm_lsn, r.confirmed_flush_lsn)
    FROM pg_replication_slots AS r WHERE i.slot_name = slot AND r.slot_name = slot AND NOT proved;
END $$;
-- +goose StatementEnd

-- What was published before now may not be delivered: until it is replayed it does not
-- count as delivered.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_missed(slot text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_slot AS s SET delivered_since = greatest(s.delivered_since, clock_timestamp()) WHERE s.slot_name = slot;
    UPDATE {{.Schema}}.diehard_intent AS i SET began = pg_snapshot_xmax(pg_current_snapshot()) WHERE i.slot_name = slot;
END $$;
-- +goose StatementEnd

-- Until the slot is recorded again nothing counts as delivered, and messages are refused
-- if it was dropped.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_undelivered(slot text, dropped boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_slot AS s SET delivered_since = 'infinity', messages = s.messages AND NOT dropped
    WHERE s.slot_name = slot;
END $$;
-- +goose StatementEnd

-- Every row published at since or later has been delivered, or will be by the slot.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_delivered(slot text, since timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_slot AS s SET delivered_since = least(s.delivered_since, since) WHERE s.slot_name = slot;
END $$;
-- +goose StatementEnd

-- Records whether the streamer reads messages. When it does for the first time they
-- begin at messages_from.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_messages(slot text, messages boolean, messages_from pg_lsn) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_slot AS s
    SET messages = diehard_slot_messages.messages,
        messages_from = CASE WHEN diehard_slot_messages.messages THEN coalesce(s.messages_from, diehard_slot_messages.messages_from) ELSE s.messages_from END
    WHERE s.slot_name = slot AND s.messages <> diehard_slot_messages.messages;
END $$;
-- +goose StatementEnd

-- Lets retention go on without a slot that was dropped permanently.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_slot_delete(slot text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.slot_name = slot) THEN
        RAISE EXCEPTION 'slot % exists: drop it first', slot USING ERRCODE = 'object_in_use';
    END IF;
    DELETE FROM {{.Schema}}.diehard_slot AS s WHERE s.slot_name = slot;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION {{.Schema}}.diehard_slot_record(text, text, text, boolean, pg_lsn),
    {{.Schema}}.diehard_slot_replace(text, text, text, boolean),
    {{.Schema}}.diehard_slot_accept(text, text, text, boolean),
    {{.Schema}}.diehard_slot_undelivered(text, boolean), {{.Schema}}.diehard_slot_missed(text),
    {{.Schema}}.diehard_slot_delivered(text, timestamptz),
    {{.Schema}}.diehard_slot_messages(text, boolean, pg_lsn),
    {{.Schema}}.diehard_slot_delete(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_slot_record(text, text, text, boolean, pg_lsn),
    {{.Schema}}.diehard_slot_replace(text, text, text, boolean),
    {{.Schema}}.diehard_slot_accept(text, text, text, boolean),
    {{.Schema}}.diehard_slot_undelivered(text, boolean), {{.Schema}}.diehard_slot_missed(text),
    {{.Schema}}.diehard_slot_delivered(text, timestamptz),
    {{.Schema}}.diehard_slot_messages(text, boolean, pg_lsn),
    {{.Schema}}.diehard_slot_delete(text) TO diehard_streamer;
GRANT SELECT ON {{.Schema}}.diehard_slot, {{.Schema}}.slot_lag TO diehard_streamer;
