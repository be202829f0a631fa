-- +goose Up
-- A JSON string that is an object or an array itself: the work of a program that encodes
-- what its library encodes again. Counted by the streamer, and refused where the
-- setting diehard.refuse_double_encoding is on, for a session, a role or a database:
--   ALTER DATABASE shop SET diehard.refuse_double_encoding = on;
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_refuses_encoding(context json) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT coalesce(nullif(current_setting('diehard.refuse_double_encoding', true), ''), 'off')::boolean THEN
        RETURN false;
    END IF;
    BEGIN
        RETURN json_typeof((context #>> '{}')::json) IN ('object', 'array') IS TRUE;
    EXCEPTION WHEN OTHERS THEN
        RETURN false; -- not JSON
    END;
END $$;
-- +goose StatementEnd

-- What is wrong with an event, or NULL: the rules of every way to publish. A name is that of
-- publish_event's parameter.
CREATE FUNCTION {{.Schema}}.diehard_problem(
    event_id uuid, event_type text, event_date_time timestamptz, environment text, event_context json, metadata_version bigint,
    trace_context text
) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN event_type IS NULL THEN 'event_type is missing'
    WHEN octet_length(event_type) NOT BETWEEN 1 AND 255 THEN 'event_type must have 1 to 255 bytes'
    WHEN event_type ~ '^ | $|[\u0001-\u001f\u007f-\u009f]' THEN 'event_type must not have control characters, or spaces at its ends'
    WHEN event_context IS NULL THEN 'event_context is missing'
    WHEN octet_length(event_context::text) > 1048576 THEN 'event_context must have at most 1048576 bytes'
    WHEN json_typeof(event_context) = 'string' AND {{.Schema}}.diehard_refuses_encoding(event_context)
        THEN 'event_context is JSON encoded twice, a string instead of an object or array'
    WHEN octet_length(environment) > 255 THEN 'environment must have at most 255 bytes'
    WHEN environment ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'environment must not have control characters'
    WHEN metadata_version < 1 THEN 'metadata_version must be 1 or more'
    WHEN event_date_time < '1900-01-01 00:00:00+00' OR event_date_time >= '2300-01-01 00:00:00+00'
        THEN 'event_date_time must be between the years 1900 and 2299'
    WHEN event_id = '00000000-0000-0000-0000-000000000000' THEN 'event_id must not be the nil UUID'
    WHEN trace_context NOT LIKE '00-________________________________-________________-__'
        OR trace_context !~ '^00-0*[1-9a-f][0-9a-f]*-0*[1-9a-f][0-9a-f]*-[0-9a-f]*$'
        THEN 'trace_context must be a W3C traceparent of version 00'
END;

-- Whether an event keeps the rules for certain, as nearly every event does. PostgreSQL
-- prepares an expression anew for each transaction, and that costs more than to evaluate
-- it, so there are few operators; nor does a regular expression count, which costs ten times
-- as much. What is not plain, such as a JSON string, is put to the rules.
CREATE FUNCTION {{.Schema}}.diehard_is_plain(
    id uuid, event_type text, event_date_time timestamptz, environment text, event_context json, metadata_version bigint,
    trace_context text, published_by text
) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN event_type ~ '^[^\u0001-\u0020\u007f-\u009f]( ?[^\u0001-\u0020\u007f-\u009f])*$'
    AND environment !~ '[\u0001-\u001f\u007f-\u009f]'
    AND published_by <> ''
    AND octet_length(event_type || environment || published_by) <= 255
    -- What is stored compressed has at most 255 times its size, and to look at the text costs most.
    AND pg_column_size(event_context) <= 4000 AND json_typeof(event_context) <> 'string'
    AND event_date_time >= '1900-01-01 00:00:00+00' AND event_date_time < '2300-01-01 00:00:00+00'
    AND metadata_version >= 1
    AND id <> '00000000-0000-0000-0000-000000000000'
    AND (trace_context IS NULL OR trace_context LIKE '00-________________________________-________________-__'
        AND trace_context ~ '^00-0*[1-9a-f][0-9a-f]*-0*[1-9a-f][0-9a-f]*-[0-9a-f]*$');

-- The constraint of the outbox. One function costs a third of a constraint for each
-- rule, which every statement parses anew. Its error names the field and not a partition,
-- as that of NOT NULL would, so NULL is its matter as well. In environment and metadata_version,
-- where libraries write it for a field without a value, NULL is read as the default. It does
-- not set search_path, which costs: every name in it has a schema.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_check_event(
    id uuid, event_type text, event_date_time timestamptz, environment text, event_context json, metadata_version bigint,
    trace_context text, published_by text
) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    problem pg_catalog.text;
BEGIN
    IF {{.Schema}}.diehard_is_plain(id, event_type, event_date_time, environment, event_context, metadata_version, trace_context, published_by) THEN
        RETURN true;
    END IF;
    problem := coalesce(
        {{.Schema}}.diehard_problem(id, event_type, event_date_time, environment, event_context, metadata_version, trace_context),
        CASE WHEN id IS NULL THEN 'id must not be NULL: leave it out, or say DEFAULT'
             WHEN event_date_time IS NULL THEN 'event_date_time must not be NULL: leave it out, or say DEFAULT'
             WHEN published_by IS NULL OR published_by OPERATOR(pg_catalog.=) '' OR pg_catalog.octet_length(published_by) OPERATOR(pg_catalog.>) 255
                 THEN 'published_by must have 1 to 255 bytes' END);
    IF problem IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'invalid event: %', problem USING ERRCODE = 'check_violation', CONSTRAINT = 'outbox_event',
        SCHEMA = {{.SchemaText}}, TABLE = 'outbox',
        COLUMN = pg_catalog.replace(pg_catalog.split_part(problem, ' ', 1), 'event_id', 'id');
END $$;
-- +goose StatementEnd

-- The outbox is append-only: the streamer reads inserts from the WAL and
-- nothing updates or deletes a row. Old rows leave with their partition, which
-- costs no dead tuples. There is no index, because nothing looks rows up.
-- event_context is json and not jsonb: it keeps the published bytes as they
-- are, and the walsender need not turn it into text again.
CREATE TABLE {{.Schema}}.outbox (
    id               uuid        DEFAULT gen_random_uuid(),
    event_type       text,
    event_date_time  timestamptz DEFAULT clock_timestamp(),
    environment      text        DEFAULT '',
    event_context    json,
    metadata_version bigint      DEFAULT 1,
    trace_context    text,
    published_by     text        DEFAULT session_user,
    published_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT outbox_event CHECK ({{.Schema}}.diehard_check_event(
        id, event_type, event_date_time, environment, event_context, metadata_version, trace_context, published_by))
) PARTITION BY RANGE (published_at);

COMMENT ON TABLE {{.Schema}}.outbox IS 'Events on their way to ClickHouse. Insert only; the WAL is the queue.';
COMMENT ON COLUMN {{.Schema}}.outbox.event_context IS 'What happened, as JSON of at most 1 MiB. Arrives byte for byte.';
COMMENT ON COLUMN {{.Schema}}.outbox.trace_context IS 'W3C traceparent of the request that caused the event.';
COMMENT ON COLUMN {{.Schema}}.outbox.published_by IS 'Login of the session that published; through the api its caller. Not for producers to set.';
COMMENT ON COLUMN {{.Schema}}.outbox.published_at IS 'Server time of the transaction; decides the partition. Not for producers to set.';

-- Takes rows of days that have no partition, so that an insert never fails.
CREATE TABLE {{.Schema}}.diehard_outbox_default PARTITION OF {{.Schema}}.outbox DEFAULT;

-- For writers: takes an insert like the outbox and returns the row, as ORMs want
-- it (INSERT … RETURNING *), and nothing can be read through it.
CREATE VIEW {{.Schema}}.diehard_events AS
SELECT id, event_type, event_date_time, environment, event_context, metadata_version, trace_context
FROM {{.Schema}}.outbox
WHERE false;

COMMENT ON VIEW {{.Schema}}.diehard_events IS 'The outbox for writers: INSERT … RETURNING works, SELECT returns nothing.';

-- Producers write events and never read, change or backdate (published_at) them.
GRANT INSERT (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
    ON {{.Schema}}.outbox TO diehard_producer;
GRANT INSERT, SELECT ON {{.Schema}}.diehard_events TO diehard_producer;
GRANT INSERT (published_by) ON {{.Schema}}.outbox TO diehard_api;
-- The right to read the outbox is not enough to look into the default partition alone.
GRANT SELECT ON {{.Schema}}.outbox, {{.Schema}}.diehard_outbox_default TO diehard_streamer;

-- Before the slot, always: what is written before a publication exists never
-- reaches a slot that uses it. Via the root, so that partitions may come and go.
CREATE PUBLICATION {{.Publication}} FOR TABLE {{.Schema}}.outbox
    WITH (publish = 'insert', publish_via_partition_root = true);

-- Both programs ask whether migrations are missing.
GRANT SELECT ON {{.Schema}}.diehard_outbox_version TO diehard_api, diehard_streamer;
