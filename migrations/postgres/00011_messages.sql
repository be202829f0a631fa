-- +goose Up
-- Events without a table: transactional messages in the WAL, which the streamer
-- reads if REPLICATION_MESSAGES is true.
--
-- messages:      that setting, noted by the streamer when it starts. Without a slot
--                that has it, publishing a message is refused, for it would be lost.
-- messages_from: in transactions that were committed there or later, messages are
--                events; once set it stays. A message takes a number (commit_seq)
--                like a row, so which transactions have them must never change.
ALTER TABLE streamer_slot
    ADD COLUMN messages      boolean NOT NULL DEFAULT false,
    ADD COLUMN messages_from pg_lsn;
GRANT UPDATE (messages, messages_from) ON streamer_slot TO diehard_streamer;
GRANT SELECT (messages) ON streamer_slot TO diehard_api;

-- Writes messages that are framed already, in order. The form is described in
-- shared/event/message.go.
-- +goose StatementBegin
CREATE FUNCTION publish_messages(messages text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.streamer_slot AS s WHERE s.messages) THEN
        RAISE EXCEPTION 'no streamer reads messages'
            USING HINT = 'Start the streamer with REPLICATION_MESSAGES=true first, or publish into the table.',
                  ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'diehard.event', convert_to(m, 'UTF8')) FROM unnest(publish_messages.messages) AS m;
END $$;
-- +goose StatementEnd

-- Publishes an event in the caller's transaction, like publish_event, but into the
-- WAL alone. The context is kept byte for byte. Limits are those of the outbox.
-- +goose StatementBegin
CREATE FUNCTION publish_event_message(
    event_type       text,
    event_context    json,
    environment      text        DEFAULT '',
    metadata_version bigint      DEFAULT 1,
    trace_context    text        DEFAULT NULL,
    event_date_time  timestamptz DEFAULT clock_timestamp(),
    event_id         uuid        DEFAULT gen_random_uuid()
) RETURNS uuid
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    content text := event_context;
    problem text := CASE
        WHEN num_nulls(event_type, event_context, environment, metadata_version, event_date_time, event_id) > 0
            THEN 'only trace_context may be NULL'
        WHEN octet_length(event_type) NOT BETWEEN 1 AND 255 THEN 'event_type must have 1 to 255 bytes'
        WHEN octet_length(environment) > 255 THEN 'environment must have at most 255 bytes'
        WHEN octet_length(trace_context) > 255 THEN 'trace_context must have at most 255 bytes'
        WHEN octet_length(content) > 1048576 THEN 'event_context must have at most 1048576 bytes'
        WHEN metadata_version < 0 THEN 'metadata_version must not be negative'
        WHEN event_date_time < '1900-01-01 00:00:00+00' OR event_date_time >= '2300-01-01 00:00:00+00'
            THEN 'event_date_time must be between the years 1900 and 2299'
    END;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'invalid event: %', problem USING ERRCODE = 'check_violation';
    END IF;
    PERFORM public.publish_messages(ARRAY[
        '{"v":1,"id":"' || event_id
        || '","event_type":' || to_json(event_type)
        || ',"event_date_time":"' || to_char(event_date_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"'
        || CASE WHEN environment <> '' THEN ',"environment":' || to_json(environment) ELSE '' END
        || CASE WHEN metadata_version <> 1 THEN ',"metadata_version":' || metadata_version ELSE '' END
        || CASE WHEN trace_context IS NOT NULL THEN ',"trace_context":' || to_json(trace_context) ELSE '' END
        || E'}\n' || content]);
    RETURN event_id;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION publish_messages(text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION publish_event_message(text, json, text, bigint, text, timestamptz, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publish_messages(text[]) TO diehard_api;
GRANT EXECUTE ON FUNCTION publish_event_message(text, json, text, bigint, text, timestamptz, uuid) TO diehard_api;
