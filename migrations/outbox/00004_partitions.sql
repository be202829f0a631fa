-- +goose Up
-- Creates the daily partitions (UTC) from today to days_ahead days ahead, at most at_most
-- of them, and returns how many are new. Call it again until it returns 0, each time in a
-- transaction of its own: the locks of one partition are held for a moment, those of eight
-- for eight. Where it would have to wait for a lock it fails soon (SQLSTATE 55P03), so that
-- producers do not queue behind it.
--
-- ATTACH reads all of the default partition under a lock that producers wait for. So one
-- that has rows is taken out first, in the same transaction, and an empty one takes its
-- place: the rows stay in their table, where `streamer replay --from-table` and verify read
-- them, and retention drops it once they are old and delivered. Moving rows to the partition
-- of their day would publish them a second time.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.outbox_create_partitions(days_ahead int DEFAULT 7, at_most int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET "DateStyle" = 'ISO, YMD'
SET lock_timeout = '50ms'
AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    day   date;
    part  text;
    made  int := 0;
BEGIN
    IF days_ahead IS NULL OR days_ahead NOT BETWEEN 0 AND 366 THEN
        RAISE EXCEPTION 'days_ahead must be between 0 and 366' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('diehard_outbox_partitions'));
    FOR day IN SELECT today + n FROM generate_series(0, days_ahead) AS n LOOP
        EXIT WHEN made >= at_most;
        part := 'diehard_outbox_p' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(format('%I.%I', {{.SchemaText}}, part)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I.%I (LIKE {{.Schema}}.outbox INCLUDING ALL)', {{.SchemaText}}, part);
        IF EXISTS (SELECT FROM {{.Schema}}.diehard_outbox_default) THEN
            PERFORM {{.Schema}}.outbox_replace_default();
        END IF;
        EXECUTE format('ALTER TABLE {{.Schema}}.outbox ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)',
            {{.SchemaText}}, part, day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION {{.Schema}}.outbox_create_partitions(int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.outbox_create_partitions(int, int) TO diehard_streamer;

-- Retention: daily partitions of the outbox that are older than wanted are
-- dropped, once every streamer has confirmed all of their rows. No row is
-- deleted, so there are no dead tuples.
--
-- A partition goes in three steps, each in a transaction of its own:
--   expired:  it is old enough. The end of the WAL is recorded.
--   detached: every slot has confirmed that position. It is taken out of the outbox,
--             and the end of the WAL is recorded again.
--   dropped:  every slot has confirmed the second position, too.
-- The second position is what counts: DETACH waits for all that wrote to the
-- partition, and nothing can write to it afterwards (a transaction that began
-- when its day was today finds the default partition). So every row it will ever have
-- was committed before that position in the WAL. The first position only keeps
-- partitions where queries find them while a streamer is behind.
CREATE TABLE {{.Schema}}.diehard_retired (
    partition   text        PRIMARY KEY,
    state       text        NOT NULL CHECK (state IN ('expired', 'detached', 'dropped')),
    wal_end     pg_lsn      NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    starts_at   timestamptz, -- of the oldest and the youngest row of a former default
    ends_at     timestamptz  -- partition; NULL: not read yet
);
GRANT SELECT ON {{.Schema}}.diehard_retired TO diehard_streamer;

-- Detaches the default partition with its rows, under a name of its own, and attaches an
-- empty one. Nothing writes to it afterwards, so its rows were all committed before the end
-- of the WAL that is recorded. Called by outbox_create_partitions, which holds the lock.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.outbox_replace_default() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    old text := 'diehard_outbox_d' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS');
BEGIN
    CREATE TABLE {{.Schema}}.diehard_outbox_new (LIKE {{.Schema}}.outbox INCLUDING ALL);
    GRANT SELECT ON {{.Schema}}.diehard_outbox_new TO diehard_streamer;
    ALTER TABLE {{.Schema}}.outbox DETACH PARTITION {{.Schema}}.diehard_outbox_default;
    EXECUTE format('ALTER TABLE {{.Schema}}.diehard_outbox_default RENAME TO %I', old);
    ALTER TABLE {{.Schema}}.diehard_outbox_new RENAME TO diehard_outbox_default;
    ALTER TABLE {{.Schema}}.outbox ATTACH PARTITION {{.Schema}}.diehard_outbox_default DEFAULT;
    INSERT INTO {{.Schema}}.diehard_retired (partition, state, wal_end) VALUES (old, 'detached', pg_current_wal_insert_lsn());
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION {{.Schema}}.outbox_replace_default() FROM PUBLIC;

-- With all arguments: no function of another fits better.
SELECT {{.Schema}}.outbox_create_partitions(7, 8);

-- The daily partitions and former default partitions, those that are detached included. Estimates of rows are
-- the statistics' (-1: none yet). The names are picked out before their dates are read.
CREATE VIEW {{.Schema}}.diehard_partitions AS
WITH parts AS MATERIALIZED (
    SELECT c.oid, c.relname::text AS partition, coalesce(r.state, 'attached') AS state, r.wal_end, c.reltuples,
           r.starts_at, coalesce(r.ends_at, r.changed_at) AS ends_at
    FROM pg_catalog.pg_class AS c
    LEFT JOIN {{.Schema}}.diehard_retired AS r ON r.partition = c.relname AND r.state <> 'dropped'
    WHERE c.relnamespace = (SELECT o.relnamespace FROM pg_catalog.pg_class AS o WHERE o.oid = {{.OutboxText}}::regclass) AND c.relkind = 'r'
      AND c.relname ~ '^diehard_outbox_(p[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])|d[0-9]{20})$'
      AND (r.state = 'detached' OR EXISTS (
          SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid AND i.inhparent = {{.OutboxText}}::regclass))
)
SELECT partition,
       CASE WHEN partition LIKE 'diehard\_outbox\_d%' THEN coalesce(starts_at, '2000-01-01 00:00:00+00')
            ELSE to_date(right(partition, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' END       AS starts_at,
       CASE WHEN partition LIKE 'diehard\_outbox\_d%' THEN ends_at
            ELSE (to_date(right(partition, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' END AS ends_at,
       state,
       wal_end,
       reltuples::bigint                                                            AS estimated_rows,
       pg_total_relation_size(oid::regclass)                                        AS bytes
FROM parts;
GRANT SELECT ON {{.Schema}}.diehard_partitions TO diehard_streamer;

-- What every slot that may read the outbox has confirmed; NULL when a recorded one is
-- gone, or none is recorded. PostgreSQL does not tell which publication a slot is read
-- with, so each logical slot of the database with pgoutput counts, bookmarks excepted.
CREATE FUNCTION {{.Schema}}.outbox_confirmed() RETURNS pg_lsn
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN bool_or(s.slot_name IS NOT NULL)
                 AND bool_and(r.confirmed_flush_lsn IS NOT NULL) THEN min(r.confirmed_flush_lsn) END
    FROM {{.Schema}}.diehard_slot AS s
    FULL JOIN (SELECT * FROM pg_replication_slots AS l WHERE l.database = current_database() AND l.plugin = 'pgoutput' AND NOT l.temporary
        AND NOT EXISTS (SELECT FROM {{.Schema}}.diehard_slot AS b WHERE starts_with(l.slot_name, b.slot_name || '_bm_'))) AS r
    ON r.slot_name = s.slot_name
$$;

GRANT EXECUTE ON FUNCTION {{.Schema}}.outbox_confirmed() TO diehard_streamer;

-- Moves partitions that ended more than retention ago on, oldest first, and
-- returns what it did; a call detaches or drops at most one. Where it would have
-- to wait for a lock it gives up soon (step 'busy'), so that producers do not
-- queue behind it; call it again. Partitions with rows that no slot can have
-- delivered are left alone. as_of is the time on another machine: the earlier of the two
-- clocks counts, so that one that jumps ahead retires nothing.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.outbox_retire_partitions(retention interval, as_of timestamptz DEFAULT now())
RETURNS TABLE (retired text, step text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET lock_timeout = '50ms'
AS $$
DECLARE
    p           record;
    today       timestamptz := least(now(), as_of);
    confirmed   pg_lsn := {{.Schema}}.outbox_confirmed();
    since       timestamptz;
    undelivered boolean;
BEGIN
    IF retention IS NULL OR retention < interval '1 hour' THEN
        RAISE EXCEPTION 'retention % is below one hour', retention;
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('diehard_outbox_partitions')) THEN
        RETURN; -- another streamer is at it
    END IF;
    DELETE FROM {{.Schema}}.diehard_retired WHERE state = 'dropped' AND changed_at < now() - interval '90 days';
    FOR p IN SELECT partition FROM {{.Schema}}.diehard_retired WHERE partition LIKE 'diehard\_outbox\_d%' AND state = 'detached' AND ends_at IS NULL LOOP
        EXECUTE format('UPDATE {{.Schema}}.diehard_retired SET (starts_at, ends_at) = '
            '(SELECT coalesce(min(published_at), now()), coalesce(max(published_at), now()) FROM %I.%I) WHERE partition = $1', {{.SchemaText}}, p.partition) USING p.partition;
    END LOOP;
    -- What is still to be proved (diehard_intent) may be missing in ClickHouse.
    SELECT max(s) INTO since FROM (SELECT delivered_since FROM {{.Schema}}.diehard_slot
        UNION ALL SELECT 'infinity' FROM {{.Schema}}.diehard_intent WHERE unproved_since IS NOT NULL) AS t (s);
    FOR p IN SELECT * FROM {{.Schema}}.diehard_partitions WHERE ends_at < today - retention ORDER BY ends_at LOOP
        retired := p.partition;
        IF p.starts_at < since THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I WHERE published_at < $1)', {{.SchemaText}}, p.partition) INTO undelivered USING since;
            CONTINUE WHEN undelivered;
        END IF;
        IF p.state = 'attached' THEN
            step := 'expired';
            INSERT INTO {{.Schema}}.diehard_retired (partition, state, wal_end) VALUES (p.partition, step, pg_current_wal_insert_lsn())
            ON CONFLICT (partition) DO UPDATE
            SET state = excluded.state, wal_end = excluded.wal_end, changed_at = clock_timestamp();
            RETURN NEXT;
        END IF;
        CONTINUE WHEN p.state = 'attached' OR confirmed IS NULL OR confirmed < p.wal_end;
        BEGIN
            IF p.state = 'expired' THEN
                step := 'detached';
                -- Last the lock that producers wait for; they do not need these two.
                EXECUTE format('LOCK TABLE ONLY %I.%I, ONLY {{.Schema}}.diehard_outbox_default IN ACCESS EXCLUSIVE MODE', {{.SchemaText}}, p.partition);
                EXECUTE format('ALTER TABLE {{.Schema}}.outbox DETACH PARTITION %I.%I', {{.SchemaText}}, p.partition);
                -- `streamer replay --from-table` reads it until it is dropped.
                EXECUTE format('GRANT SELECT ON %I.%I TO diehard_streamer', {{.SchemaText}}, p.partition);
            ELSE
                step := 'dropped';
                EXECUTE format('DROP TABLE %I.%I', {{.SchemaText}}, p.partition);
            END IF;
            UPDATE {{.Schema}}.diehard_retired SET state = step, wal_end = pg_current_wal_insert_lsn(), changed_at = clock_timestamp()
            WHERE partition = p.partition;
        EXCEPTION WHEN lock_not_available THEN
            step := 'busy';
        END;
        RETURN NEXT;
        RETURN; -- the end of the transaction gives the locks back
    END LOOP;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION {{.Schema}}.outbox_retire_partitions(interval, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.outbox_retire_partitions(interval, timestamptz) TO diehard_streamer;
