-- +goose Up
-- Which publication a slot was made for. One row a slot, written once: it tells
-- a slot that was dropped from one that never was, and a publication that was
-- recreated (rows committed in between were not sent) from the original.
CREATE TABLE streamer_slot (
    slot_name       text        PRIMARY KEY,
    publication_oid oid         NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, DELETE ON streamer_slot TO diehard_streamer;
