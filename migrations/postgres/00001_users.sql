-- +goose Up
CREATE TABLE users (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    email      text        NOT NULL CHECK (email <> ''),
    first_name text        NOT NULL,
    last_name  text        NOT NULL,
    is_active  boolean     NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One account for an address, however it is written.
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
