-- +goose Up
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regrole('diehard_api') IS NULL THEN
        RAISE EXCEPTION 'the role diehard_api is missing' USING HINT = 'Run `streamer migrate up` first.', ERRCODE = 'undefined_object';
    END IF;
END $$;
-- +goose StatementEnd

-- The sizes are the api's 254 and 100 characters of up to four bytes.
CREATE TABLE {{.Schema}}.users (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    email      text        NOT NULL CHECK (octet_length(email) BETWEEN 1 AND 1016),
    first_name text        NOT NULL DEFAULT '' CHECK (octet_length(first_name) <= 400),
    last_name  text        NOT NULL DEFAULT '' CHECK (octet_length(last_name) <= 400),
    is_active  boolean     NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    email_key  text        CHECK (octet_length(email_key) <= 2000) -- an index takes 2704
);

COMMENT ON COLUMN {{.Schema}}.users.email_key IS 'The email without regard to case, as the api computes it; NULL in rows of others.';

-- One account for an address, whatever its case. lower() of the locale would differ
-- between databases: that of C maps A to Z alone, everywhere.
CREATE UNIQUE INDEX diehard_users_email ON {{.Schema}}.users (coalesce(email_key, lower(email COLLATE "C")));

GRANT USAGE ON SCHEMA {{.Schema}} TO diehard_api;
GRANT SELECT, INSERT ON {{.Schema}}.users TO diehard_api;
GRANT SELECT ON {{.Schema}}.diehard_api_version TO diehard_api;
