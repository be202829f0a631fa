-- What the golden recordings were made of. Each paragraph is sent as one query:
-- one transaction, unless it says otherwise. What must come out is in expected.txt.

-- Rows that the outbox's own checks would refuse, and another table. The view is in the way of other types.
ALTER TABLE outbox DROP CONSTRAINT outbox_event;
DROP VIEW diehard_events;
CREATE TABLE users (email text, first_name text, last_name text);

INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context, published_by)
VALUES ('00000000-0000-0000-0000-000000000001', 'user_created', '2026-11-23 12:34:56.789101+00', 'Production',
        ' {"b" : 1,  "a": "\u00e9"} ', 1, '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', 'größe');

-- The limits of what can be represented, and no trace.
INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version)
VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'a', '1900-01-01 00:00:00+00', '', '[]', 0),
       ('00000000-0000-0000-0000-000000000003', 'größe', '2299-12-31 23:59:59.999999+00', 'Ünïcode', '"文字"', 9223372036854775807),
       ('00000000-0000-0000-0000-000000000004', 'before_2000', '1999-12-31 23:59:59.999999+00', 'x', 'null', 4);

-- Only what a transaction keeps.
BEGIN;
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000011', 'kept', '2026-01-01', '1');
SAVEPOINT a;
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000012', 'lost', '2026-01-01', '2');
ROLLBACK TO a;
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000013', 'kept', '2026-01-01', '3');
SAVEPOINT b;
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000014', 'kept', '2026-01-01', '4');
RELEASE b;
COMMIT;

BEGIN;
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000021', 'lost', '2026-01-01', '5');
ROLLBACK;

-- Nothing that is published.
INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'A', 'B');

UPDATE outbox SET environment = 'changed' WHERE event_type = 'a';

DELETE FROM outbox WHERE event_type = 'a';

-- Two partitions in one transaction.
INSERT INTO outbox (id, event_type, event_date_time, event_context, published_at)
VALUES ('00000000-0000-0000-0000-000000000031', 'default_partition', '2026-01-01', '6', '2001-01-01'),
       ('00000000-0000-0000-0000-000000000032', 'daily_partition', '2026-01-01', '7', now());

-- Rows that ClickHouse's types cannot hold, between rows that they can.
INSERT INTO outbox (id, event_type, event_date_time, event_context)
VALUES ('00000000-0000-0000-0000-000000000041', 'good', '2026-01-01', '8'),
       ('00000000-0000-0000-0000-000000000042', 'never', 'infinity', '9'),
       ('00000000-0000-0000-0000-000000000043', 'too_early', '1899-12-31 23:59:59.999999+00', '10'),
       ('00000000-0000-0000-0000-000000000044', 'good', '2026-01-01', '11');

-- Stored out of line, compressed and not.
INSERT INTO outbox (id, event_type, event_date_time, event_context)
SELECT '00000000-0000-0000-0000-000000000051'::uuid, 'toast', '2026-01-01'::timestamptz, to_json(repeat('0123456789', 2000))
UNION ALL
SELECT '00000000-0000-0000-0000-000000000052', 'toast', '2026-01-01', to_json(string_agg(md5(i::text), '' ORDER BY i)) FROM generate_series(1, 128) AS i;

-- Many rows of few types in one transaction.
INSERT INTO outbox (id, event_type, event_date_time, environment, event_context)
SELECT ('00000000-0000-0000-0001-' || lpad(i::text, 12, '0'))::uuid, 'many_' || i % 3, '2026-01-01'::timestamptz + i * interval '1 second',
       CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END, json_build_object('i', i)
FROM generate_series(1, 20) AS i;

-- Messages, of this transaction and of none, and rows that came from elsewhere.
BEGIN;
SELECT pg_logical_emit_message(true, 'prefix', 'in a transaction');
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000061', 'after_message', '2026-01-01', '12');
COMMIT;

SELECT pg_logical_emit_message(false, 'prefix', 'outside of any');

SELECT pg_replication_origin_create(current_database()), pg_replication_origin_session_setup(current_database());

BEGIN;
SELECT pg_replication_origin_xact_setup('0/1234', '2026-01-01');
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000062', 'with_origin', '2026-01-01', '13');
COMMIT;

SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop(current_database());

-- The table changes while the stream goes on.
ALTER TABLE outbox ADD COLUMN note text DEFAULT 'x';

INSERT INTO outbox (id, event_type, event_date_time, event_context, note) VALUES ('00000000-0000-0000-0000-000000000071', 'one_column_more', '2026-01-01', '14', 'new');

ALTER TABLE outbox DROP COLUMN note;

INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000072', 'dropped_again', '2026-01-01', '15');

-- DDL and rows in one transaction; a column of a type of our own is announced.
BEGIN;
CREATE TYPE mood AS ENUM ('good', 'bad');
INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ('00000000-0000-0000-0000-000000000073', 'before_ddl', '2026-01-01', '16');
ALTER TABLE outbox ADD COLUMN mood mood NOT NULL DEFAULT 'good';
INSERT INTO outbox (id, event_type, event_date_time, event_context, mood) VALUES ('00000000-0000-0000-0000-000000000074', 'after_ddl', '2026-01-01', '17', 'bad');
COMMIT;

-- Every other type that a column may have; rewriting the table sends no row again.
ALTER TABLE outbox ALTER COLUMN event_context TYPE jsonb USING event_context::jsonb;

INSERT INTO outbox (id, event_type, event_date_time, event_context)
VALUES ('00000000-0000-0000-0000-000000000081', 'jsonb', '2026-01-01', ' {"b" : 1,  "a": "\u00e9"} '),
       ('00000000-0000-0000-0000-000000000082', 'jsonb', '2026-01-01', '"text"');

ALTER TABLE outbox ALTER COLUMN event_context TYPE text USING event_context::text,
                   ALTER COLUMN event_date_time TYPE timestamp USING event_date_time AT TIME ZONE 'UTC',
                   ALTER COLUMN event_type TYPE varchar(50),
                   ALTER COLUMN environment TYPE varchar(50),
                   ALTER COLUMN metadata_version TYPE int USING 1;

INSERT INTO outbox (id, event_type, event_date_time, environment, event_context, metadata_version, trace_context)
VALUES ('00000000-0000-0000-0000-000000000091', 'other_types', '2026-11-23 12:34:56.5', 'Local', 'no JSON', 2147483647,
        '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01'),
       ('00000000-0000-0000-0000-000000000092', 'other_types', '-infinity', 'Local', '', 1, NULL),
       ('00000000-0000-0000-0000-000000000093', 'other_types', '2026-11-23 12:34:56', 'Local', '', 0, NULL);
