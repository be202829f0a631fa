-- +goose Up
-- Before the slot, always: what is written before a publication exists never
-- reaches a slot that uses it. Via the root, so that partitions may come and go.
CREATE PUBLICATION outbox_pub FOR TABLE outbox
    WITH (publish = 'insert', publish_via_partition_root = true);
