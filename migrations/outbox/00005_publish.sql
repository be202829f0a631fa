-- +goose Up
-- Publishing from any language, in the caller's transaction. Each function takes
-- its JSON as json, jsonb or text; what has no type (a literal, a driver's parameter) is
-- text. json and text keep the bytes; jsonb arrives as PostgreSQL writes it.
-- The functions run with the owner's rights: a caller needs membership in
-- diehard_producer and nothing else.
{{- define "fields"}}'{event_type,event_context,environment,metadata_version,trace_context,event_date_time,event_id,event_key,idempotency_key}'{{end}}

-- An event id for events about one thing, e.g. 'order 42': random, but for the
-- last byte, which says to which shard (STREAMER_SHARD) the event belongs. Events
-- with the same key keep their order. NULL is no key.
CREATE FUNCTION {{.Schema}}.event_id_for(key text) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN CASE WHEN key IS NULL THEN gen_random_uuid() ELSE (left(gen_random_uuid()::text, 34) || right(md5(key), 2))::uuid END;

-- Keys of publish_event(..., idempotency_key => ...). Kept for at least a day.
CREATE TABLE {{.Schema}}.diehard_published_keys (
    key        bytea       PRIMARY KEY CHECK (octet_length(key) = 32), -- SHA-256 of login and key
    event_id   uuid        NOT NULL,
    content    bytea       NOT NULL CHECK (octet_length(content) = 32), -- SHA-256 of event_type and event_context
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX diehard_published_keys_created_at ON {{.Schema}}.diehard_published_keys USING brin (created_at);

-- Deletes keys that are older than a day, at most 10,000, and returns how many.
CREATE FUNCTION {{.Schema}}.diehard_delete_keys() RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH old AS (
        SELECT k.key FROM {{.Schema}}.diehard_published_keys AS k
        WHERE k.created_at < now() - interval '1 day' LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM {{.Schema}}.diehard_published_keys AS k USING old WHERE k.key = old.key RETURNING 1
    )
    SELECT count(*) FROM deleted
$$;

-- Records the key for an event and returns the id of the event that had it before, or
-- NULL if the key is new. A transaction that has just used the key is waited for.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_claim_key(idempotency_key text, id uuid, event_type text, event_context text) RETURNS uuid
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hash   bytea := sha256(convert_to(length(session_user) || ' ' || session_user || ' ' || idempotency_key, 'UTF8'));
    digest bytea := sha256(convert_to(length(event_type) || ' ' || event_type || ' ' || event_context, 'UTF8'));
    known  record;
BEGIN
    IF octet_length(idempotency_key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'invalid event: idempotency_key must have 1 to 255 bytes' USING ERRCODE = 'check_violation';
    END IF;
    IF idempotency_key ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RAISE EXCEPTION 'invalid event: idempotency_key must not have control characters' USING ERRCODE = 'check_violation';
    END IF;
    LOOP
        INSERT INTO {{.Schema}}.diehard_published_keys (key, event_id, content) VALUES (hash, id, digest) ON CONFLICT (key) DO NOTHING;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        SELECT k.event_id, k.content INTO known FROM {{.Schema}}.diehard_published_keys AS k WHERE k.key = hash;
        EXIT WHEN FOUND; -- or it was deleted in between
    END LOOP;
    IF known.content <> digest THEN
        RAISE EXCEPTION 'idempotency_key was used for another event' USING ERRCODE = 'unique_violation',
            HINT = 'For a day a key stands for one event_type and event_context: choose another key for another event.';
    END IF;
    RETURN known.event_id;
END $$;
-- +goose StatementEnd

-- Publishes an event and returns its id:
--   SELECT publish_event('order_paid', '{"order": 42}');
-- NULL for an optional argument is its default. With an idempotency_key that the same
-- login has used within a day for the same event nothing is published, and the id
-- is the first one's.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.publish_event(
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
    claimed uuid;
BEGIN
    event_id := coalesce(event_id, {{.Schema}}.event_id_for(event_key));
    IF idempotency_key IS NOT NULL THEN
        IF event_type IS NULL OR event_context IS NULL THEN -- the outbox says so, but the key is written first
            RAISE EXCEPTION 'invalid event: % is missing', CASE WHEN event_type IS NULL THEN 'event_type' ELSE 'event_context' END
                USING ERRCODE = 'check_violation';
        END IF;
        claimed := {{.Schema}}.diehard_claim_key(idempotency_key, event_id, event_type, event_context::text);
        IF claimed IS NOT NULL THEN
            RETURN claimed;
        END IF;
    END IF;
    INSERT INTO {{.Schema}}.outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
    VALUES (event_id, event_type, coalesce(event_date_time, clock_timestamp()), coalesce(environment, ''), event_context,
        coalesce(metadata_version, 1), trace_context);
    RETURN event_id;
END $$;
-- +goose StatementEnd
{{range .JSONTypes}}
CREATE FUNCTION {{$.Schema}}.publish_event(
    event_type text, event_context {{.}}, environment text DEFAULT '', metadata_version bigint DEFAULT 1, trace_context text DEFAULT NULL,
    event_date_time timestamptz DEFAULT clock_timestamp(), event_id uuid DEFAULT NULL, event_key text DEFAULT NULL, idempotency_key text DEFAULT NULL
) RETURNS uuid
LANGUAGE sql
RETURN {{$.Schema}}.publish_event(event_type, event_context::json, environment, metadata_version, trace_context, event_date_time,
    event_id, event_key, idempotency_key);
{{end}}
-- Raises what is wrong with the first event of an array that publish_events does not take, or
-- returns: what looks at each field of each event costs more than to publish it.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_refuse_events(events json) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    texts   text[] := '{event_type,environment,trace_context,event_date_time,event_id,event_key,idempotency_key}';
    fields  text[] := {{template "fields"}};
    element record;
    field   text;
    detail  text;
BEGIN
    FOR element IN
        SELECT a.n - 1 AS n, p.problem
        FROM json_array_elements(events) WITH ORDINALITY AS a (event, n),
            json_to_record(a.event) AS f (event_type text, environment text, metadata_version bigint, trace_context text,
                event_date_time timestamptz, event_id uuid, idempotency_key text),
            LATERAL (SELECT coalesce(
                (SELECT format(CASE WHEN k.name <> ALL (fields) THEN '.%I is not a field of an event'
                    WHEN count(*) > 1 THEN '.%I is given twice'
                    WHEN k.name = 'metadata_version' THEN '.%I must be a number' ELSE '.%I must be a string' END, left(k.name, 40))
                 FROM json_each(a.event) AS k (name, value)
                 GROUP BY k.name HAVING count(*) > 1 OR k.name <> ALL (fields)
                    OR k.name = ANY (texts) AND min(json_typeof(k.value)) NOT IN ('string', 'null')
                    OR k.name = 'metadata_version' AND min(json_typeof(k.value)) NOT IN ('number', 'null') LIMIT 1),
                CASE WHEN octet_length(f.idempotency_key) NOT BETWEEN 1 AND 255 THEN '.idempotency_key must have 1 to 255 bytes'
                    WHEN f.idempotency_key ~ '[\u0001-\u001f\u007f-\u009f]' THEN '.idempotency_key must not have control characters' END,
                '.' || {{.Schema}}.diehard_problem(f.event_id, f.event_type, f.event_date_time, f.environment, a.event -> 'event_context',
                    f.metadata_version, f.trace_context)) AS problem) AS p
        WHERE p.problem IS NOT NULL ORDER BY a.n LIMIT 1
    LOOP
        RAISE EXCEPTION 'invalid events: events[%]%', element.n, element.problem USING ERRCODE = 'check_violation';
    END LOOP;
EXCEPTION WHEN data_exception OR invalid_parameter_value THEN
    -- An element that cannot be read. Which one, and what of it?
    FOR element IN SELECT a.event, a.n - 1 AS n FROM json_array_elements(events) WITH ORDINALITY AS a (event, n) LOOP
        IF json_typeof(element.event) <> 'object' THEN
            RAISE EXCEPTION 'invalid events: events[%]: must be an object', element.n USING ERRCODE = 'check_violation';
        END IF;
        BEGIN
            field := ''; -- all strings are decoded
            PERFORM json_object_keys(element.event);
            field := 'event_id';
            PERFORM (element.event ->> field)::uuid;
            field := 'event_date_time';
            PERFORM (element.event ->> field)::timestamptz;
            field := 'metadata_version';
            PERFORM (element.event ->> field)::bigint;
        EXCEPTION WHEN OTHERS THEN
            IF field = '' THEN
                GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
                RAISE EXCEPTION 'invalid events: events[%]: %', element.n, SQLERRM USING ERRCODE = SQLSTATE, DETAIL = detail,
                    HINT = 'No text can hold the character U+0000 or half of a surrogate pair. In event_context publish_event takes their escapes.';
            END IF;
            RAISE EXCEPTION 'invalid events: events[%].%: %', element.n, field, SQLERRM USING ERRCODE = SQLSTATE;
        END;
    END LOOP;
    RAISE;
END $$;
-- +goose StatementEnd

-- Publishes an array of events, in order, and returns their ids in that order:
--   SELECT * FROM publish_events('[{"event_type": "order_paid", "event_context": {"order": 42}}]');
-- An array of PostgreSQL, whose elements are JSON, is one too, as drivers make it of a list.
-- The names are those of publish_event's parameters, with the same defaults. A field that
-- has another name, or is given twice, is refused. A context is kept byte for byte.
-- All is read before anything is written, so that an error names the event.
--
-- To look at the names of the fields costs as much as to insert the event. The fields that are
-- read, written as JSON again, are never longer than what they were read from: if they are
-- as long as the event, nothing else is in it. If not, it may have a blank. (There is always a
-- context: an event without one is refused anyway.)
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.publish_events(events json) RETURNS SETOF uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e record;
BEGIN
    IF json_typeof(events) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'invalid events: must be an array of objects' USING ERRCODE = 'check_violation';
    END IF;
    BEGIN
        SELECT array_agg(ROW(v.id, v.type, v.at, v.environment, v.context, v.version, v.trace)::{{.Schema}}.diehard_events) AS events,
               array_agg(v.key) AS keys,
               bool_and((v.typed AND CASE
                   WHEN {{.Schema}}.diehard_is_plain(v.id, v.type, v.at, v.environment, v.context, v.version, v.trace, 'x') THEN true
                   ELSE {{.Schema}}.diehard_problem(v.id, v.type, v.at, v.environment, v.context, v.version, v.trace) IS NULL
                   END AND (octet_length(v.key) BETWEEN 1 AND 255 AND v.key !~ '[\u0001-\u001f\u007f-\u009f]') IS NOT FALSE AND CASE
                   WHEN octet_length(v.written) = octet_length(v.event::text) THEN true
                   ELSE NOT EXISTS (
                       SELECT FROM json_object_keys(v.event) AS k (name) GROUP BY k.name HAVING count(*) > 1 OR k.name <> ALL ({{template "fields"}}))
                   END) IS TRUE) AS valid
        INTO e
        FROM (
            SELECT a.event, coalesce((f.event_id #>> '{}')::uuid, {{.Schema}}.event_id_for(f.event_key #>> '{}')) AS id, f.event_type #>> '{}' AS type,
                coalesce((f.event_date_time #>> '{}')::timestamptz, clock_timestamp()) AS at, coalesce(f.environment #>> '{}', '') AS environment,
                -- a string is escaped anew, and null is none
                CASE WHEN json_typeof(f.event_context) <> 'string' THEN f.event_context ELSE a.event -> 'event_context' END AS context,
                coalesce((f.metadata_version #>> '{}')::bigint, 1) AS version, f.trace_context #>> '{}' AS trace, f.idempotency_key #>> '{}' AS key,
                -- what is no string is no trace_context either
                f.event_type::text LIKE '"%' AND (f.environment::text LIKE '"%') IS NOT FALSE
                    AND (f.event_date_time::text LIKE '"%') IS NOT FALSE AND (f.event_id::text LIKE '"%') IS NOT FALSE
                    AND (f.event_key::text LIKE '"%') IS NOT FALSE AND (f.idempotency_key::text LIKE '"%') IS NOT FALSE
                    AND (f.metadata_version::text LIKE '"%') IS NOT TRUE AS typed,
                concat('"event_type":' || f.event_type::text || ',', '"event_context":', f.event_context, ',',
                    '"environment":' || f.environment::text || ',', '"metadata_version":' || f.metadata_version::text || ',',
                    '"trace_context":' || f.trace_context::text || ',', '"event_date_time":' || f.event_date_time::text || ',',
                    '"event_id":' || f.event_id::text || ',', '"event_key":' || f.event_key::text || ',',
                    '"idempotency_key":' || f.idempotency_key::text || ',', '}') AS written -- the last comma stands for the brace
            FROM json_array_elements(events) AS a (event),
                json_to_record(a.event) AS f (event_type json, event_context json, environment json, metadata_version json, trace_context json,
                    event_date_time json, event_id json, event_key json, idempotency_key json)
            OFFSET 0 -- once: what is above asks for them often
        ) AS v;
    EXCEPTION WHEN data_exception OR invalid_parameter_value THEN
        PERFORM {{.Schema}}.diehard_refuse_events(events);
        RAISE;
    END;
    IF e.valid IS NOT TRUE THEN
        PERFORM {{.Schema}}.diehard_refuse_events(events);
    END IF;
    RETURN QUERY
    WITH event AS MATERIALIZED (
        SELECT u.*, CASE WHEN u.key IS NOT NULL THEN {{.Schema}}.diehard_claim_key(u.key, u.id, u.type, u.context::text) END AS claimed
        FROM ROWS FROM (unnest(e.events), unnest(e.keys)) AS u (id, type, at, environment, context, version, trace, key)
    ), published AS (
        INSERT INTO {{.Schema}}.outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
        SELECT id, type, at, environment, context, version, trace FROM event WHERE claimed IS NULL
    )
    SELECT coalesce(claimed, id) FROM event;
END $$;
-- +goose StatementEnd
{{range .JSONTypes}}
CREATE FUNCTION {{$.Schema}}.publish_events(events {{.}}) RETURNS SETOF uuid
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT {{$.Schema}}.publish_events($1::json) $$;
{{end}}
CREATE FUNCTION {{.Schema}}.publish_events(events anyarray) RETURNS SETOF uuid
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT {{.Schema}}.publish_events(array_to_json($1::json[])) $$;
REVOKE ALL ON FUNCTION {{.Schema}}.publish_events(anyarray) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.publish_events(anyarray) TO diehard_producer;

REVOKE ALL ON FUNCTION {{.Schema}}.diehard_delete_keys(), {{.Schema}}.diehard_claim_key(text, uuid, text, text),
    {{.Schema}}.diehard_refuse_events(json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_delete_keys() TO diehard_streamer;
-- Not by PUBLIC's right, which default privileges may have taken: the constraint of the
-- outbox runs with the rights of who inserts.
GRANT EXECUTE ON FUNCTION {{.Schema}}.event_id_for(text),
    {{.Schema}}.diehard_check_event(uuid, text, timestamptz, text, json, bigint, text, text),
    {{.Schema}}.diehard_is_plain(uuid, text, timestamptz, text, json, bigint, text, text),
    {{.Schema}}.diehard_problem(uuid, text, timestamptz, text, json, bigint, text), {{.Schema}}.diehard_refuses_encoding(json) TO diehard_producer;
{{range .AllJSONTypes}}
REVOKE ALL ON FUNCTION {{$.Schema}}.publish_event(text, {{.}}, text, bigint, text, timestamptz, uuid, text, text), {{$.Schema}}.publish_events({{.}}) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{$.Schema}}.publish_event(text, {{.}}, text, bigint, text, timestamptz, uuid, text, text), {{$.Schema}}.publish_events({{.}})
    TO diehard_producer;
{{end}}