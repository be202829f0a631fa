-- +goose Up
-- Events without a table: transactional messages in the WAL, which the streamer
-- reads if REPLICATION_MESSAGES is true.
{{- define "message"}}pg_logical_emit_message(true, 'diehard.event', convert_to(
        '{"v":1,"id":"' || event_id
        || '","event_type":' || to_json(event_type)
        || ',"event_date_time":"' || to_char(event_date_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        || '","published_by":' || to_json(session_user::text)
        || CASE WHEN environment <> '' THEN ',"environment":' || to_json(environment) ELSE '' END
        || CASE WHEN metadata_version <> 1 THEN ',"metadata_version":' || metadata_version ELSE '' END
        || CASE WHEN trace_context IS NOT NULL THEN ',"trace_context":' || to_json(trace_context) ELSE '' END
        || E'}\n' || event_context, 'UTF8')){{end}}
{{- define "reader"}}IF NOT EXISTS (SELECT FROM {{.Schema}}.diehard_slot AS s WHERE s.messages) THEN
        RAISE EXCEPTION 'no streamer reads messages'
            USING HINT = 'Start the streamer with REPLICATION_MESSAGES=true first, or publish into the table.',
                  ERRCODE = 'object_not_in_prerequisite_state';
    END IF;{{end}}

-- Publishes an event in the caller's transaction, like publish_event, but into the
-- WAL alone. The limits are those of the outbox. The form of a message is described in
-- shared/event/message.go. The function runs with the owner's rights: producers
-- need none on pg_logical_emit_message, with which anything could be published.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.publish_event_message(
    event_type       text,
    event_context    json,
    environment      text        DEFAULT '',
    metadata_version bigint      DEFAULT 1,
    trace_context    text        DEFAULT NULL,
    event_date_time  timestamptz DEFAULT clock_timestamp(),
    event_id         uuid        DEFAULT NULL,
    event_key        text        DEFAULT NULL,
    idempotency_key  text        DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
    claimed uuid;
    written pg_lsn;
BEGIN
    event_id := coalesce(event_id, {{.Schema}}.event_id_for(event_key));
    event_date_time := coalesce(event_date_time, clock_timestamp());
    environment := coalesce(environment, '');
    metadata_version := coalesce(metadata_version, 1);
    IF {{.Schema}}.diehard_is_plain(event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context, 'x')
        IS NOT TRUE THEN
        problem := {{.Schema}}.diehard_problem(event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'invalid event: %', problem USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    {{template "reader" .}}
    IF idempotency_key IS NOT NULL THEN
        claimed := {{.Schema}}.diehard_claim_key(idempotency_key, event_id, event_type, event_context::text);
        IF claimed IS NOT NULL THEN
            RETURN claimed;
        END IF;
    END IF;
    written := {{template "message"}}; -- an assignment costs less than PERFORM
    RETURN event_id;
END $$;
-- +goose StatementEnd

-- What the Go package publishes many events with, in order: the function above looks up for
-- each of them what holds for all. An empty trace or key is none.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_publish_messages(
    ids uuid[], types text[], times timestamptz[], environments text[], contexts json[], versions bigint[], traces text[],
    keys text[]
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    written bigint;
    first   text;
BEGIN
    {{template "reader" .}}
    SELECT count(CASE
            WHEN problem IS NOT NULL THEN NULL
            WHEN CASE WHEN key IS NULL THEN true
                ELSE {{.Schema}}.diehard_claim_key(key, event_id, event_type, event_context::text) IS NULL END THEN {{template "message"}}
            END),
        min(format('%s%s', lpad((n - 1)::text, 10), problem)) FILTER (WHERE problem IS NOT NULL)
    INTO written, first
    FROM (
        SELECT m.*, CASE
            WHEN {{.Schema}}.diehard_is_plain(event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context, 'x')
                THEN NULL
            ELSE coalesce({{.Schema}}.diehard_problem(
                event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context),
                CASE WHEN event_id IS NULL THEN 'event_id is missing' WHEN event_date_time IS NULL THEN 'event_date_time is missing' END)
            END AS problem
        FROM (
            SELECT event_id, event_type, event_date_time, environment, event_context, metadata_version, NULLIF(trace, '') AS trace_context,
                NULLIF(idempotency_key, '') AS key, n
            FROM unnest(ids, types, times, environments, contexts, versions, traces, keys) WITH ORDINALITY
                AS u (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace, idempotency_key, n)
        ) AS m
        OFFSET 0 -- once: what is above asks for it often
    ) AS event;
    IF first IS NOT NULL THEN
        RAISE EXCEPTION 'invalid events: events[%].%', left(first, 10)::bigint, substr(first, 11) USING ERRCODE = 'check_violation';
    END IF;
    RETURN written;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION {{.Schema}}.diehard_publish_messages(uuid[], text[], timestamptz[], text[], json[], bigint[], text[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_publish_messages(uuid[], text[], timestamptz[], text[], json[], bigint[], text[], text[]) TO diehard_producer;

-- Writes something into the WAL, for a position behind which nothing older is: with the
-- owner's rights, so that the streamer may not write messages that are events.
CREATE FUNCTION {{.Schema}}.diehard_mark_wal() RETURNS pg_lsn
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_logical_emit_message(true, 'diehard', 'mark') $$;
REVOKE ALL ON FUNCTION {{.Schema}}.diehard_mark_wal() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_mark_wal() TO diehard_streamer;
{{range .JSONTypes}}
CREATE FUNCTION {{$.Schema}}.publish_event_message(
    event_type text, event_context {{.}}, environment text DEFAULT '', metadata_version bigint DEFAULT 1, trace_context text DEFAULT NULL,
    event_date_time timestamptz DEFAULT clock_timestamp(), event_id uuid DEFAULT NULL, event_key text DEFAULT NULL, idempotency_key text DEFAULT NULL
) RETURNS uuid
LANGUAGE sql
RETURN {{$.Schema}}.publish_event_message(event_type, event_context::json, environment, metadata_version, trace_context, event_date_time,
    event_id, event_key, idempotency_key);
{{end}}{{range .AllJSONTypes}}
REVOKE ALL ON FUNCTION {{$.Schema}}.publish_event_message(text, {{.}}, text, bigint, text, timestamptz, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{$.Schema}}.publish_event_message(text, {{.}}, text, bigint, text, timestamptz, uuid, text, text) TO diehard_producer;
{{end}}
