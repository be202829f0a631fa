-- +goose NO TRANSACTION
-- +goose Up
-- A dead letter that was dropped stays as a record of its event. Like a retried
-- one it is no longer open, and its row replaces the one before.
ALTER TABLE {{.DeadLetter}} {{.OnCluster}}
    ADD COLUMN IF NOT EXISTS dropped Bool DEFAULT false COMMENT 'true if it was given up, at retried_at, by streamer deadletter drop',
    COMMENT COLUMN retried_at 'when it reached the event log after all, or was dropped; 1970 if neither';
