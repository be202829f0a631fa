-- +goose Up
-- The streamer watches whether rows lie in the partition that no retention
-- removes. It asks that partition alone: the right to read the outbox is not
-- enough for that.
GRANT SELECT ON outbox_default TO diehard_streamer;
