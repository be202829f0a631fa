package decode_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/postgres"
)

const slot = "recording"

// record runs the scenario on a PostgreSQL of its own and writes down what the
// server sends, in binary and in text.
func record(t *testing.T, version string) {
	t.Helper()
	engine := testenv.StartPostgres(t, embedded.PostgresOptions{Version: version})
	url := engine.URL("postgres")
	require.NoError(t, migrations.Outbox("", "").Up(t.Context(), postgres.Config{URL: url}, slog.New(slog.DiscardHandler)))
	_, err := pglogrepl.CreateReplicationSlot(t.Context(), walsender(t, url), slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{})
	require.NoError(t, err)
	end := runScenario(t, url)
	for _, mode := range modes {
		file := goldenFile(version, mode)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, frame(stream(t, url, mode == "binary", end)), 0o644))
	}
}

func walsender(t *testing.T, url string) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), url+"&replication=database&options=-c%20datestyle%3DISO%20-c%20timezone%3DUTC")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// runScenario returns the WAL position behind the scenario.
func runScenario(t *testing.T, url string) pglogrepl.LSN {
	t.Helper()
	script, err := os.ReadFile("testdata/golden/scenario.sql")
	require.NoError(t, err)
	conn, err := pgconn.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	for paragraph := range strings.SplitSeq(string(script), "\n\n") {
		_, err := conn.Exec(t.Context(), paragraph).ReadAll()
		require.NoError(t, err, paragraph)
	}
	results, err := conn.Exec(t.Context(), "SELECT pg_current_wal_insert_lsn()").ReadAll()
	require.NoError(t, err)
	end, err := pglogrepl.ParseLSN(string(results[0].Rows[0][0]))
	require.NoError(t, err)
	return end
}

// stream reads the slot from its beginning to end and confirms nothing, so that
// it can be read again.
func stream(t *testing.T, url string, binary bool, end pglogrepl.LSN) [][]byte {
	t.Helper()
	conn := walsender(t, url)
	options := []string{"proto_version '1'", "publication_names 'outbox_pub'", "messages 'true'"}
	if binary {
		options = append(options, "binary 'true'")
	}
	require.NoError(t, pglogrepl.StartReplication(t.Context(), conn, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: options}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var messages [][]byte
	for {
		received, err := conn.ReceiveMessage(ctx)
		require.NoError(t, err)
		data, ok := received.(*pgproto3.CopyData)
		require.True(t, ok, "%T", received)
		if data.Data[0] == pglogrepl.XLogDataByteID {
			messages = append(messages, append([]byte(nil), data.Data[25:]...))
			continue
		}
		keepalive, err := pglogrepl.ParsePrimaryKeepaliveMessage(data.Data[1:])
		require.NoError(t, err)
		if keepalive.ServerWALEnd >= end {
			require.NoError(t, conn.Close(t.Context()))
			return messages
		}
	}
}
