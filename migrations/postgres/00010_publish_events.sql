-- +goose Up
-- An event id for events about one thing, e.g. 'order 42': random, but for the
-- last byte, which says to which shard (STREAMER_SHARD) the event belongs. Events
-- with the same key keep their order. NULL is no key.
CREATE FUNCTION event_id_for(key text) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN CASE WHEN key IS NULL THEN gen_random_uuid() ELSE (left(gen_random_uuid()::text, 34) || right(md5(key), 2))::uuid END;

-- Publishes an array of events in the caller's transaction, in order, and returns
-- their ids in that order:
--   SELECT * FROM publish_events('[{"event_type": "order_paid", "event_context": {"order": 42}}]');
-- The names are those of publish_event's parameters, with the same defaults, and
-- event_key, which is for event_id_for. A context is kept byte for byte. The ids
-- are made before the insert, because reading them back would need more than the
-- privilege to insert.
-- +goose StatementBegin
CREATE FUNCTION publish_events(events json) RETURNS SETOF uuid
LANGUAGE sql
BEGIN ATOMIC
    WITH event AS MATERIALIZED (
        SELECT coalesce(e.event_id, event_id_for(e.event_key)) AS id, e.event_type, coalesce(e.event_date_time, clock_timestamp()) AS at,
               coalesce(e.environment, '') AS environment, e.event_context, coalesce(e.metadata_version, 1) AS version, e.trace_context
        FROM json_to_recordset(publish_events.events) AS e (event_type text, event_context json, environment text,
            metadata_version bigint, trace_context text, event_date_time timestamptz, event_id uuid, event_key text)
    ), published AS (
        INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
        SELECT id, event_type, at, environment, event_context, version, trace_context FROM event
    )
    SELECT id FROM event;
END;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION publish_events(json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publish_events(json) TO diehard_api;
