package migrations_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

// A database whose tables are columnar by default still gets an outbox whose rows logical
// decoding finds, and so do the partitions of the days to come.
func TestTheOutboxIsAHeapWhateverTheDatabaseCreates(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := emptyDatabase(t, env, "columnar")
	admin := connect(t, address)
	_, err := admin.Exec(t.Context(), `CREATE ACCESS METHOD columnar TYPE TABLE HANDLER heap_tableam_handler;
		DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_table_access_method = columnar', current_database()); END $$`)
	require.NoError(t, err)
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, quiet))
	session, err := postgres.Connect(t.Context(), postgres.Config{URL: address}, postgres.Options{Application: "test"})
	require.NoError(t, err)
	defer session.Close(t.Context())
	_, err = session.Exec(t.Context(), "SELECT public.outbox_create_partitions(9)")
	require.NoError(t, err)
	var others []string
	require.NoError(t, admin.QueryRow(t.Context(), `SELECT coalesce(array_agg(c.relname::text), '{}') FROM pg_class c JOIN pg_am a ON a.oid = c.relam
		WHERE c.relkind = 'r' AND a.amname = 'columnar'`).Scan(&others))
	assert.Empty(t, others)
}

// A name that the application has given already is said before anything is created. With
// its own publish_event(text, text) a call with two plain literals would be the application's,
// and publish nothing.
func TestNamesThatAreTakenAreSaid(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for name, taken := range map[string]struct{ by, says string }{
		"function":    {"CREATE FUNCTION publish_event(text, json) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'", "set OUTBOX_SCHEMA to another schema"},
		"publication": {"CREATE PUBLICATION outbox_pub FOR ALL TABLES", "set REPLICATION_PUBLICATION to another name"},
	} {
		address := emptyDatabase(t, env, name)
		_, err := connect(t, address).Exec(t.Context(), taken.by)
		require.NoError(t, err)
		before := catalogOf(t, address)
		require.ErrorContains(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: address}, quiet), taken.says)
		assert.Equal(t, before, catalogOf(t, address))
		require.NoError(t, migrations.Outbox("elsewhere", "another_pub").Up(t.Context(), postgres.Config{URL: address}, quiet))
	}
}
