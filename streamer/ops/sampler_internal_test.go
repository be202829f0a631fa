package ops

import (
	"net"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/pipeline"
)

// A database that neither answers nor refuses must not hold up the page, the
// status and the metrics: that is when they are looked at.
func TestRequestsDoNotWaitForADatabaseThatIsFrozen(t *testing.T) {
	t.Parallel()
	frozen, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // nobody accepts
	require.NoError(t, err)
	defer frozen.Close()
	addr := frozen.Addr().String()
	pool, err := pgxpool.New(t.Context(), "postgres://somebody@"+addr+"/app?sslmode=disable")
	require.NoError(t, err)
	defer pool.Close()
	conn, err := ch.Open(&ch.Options{Addr: []string{addr}, DialTimeout: 2 * probeTimeout})
	require.NoError(t, err)
	defer conn.Close()

	s := &sampler{probe: &Probe{Postgres: pool, ClickHouse: conn}, progress: &pipeline.Progress{}}
	began := time.Now()
	for range 3 {
		s.fresh(t.Context())
	}
	assert.Less(t, time.Since(began), probeTimeout, "three requests take less than one question that is not answered")
}
