-- +goose Up
-- Two group roles with the least that api and streamer need. Give a login one of them:
--   CREATE ROLE api LOGIN PASSWORD '...' IN ROLE diehard_api;
--   CREATE ROLE streamer LOGIN REPLICATION PASSWORD '...' IN ROLE diehard_streamer;
-- (REPLICATION is an attribute and not inherited, hence the word in the second line.)
-- Roles belong to the whole cluster: another database may be making them right now.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regrole('diehard_api') IS NULL THEN
        BEGIN
            CREATE ROLE diehard_api NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END IF;
    IF to_regrole('diehard_streamer') IS NULL THEN
        BEGIN
            CREATE ROLE diehard_streamer NOLOGIN REPLICATION;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                CREATE ROLE diehard_streamer NOLOGIN;
        END;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the roles diehard_api and diehard_streamer are missing and % may not create them', current_user
        USING HINT = 'Run the migrations as a role with CREATEROLE, or create the two roles (NOLOGIN) first.',
              ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd

GRANT USAGE ON SCHEMA public TO diehard_api, diehard_streamer;

-- Producers write events and never read, change or backdate (created_at) them.
GRANT SELECT, INSERT ON users TO diehard_api;
GRANT INSERT (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
    ON outbox TO diehard_api;

REVOKE ALL ON FUNCTION publish_event(text, jsonb, text, bigint, text, timestamptz, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publish_event(text, jsonb, text, bigint, text, timestamptz, uuid) TO diehard_api;

GRANT SELECT ON outbox, slot_lag TO diehard_streamer;
GRANT EXECUTE ON FUNCTION outbox_create_partitions(int) TO diehard_streamer;
