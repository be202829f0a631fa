-- +goose Up
-- Retention: daily partitions of the outbox that are older than wanted are
-- dropped, once every streamer has confirmed all of their rows. No row is
-- deleted, so there are no dead tuples.
--
-- A partition goes in three steps, each in a transaction of its own:
--   expired:  it is old enough. Remember where the WAL ends.
--   detached: every slot has confirmed that place. Take it out of the outbox,
--             and remember again where the WAL ends.
--   dropped:  every slot has confirmed the second place, too.
-- The second place is what counts: DETACH waits for all that wrote to the
-- partition, and nothing can write to it afterwards (a transaction that began
-- when its day was today finds outbox_default). So every row it will ever have
-- was committed before that place in the WAL. The first place only keeps
-- partitions where queries find them while a streamer is behind.

-- Rows created since then were committed after the slot was made, or have been
-- replayed. `streamer replay --from-table` moves it back.
ALTER TABLE streamer_slot ADD COLUMN delivered_since timestamptz NOT NULL DEFAULT now();
UPDATE streamer_slot SET delivered_since = created_at;
GRANT UPDATE (delivered_since) ON streamer_slot TO diehard_streamer;

-- Partitions on their way out, and those that have gone.
CREATE TABLE outbox_retired (
    partition   text        PRIMARY KEY,
    state       text        NOT NULL CHECK (state IN ('expired', 'detached', 'dropped')),
    wal_end     pg_lsn      NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON outbox_retired TO diehard_streamer;

-- The daily partitions, those that are detached included. Estimates of rows are
-- the statistics' (-1: none yet). The names are picked out before their dates are read.
CREATE VIEW outbox_partitions AS
WITH parts AS MATERIALIZED (
    SELECT c.oid, c.relname::text AS partition, coalesce(r.state, 'attached') AS state, r.wal_end, c.reltuples
    FROM pg_class AS c
    LEFT JOIN outbox_retired AS r ON r.partition = c.relname AND r.state <> 'dropped'
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
      AND c.relname ~ '^outbox_p[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])$'
      AND (r.state = 'detached' OR EXISTS (
          SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid AND i.inhparent = 'public.outbox'::regclass))
)
SELECT partition,
       to_date(right(partition, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'       AS starts_at,
       (to_date(right(partition, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS ends_at,
       state,
       wal_end,
       reltuples::bigint                                                            AS estimated_rows,
       pg_total_relation_size(oid::regclass)                                                  AS bytes
FROM parts;
GRANT SELECT ON outbox_partitions TO diehard_streamer;

-- What every known slot has confirmed; NULL when one is gone, or none is known.
CREATE FUNCTION outbox_confirmed() RETURNS pg_lsn
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN count(*) > 0 AND bool_and(r.confirmed_flush_lsn IS NOT NULL) THEN min(r.confirmed_flush_lsn) END
    FROM public.streamer_slot AS s LEFT JOIN pg_replication_slots AS r ON r.slot_name = s.slot_name
$$;

-- Moves partitions that ended more than retention ago on, oldest first, and
-- returns what it did; a call detaches or drops at most one. Where it would have
-- to wait for a lock it gives up soon (step 'busy'), so that producers do not
-- queue behind it; call it again. Partitions with rows that no slot can have
-- delivered are left alone.
-- +goose StatementBegin
CREATE FUNCTION outbox_retire_partitions(retention interval)
RETURNS TABLE (retired text, step text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    p           record;
    confirmed   pg_lsn := public.outbox_confirmed();
    since       timestamptz;
    undelivered boolean;
BEGIN
    IF retention < interval '1 hour' THEN
        RAISE EXCEPTION 'retention % is below one hour', retention;
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox_retire_partitions')) THEN
        RETURN; -- another streamer is at it
    END IF;
    DELETE FROM public.outbox_retired WHERE state = 'dropped' AND changed_at < now() - interval '90 days';
    SELECT max(delivered_since) INTO since FROM public.streamer_slot;
    FOR p IN SELECT * FROM public.outbox_partitions WHERE ends_at < now() - retention ORDER BY ends_at LOOP
        retired := p.partition;
        IF p.starts_at < since THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE created_at < $1)', p.partition) INTO undelivered USING since;
            CONTINUE WHEN undelivered;
        END IF;
        IF p.state = 'attached' THEN
            step := 'expired';
            INSERT INTO public.outbox_retired (partition, state, wal_end) VALUES (p.partition, step, pg_current_wal_insert_lsn())
            ON CONFLICT (partition) DO UPDATE
            SET state = excluded.state, wal_end = excluded.wal_end, changed_at = clock_timestamp();
            RETURN NEXT;
        END IF;
        CONTINUE WHEN p.state = 'attached' OR confirmed IS NULL OR confirmed < p.wal_end;
        BEGIN
            IF p.state = 'expired' THEN
                step := 'detached';
                -- Last the lock that producers wait for; they do not need these two.
                EXECUTE format('LOCK TABLE ONLY public.%I, ONLY public.outbox_default IN ACCESS EXCLUSIVE MODE', p.partition);
                EXECUTE format('ALTER TABLE public.outbox DETACH PARTITION public.%I', p.partition);
                -- `streamer replay --from-table` reads it until it is dropped.
                EXECUTE format('GRANT SELECT ON public.%I TO diehard_streamer', p.partition);
            ELSE
                step := 'dropped';
                EXECUTE format('DROP TABLE public.%I', p.partition);
            END IF;
            UPDATE public.outbox_retired SET state = step, wal_end = pg_current_wal_insert_lsn(), changed_at = clock_timestamp()
            WHERE partition = p.partition;
        EXCEPTION WHEN lock_not_available THEN
            step := 'busy';
        END;
        RETURN NEXT;
        RETURN; -- the end of the transaction gives the locks back
    END LOOP;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION outbox_retire_partitions(interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox_retire_partitions(interval) TO diehard_streamer;

-- `streamer doctor` tells whether migrations are missing.
GRANT SELECT ON diehard_migrations TO diehard_streamer;
