-- +goose Up
-- What each streamer is about to write into ClickHouse, and how far it may have
-- confirmed its slot: one row per slot. A streamer that takes over writes the same
-- again, with the same token, and goes on behind it. Written by the functions below alone.
CREATE TABLE {{.Schema}}.diehard_intent (
    slot_name      text        PRIMARY KEY,
    system_id      text        NOT NULL,
    timeline       bigint      NOT NULL,
    epoch          bigint      NOT NULL,
    confirm_lsn    pg_lsn      NOT NULL,
    intent         jsonb,
    unproved_since timestamptz,
    unproved_until pg_lsn,
    began          xid8        NOT NULL DEFAULT pg_snapshot_xmax(pg_current_snapshot()),
    written_at     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10); -- every update finds room in the page

COMMENT ON TABLE {{.Schema}}.diehard_intent IS 'What each streamer is about to write into ClickHouse. One row per slot.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.system_id IS 'Server to whose WAL the positions belong, with timeline.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.epoch IS 'Raised by each session that takes the slot.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.confirm_lsn IS 'Highest position that the streamer may have confirmed; 0/0: the slot is being created.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.intent IS 'The range of rows, its deduplication token, ingested_at, and the rows that ClickHouse refuses. NULL: nothing was written yet.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.unproved_since IS 'After a failover, or a change of the publication: events published from this time on are to be found in ClickHouse.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.unproved_until IS 'After a failover: events up to this commit that the slot delivers again are to be found in ClickHouse.';
COMMENT ON COLUMN {{.Schema}}.diehard_intent.began IS 'Transactions with this number or a higher one are delivered by the slot: the next one when its creation began.';

-- Raises the epoch and returns the row. A slot without a row was not created by our
-- programs, which write one with it: anything may have read it, so that its events are to be proved.
CREATE FUNCTION {{.Schema}}.diehard_intent_claim(slot text, system text, tl bigint) RETURNS SETOF {{.Schema}}.diehard_intent
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO {{.Schema}}.diehard_intent AS i (slot_name, system_id, timeline, epoch, confirm_lsn, unproved_since)
    SELECT s.slot_name::text, system, tl, 1, s.confirmed_flush_lsn, '0001-01-01 00:00:00+00'
    FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name = slot AND s.confirmed_flush_lsn IS NOT NULL
    ON CONFLICT (slot_name) DO UPDATE SET epoch = i.epoch + 1
    RETURNING *
$$;

-- Replaces the row while its epoch is held_epoch, and returns whether it did.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_intent_write(slot text, held_epoch bigint, system text, tl bigint, confirm pg_lsn, new_intent jsonb, since timestamptz, until pg_lsn)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{.Schema}}.diehard_intent AS i
    SET system_id = system, timeline = tl, confirm_lsn = confirm, intent = nullif(new_intent, 'null'),
        unproved_since = since, unproved_until = until, written_at = clock_timestamp()
    WHERE i.slot_name = slot AND i.epoch = held_epoch;
    RETURN FOUND;
END $$;
-- +goose StatementEnd

-- The slot is about to be created: what was written before is no longer in its stream.
CREATE FUNCTION {{.Schema}}.diehard_intent_creating(slot text, system text, tl bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO {{.Schema}}.diehard_intent AS i (slot_name, system_id, timeline, epoch, confirm_lsn)
    VALUES (slot, system, tl, 1, '0/0')
    ON CONFLICT (slot_name) DO UPDATE
    SET system_id = excluded.system_id, timeline = excluded.timeline, epoch = i.epoch + 1, confirm_lsn = '0/0',
        intent = NULL, unproved_since = NULL, unproved_until = NULL, began = excluded.began, written_at = clock_timestamp()
$$;

-- The slot was created and begins there.
CREATE FUNCTION {{.Schema}}.diehard_intent_created(slot text, begins pg_lsn) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{.Schema}}.diehard_intent SET confirm_lsn = begins, written_at = clock_timestamp()
    WHERE slot_name = slot AND confirm_lsn = '0/0'
$$;

-- Allows the slot to be confirmed up to confirm.
CREATE FUNCTION {{.Schema}}.diehard_intent_confirm(slot text, held_epoch bigint, confirm pg_lsn) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{.Schema}}.diehard_intent AS i SET confirm_lsn = greatest(i.confirm_lsn, confirm) WHERE i.slot_name = slot AND i.epoch = held_epoch
$$;

-- The slot was given up.
CREATE FUNCTION {{.Schema}}.diehard_intent_delete(slot text) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {{.Schema}}.diehard_intent WHERE slot_name = slot
$$;

REVOKE ALL ON FUNCTION {{.Schema}}.diehard_intent_claim(text, text, bigint), {{.Schema}}.diehard_intent_creating(text, text, bigint), {{.Schema}}.diehard_intent_created(text, pg_lsn), {{.Schema}}.diehard_intent_delete(text), {{.Schema}}.diehard_intent_confirm(text, bigint, pg_lsn),
    {{.Schema}}.diehard_intent_write(text, bigint, text, bigint, pg_lsn, jsonb, timestamptz, pg_lsn) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_intent_claim(text, text, bigint), {{.Schema}}.diehard_intent_creating(text, text, bigint), {{.Schema}}.diehard_intent_created(text, pg_lsn), {{.Schema}}.diehard_intent_delete(text), {{.Schema}}.diehard_intent_confirm(text, bigint, pg_lsn),
    {{.Schema}}.diehard_intent_write(text, bigint, text, bigint, pg_lsn, jsonb, timestamptz, pg_lsn) TO diehard_streamer;
GRANT SELECT ON {{.Schema}}.diehard_intent TO diehard_streamer;
