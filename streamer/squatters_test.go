package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/streamer/ops"
)

// objects are statements that make what the migrations make, with the same columns and
// arguments, and call a trap.
func (s *stranger) objects(t *testing.T, migrated *pgx.Conn) map[string]string {
	t.Helper()
	all := map[string]string{}
	add := func(query, create string, names []string) {
		rows, err := migrated.Query(t.Context(), query, names)
		require.NoError(t, err)
		var name, signature, result string
		_, err = pgx.ForEachRow(rows, []any{&name, &signature, &result}, func() error {
			call := fmt.Sprintf("%s.squat_%d()", event.Schema(s.schema).Quoted(), len(s.planted))
			s.exec(t, "CREATE FUNCTION "+call+" RETURNS bool LANGUAGE plpgsql AS $$"+s.trap(name)+"$$")
			all[signature] = fmt.Sprintf(create, event.Schema(s.schema).Quoted()+"."+signature, result, call)
			return nil
		})
		require.NoError(t, err)
	}
	add(`SELECT c.relname::text, format('%I', c.relname), string_agg(format('NULL::%s AS %I', format_type(a.atttypid, NULL), a.attname), ', ' ORDER BY a.attnum)
		FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
		WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY ($1) GROUP BY c.relname`,
		"CREATE VIEW %[1]s AS SELECT %[2]s WHERE %[3]s", postgres.OutboxRelations)
	add(`SELECT p.proname::text, format('%I(%s)', p.proname, oidvectortypes(p.proargtypes)),
			CASE WHEN p.proretset THEN 'SETOF text' WHEN p.prorettype = 'void'::regtype THEN 'void' ELSE format_type(CASE WHEN p.prorettype >= 16384 THEN 'text'::regtype ELSE p.prorettype END, NULL) END
		FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY ($1)`,
		"CREATE FUNCTION %[1]s RETURNS %[2]s LANGUAGE plpgsql AS $$ BEGIN PERFORM %[3]s; RETURN; END $$", postgres.Functions)
	return all
}

// Where the migrations have not run, each thing that they would make can be a stranger's: no command
// reads, calls or writes to it, and each says whose it is. Also while a streamer runs.
func TestWhatAStrangerMadeBeforeTheMigrationsIsNotUsed(t *testing.T) {
	for _, schema := range []string{"public", "Outbox"} {
		t.Run(schema, func(t *testing.T) {
			env := testenv.New(t)
			use(t, env)
			s := newStranger(t, env, schema)
			t.Setenv("DATABASE_URL", s.url)
			t.Setenv("OUTBOX_SCHEMA", schema)
			t.Setenv("REPLICATION_MESSAGES", "true")
			objects := s.objects(t, open(t, env.PostgresURL))
			require.Greater(t, len(objects), 40)
			for signature, create := range objects {
				s.exec(t, create)
				name, _, _ := strings.Cut(signature, "(")
				_, err := postgres.Connect(t.Context(), postgres.Config{URL: s.url, Schema: event.Schema(schema)}, postgres.Options{Outbox: true})
				require.ErrorContains(t, err, "."+name+" belongs to "+s.name)
				if everywhere[name] {
					s.commandsRefuse(t, name)
				}
				s.exec(t, dropOf(create, schema, signature))
			}
			s.runsBefore(t, objects)
		})
	}
}

// everywhere are those that all commands are tried with.
var everywhere = map[string]bool{"diehard_outbox_version": true, "diehard_slot": true, "diehard_slot_undelivered": true}

func dropOf(create, schema, signature string) string {
	kind := strings.Fields(create)[1]
	return "DROP " + kind + " " + event.Schema(schema).Quoted() + "." + signature
}

func (s *stranger) commandsRefuse(t *testing.T, name string) {
	t.Helper()
	for _, args := range []string{
		"status --json", "doctor", "bookmark list", "bookmark add kept", "replay --from-table",
		"replay --from-bookmark kept", "verify", "slot create", "slot drop", "slot drop --forget",
		"migrate status", "migrate up", "migrate up --postgres", "migrate sql", "uninstall --yes",
	} {
		if name == "diehard_slot_undelivered" && (strings.HasPrefix(args, "migrate") || strings.HasPrefix(args, "uninstall")) {
			continue // the migrations call none before they have made it
		}
		out, err := command(t, strings.Fields(args)...)
		s.untouched(t, args+" with "+name)
		if args != "bookmark list" && args != "bookmark add kept" { // which use nothing of the outbox
			assert.Contains(t, out+fmt.Sprint(err), "belongs to "+s.name, "%s with %s", args, name)
		}
	}
}

// runsBefore starts a streamer that waits for the migrations, and then plants all.
func (s *stranger) runsBefore(t *testing.T, objects map[string]string) {
	t.Helper()
	t.Setenv("STREAMER_ADDR", testenv.FreeAddress(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := runStreamer(ctx)
	pool, err := postgres.NewProducerPool(postgres.Config{URL: s.url, Schema: event.Schema(s.schema)}, "api")
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, pool.Ping(ctx))
	answered := func(what string) func() bool {
		return func() bool {
			status, err := ops.AskStreamer(ctx, os.Getenv("STREAMER_ADDR"))
			text, _ := json.Marshal(status)
			return err == nil && strings.Contains(string(text), what)
		}
	}
	await.True(t, answered("does not exist"), "it waits for the migrations")
	for _, create := range objects {
		s.exec(t, create)
	}
	_, err = pool.Exec(ctx, event.Schema(s.schema).SQL("INSERT INTO {outbox}.outbox (event_type, event_context) VALUES ('t', '{}')"))
	require.ErrorContains(t, err, "belongs to "+s.name)
	assert.Error(t, migrations.API(event.Schema(s.schema)).Up(ctx, postgres.Config{URL: s.url}, slog.New(slog.DiscardHandler)))
	await.True(t, answered("belongs to "+s.name), "it never says what it has met")
	cancel()
	if err := <-done; err != nil {
		t.Log(err) // it was cancelled
	}
	s.untouched(t, "run")
}
