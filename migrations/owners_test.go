package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// What no stranger may have made is what the migrations make, partitions excepted.
func TestTheNamesOfOursAreThoseOfTheCatalog(t *testing.T) {
	t.Parallel()
	conn := connect(t, testenv.New(t).PostgresURL)
	var relations, functions []string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT
		(SELECT array_agg(relname::text) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
			AND (NOT relispartition OR relname = 'diehard_outbox_default')),
		(SELECT array_agg(DISTINCT proname::text) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)`).Scan(&relations, &functions))
	assert.ElementsMatch(t, relations, slices.Concat(postgres.OutboxRelations, postgres.APIRelations))
	assert.ElementsMatch(t, functions, postgres.Functions)
}

// An owner who may create in the schema only as every login may cannot be distinguished from a
// stranger: the migrations say so, other logins refuse, and the statement fixes both.
func TestAnOwnerWithoutAGrantIsAStrangerToOthers(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	owner, other := env.Slot+"_Owner", env.Slot+"_other"
	t.Cleanup(func() {
		_, err := env.Pool.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("DROP ROLE %q; DROP ROLE %s", owner, other))
		assert.NoError(t, err)
	})
	address := emptyDatabase(t, env, "open") // dropped first
	admin := connect(t, address)
	for _, statement := range []string{
		fmt.Sprintf("CREATE ROLE %q LOGIN PASSWORD 'secret' CREATEROLE", owner), "CREATE ROLE " + other + " LOGIN PASSWORD 'secret' IN ROLE diehard_streamer",
		"GRANT CREATE, USAGE ON SCHEMA public TO PUBLIC", fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %q", env.Slot+"_open", owner),
	} {
		_, err := admin.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
	var log bytes.Buffer
	set := migrations.Outbox("", "")
	require.NoError(t, set.Up(t.Context(), postgres.Config{URL: testenv.AsUser(t, address, owner, "secret")}, slog.New(slog.NewTextHandler(&log, nil))))
	fix := fmt.Sprintf("GRANT CREATE ON SCHEMA public TO %q", owner)
	assert.Contains(t, strings.ReplaceAll(log.String(), `\"`, `"`), fix)

	use := func() error {
		conn, err := postgres.Connect(t.Context(), postgres.Config{URL: testenv.AsUser(t, address, other, "secret")}, postgres.Options{Outbox: true})
		if err == nil {
			err = conn.Close(t.Context())
		}
		return err
	}
	err := use()
	stranger, ok := errors.AsType[*postgres.StrangerError](err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, owner, stranger.Owner)
	assert.Contains(t, err.Error(), fix)
	require.Equal(t, failure.Fatal, failure.Of(err))
	_, err = admin.Exec(t.Context(), fix)
	require.NoError(t, err)
	require.NoError(t, use())

	// Functions beside ours, of a real stranger, are no reason to stop.
	login := connect(t, testenv.AsUser(t, address, other, "secret"))
	_, err = login.Exec(t.Context(), "CREATE FUNCTION public.publish_event(int) RETURNS int LANGUAGE sql RETURN 1")
	require.NoError(t, err)
	require.NoError(t, use())
	_, err = login.Exec(t.Context(), "DROP FUNCTION public.publish_event(int)")
	require.NoError(t, err)
}
