-- +goose Up
-- The outbox is append-only: the streamer reads inserts from the WAL and
-- nothing updates or deletes a row. Old rows leave with their partition, which
-- costs no dead tuples. There is no index, because nothing looks rows up.
-- event_context is json and not jsonb: it keeps the published bytes as they
-- are, and the walsender need not turn it into text again.
CREATE TABLE outbox (
    id               uuid        NOT NULL DEFAULT gen_random_uuid(),
    event_type       text        NOT NULL CHECK (octet_length(event_type) BETWEEN 1 AND 255),
    event_date_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
    environment      text        NOT NULL DEFAULT '' CHECK (octet_length(environment) <= 255),
    event_context    json        NOT NULL CHECK (octet_length(event_context::text) <= 1048576),
    metadata_version bigint      NOT NULL DEFAULT 1 CHECK (metadata_version >= 0),
    trace_context    text,
    created_at       timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (created_at);

COMMENT ON TABLE outbox IS 'Events on their way to ClickHouse. Insert only; the WAL is the queue.';
COMMENT ON COLUMN outbox.event_context IS 'What happened, as JSON of at most 1 MiB. Arrives byte for byte.';
COMMENT ON COLUMN outbox.trace_context IS 'W3C traceparent of the request that caused the event.';
COMMENT ON COLUMN outbox.created_at IS 'Server time of the transaction; decides the partition. Not for producers to set.';

-- Takes rows of days that have no partition, so that an insert never fails.
CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;

-- Makes the daily partitions (UTC) from today to days_ahead days ahead and
-- returns how many are new. Safe to call as often as you like.
-- A day of which rows already lie in outbox_default keeps its rows there:
-- moving them would publish them a second time.
-- Here and in all our functions: what is in schema public is named with it, and
-- public is not searched, or whoever may create there could lend us a function.
-- +goose StatementBegin
CREATE FUNCTION outbox_create_partitions(days_ahead int DEFAULT 7) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    day   date;
    part  text;
    made  int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('outbox_create_partitions'));
    FOR day IN SELECT today + n FROM generate_series(0, days_ahead) AS n LOOP
        part := 'outbox_p' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('public.' || part) IS NOT NULL;
        BEGIN
            -- ATTACH, unlike CREATE ... PARTITION OF, lets inserts go on.
            EXECUTE format('CREATE TABLE public.%I (LIKE public.outbox INCLUDING ALL)', part);
            EXECUTE format('ALTER TABLE public.outbox ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                part, day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
            made := made + 1;
        EXCEPTION WHEN check_violation THEN
            RAISE NOTICE 'no partition for % (UTC): outbox_default already has rows of that day', day;
        END;
    END LOOP;
    RETURN made;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION outbox_create_partitions(int) FROM PUBLIC;
SELECT outbox_create_partitions(7);
