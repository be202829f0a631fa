-- +goose Up
-- Group roles with the least that producers, the api and the streamer need. Give a login one of them:
--   CREATE ROLE shop LOGIN PASSWORD '...' IN ROLE diehard_producer;
--   CREATE ROLE streamer LOGIN REPLICATION PASSWORD '...' IN ROLE diehard_streamer;
-- (REPLICATION is an attribute and not inherited; managed servers have a role instead, e.g. rds_replication.)
-- Roles belong to the whole cluster: another database may be creating them right now.
-- +goose StatementBegin
DO $$
DECLARE
    missing text;
BEGIN
    FOREACH missing IN ARRAY ARRAY['diehard_producer', 'diehard_api', 'diehard_streamer'] LOOP
        CONTINUE WHEN to_regrole(missing) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
    IF NOT pg_has_role('diehard_api', 'diehard_producer', 'MEMBER') THEN
        GRANT diehard_producer TO diehard_api;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the roles diehard_producer, diehard_api and diehard_streamer are missing and % may not create them', current_user
        USING HINT = 'Run the migrations as a role with CREATEROLE, or first, as an administrator: CREATE ROLE diehard_producer NOLOGIN; '
            'CREATE ROLE diehard_api NOLOGIN IN ROLE diehard_producer; CREATE ROLE diehard_streamer NOLOGIN;',
            ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd

GRANT USAGE ON SCHEMA {{.Schema}} TO diehard_producer, diehard_api, diehard_streamer;
