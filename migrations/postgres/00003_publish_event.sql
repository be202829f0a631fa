-- +goose Up
-- Publishes an event in the caller's transaction, from any language:
--   SELECT publish_event('order_paid', '{"order": 42}');
-- The insert privilege on outbox is the caller's own. The tables are bound
-- when the function is made, whatever the caller's search_path.
-- +goose StatementBegin
CREATE FUNCTION publish_event(
    event_type       text,
    event_context    jsonb,
    environment      text        DEFAULT '',
    metadata_version bigint      DEFAULT 1,
    trace_context    text        DEFAULT NULL,
    event_date_time  timestamptz DEFAULT clock_timestamp(),
    event_id         uuid        DEFAULT gen_random_uuid()
) RETURNS uuid
LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
    VALUES (publish_event.event_id, publish_event.event_type, publish_event.event_date_time, publish_event.environment,
        publish_event.event_context::json, publish_event.metadata_version, publish_event.trace_context);
    SELECT publish_event.event_id;
END;
-- +goose StatementEnd
