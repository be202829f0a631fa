-- +goose Up
-- What the publication was like when the slot was made. One that was changed, even
-- if it was changed back, did not send the rows committed in between.
ALTER TABLE streamer_slot ADD COLUMN publication_state text;
GRANT UPDATE (publication_state) ON streamer_slot TO diehard_streamer;
