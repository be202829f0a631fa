package ops

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/pipeline"
	"diehard/streamer/replication"
)

// A database that neither answers nor refuses must not hold up the page, the
// status and the metrics: that is when they are looked at.
func TestRequestsDoNotWaitForADatabaseThatIsFrozen(t *testing.T) {
	t.Parallel()
	frozen, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // nothing accepts
	require.NoError(t, err)
	defer frozen.Close()
	addr := frozen.Addr().String()
	pool, err := pgxpool.New(t.Context(), "postgres://user@"+addr+"/app?sslmode=disable")
	require.NoError(t, err)
	defer pool.Close()
	conn, err := clickhouse.OpenOptions(&ch.Options{Addr: []string{addr}, DialTimeout: 2 * probeTimeout})
	require.NoError(t, err)
	defer conn.Close()

	s := &sampler{probe: &Probe{Postgres: pool, ClickHouse: conn}, progress: &pipeline.Progress{}}
	began := time.Now()
	for range 3 {
		s.fresh(t.Context())
	}
	assert.Less(t, time.Since(began), probeTimeout, "three requests take less than one question that is not answered")
}

// Nothing asks in the background here: what a request shows, it has asked for itself.
func TestRequestsSeeWhatHasJustHappened(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	s := &sampler{progress: &pipeline.Progress{}, probe: &Probe{
		Postgres: env.Pool, ClickHouse: env.ClickHouse, Origin: replication.Origin{Slot: env.Slot, Publication: env.Publication},
		EventLog: env.ClickHouseConfig.EventLogTable, DeadLetter: env.ClickHouseConfig.DeadLetterTable,
	}}
	sees := func(what func(x snapshot) bool, message string) {
		t.Helper()
		await.True(t, func() bool {
			x := s.fresh(t.Context())
			failure := errors.Join(x.postgres.failure, x.clickhouse.failure)
			if errors.Is(failure, context.DeadlineExceeded) || errors.Is(failure, os.ErrDeadlineExceeded) { // a busy machine answers too late
				return false
			}
			require.NoError(t, failure)
			return x.postgres.last != nil && x.clickhouse.last != nil && what(x)
		}, "%s", message)
	}
	sees(func(x snapshot) bool { return x.clickhouse.last.Rows == 0 && x.postgres.last.Slot(env.Slot) == nil }, "nothing is known")
	require.NoError(t, env.ClickHouse.Exec(t.Context(), "INSERT INTO event_log (commit_lsn) VALUES (1)"))
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	sees(func(x snapshot) bool { return x.clickhouse.last.Rows == 1 && x.postgres.last.Slot(env.Slot) != nil }, "what happened since is not seen")
}
