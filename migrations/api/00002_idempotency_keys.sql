-- +goose Up
-- What the api remembers of requests with an Idempotency-Key, for 24 hours. A
-- row is written in the transaction of the request's events: both are there or
-- neither. It is small: the answer is computed again from the repeated request.
--
-- Three tables take the days in turn, and each is emptied by TRUNCATE before its
-- turn comes again. So no row is ever deleted, and the index stays small.
-- It is not unique: a lock on the key (pg_try_advisory_xact_lock) keeps two
-- requests with one key apart, and also shows that the first is still running.
CREATE TABLE {{.Schema}}.diehard_idempotency_keys (
    key        bytea       NOT NULL CHECK (octet_length(key) = 32),     -- SHA-256 of caller and key
    request    bytea       NOT NULL CHECK (octet_length(request) = 32), -- SHA-256 of what was sent
    first_id   uuid        NOT NULL,                                    -- the ids given to events count up from it
    created_at timestamptz NOT NULL DEFAULT now(),
    turn       int         NOT NULL DEFAULT floor(extract(epoch FROM now()) / 86400)::bigint % 3
) PARTITION BY LIST (turn);

CREATE TABLE {{.Schema}}.diehard_idempotency_keys_0 PARTITION OF {{.Schema}}.diehard_idempotency_keys FOR VALUES IN (0);
CREATE TABLE {{.Schema}}.diehard_idempotency_keys_1 PARTITION OF {{.Schema}}.diehard_idempotency_keys FOR VALUES IN (1);
CREATE TABLE {{.Schema}}.diehard_idempotency_keys_2 PARTITION OF {{.Schema}}.diehard_idempotency_keys FOR VALUES IN (2);
CREATE INDEX diehard_idempotency_keys_key ON {{.Schema}}.diehard_idempotency_keys (key);

COMMENT ON TABLE {{.Schema}}.diehard_idempotency_keys IS 'Requests to the api that had an Idempotency-Key; kept for 24 hours.';

-- Empties the table of tomorrow, whose rows are at least a day old, and returns
-- whether there was anything to do. Safe to call as often as you like: it gives
-- up where it would have to wait, so that requests do not queue behind it.
-- +goose StatementBegin
CREATE FUNCTION {{.Schema}}.diehard_idempotency_keys_clean() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    today    bigint := floor(extract(epoch FROM clock_timestamp()) / 86400);
    tomorrow text := 'diehard_idempotency_keys_' || (today + 1) % 3;
    used     boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I)', {{.SchemaText}}, tomorrow) INTO used;
    IF used THEN
        EXECUTE format('LOCK TABLE %I.%I IN ACCESS EXCLUSIVE MODE', {{.SchemaText}}, tomorrow);
        IF floor(extract(epoch FROM clock_timestamp()) / 86400) > today THEN
            RETURN false; -- it waited beyond midnight, and the table is today's
        END IF;
        EXECUTE format('TRUNCATE %I.%I', {{.SchemaText}}, tomorrow);
    END IF;
    RETURN used;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION {{.Schema}}.diehard_idempotency_keys_clean() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {{.Schema}}.diehard_idempotency_keys_clean() TO diehard_api;
GRANT SELECT (key, request, first_id, created_at), INSERT (key, request, first_id) ON {{.Schema}}.diehard_idempotency_keys TO diehard_api;
