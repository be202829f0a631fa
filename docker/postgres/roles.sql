-- Runs once, when the data volume is empty, as superuser in database diehard.
-- Four logins, none of them a superuser; what api and streamer may do is granted
-- to their groups by the migrations. Passwords come from the environment.
\getenv migrator_password MIGRATOR_DB_PASSWORD
\getenv api_password API_DB_PASSWORD
\getenv streamer_password STREAMER_DB_PASSWORD
\getenv monitor_password MONITOR_DB_PASSWORD

CREATE ROLE diehard_producer NOLOGIN;
CREATE ROLE diehard_api NOLOGIN IN ROLE diehard_producer;
CREATE ROLE diehard_streamer NOLOGIN;

-- Owns the tables and makes the slot, which takes REPLICATION.
CREATE ROLE migrator LOGIN REPLICATION PASSWORD :'migrator_password';
CREATE ROLE api LOGIN PASSWORD :'api_password' IN ROLE diehard_api;
CREATE ROLE streamer LOGIN REPLICATION PASSWORD :'streamer_password' IN ROLE diehard_streamer;
-- For postgres_exporter: statistics, no table.
CREATE ROLE monitor LOGIN PASSWORD :'monitor_password' IN ROLE pg_monitor;

ALTER DATABASE :"DBNAME" OWNER TO migrator;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO diehard_producer, diehard_streamer, monitor;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO migrator;
