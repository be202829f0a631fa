-- Runs once, when the data volume is empty, as superuser in database diehard.
-- Three logins, none of them a superuser; what api and streamer may do is
-- granted to their groups by the migrations. Passwords come from the environment.
\getenv migrator_password MIGRATOR_DB_PASSWORD
\getenv api_password API_DB_PASSWORD
\getenv streamer_password STREAMER_DB_PASSWORD

CREATE ROLE diehard_api NOLOGIN;
CREATE ROLE diehard_streamer NOLOGIN;

-- Owns the tables and makes the slot, which takes REPLICATION.
CREATE ROLE migrator LOGIN REPLICATION PASSWORD :'migrator_password';
CREATE ROLE api LOGIN PASSWORD :'api_password' IN ROLE diehard_api;
CREATE ROLE streamer LOGIN REPLICATION PASSWORD :'streamer_password' IN ROLE diehard_streamer;

ALTER DATABASE :"DBNAME" OWNER TO migrator;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO diehard_api, diehard_streamer;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO migrator;
