package sink

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A cluster that the server does not know leaves the node that answers, and says so.
func TestInsertsOfReplicasThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.tables.Cluster = "nowhere"
	goOn, result := f.hung(f.Sink, f.source.QueryPrefix()+"x-1-1")
	r, err := f.Running(t.Context(), f.source.QueryPrefix())
	require.NoError(t, err)
	assert.Equal(t, uint64(1), r.Inserts)
	assert.Contains(t, r.Unknown, "clusterAllReplicas('nowhere', system.processes)")
	close(goOn)
	require.NoError(t, <-result)
	r, err = f.as(f.source).Running(t.Context(), f.source.QueryPrefix())
	require.NoError(t, err)
	assert.Equal(t, Running{}, r)
}

// What decides is read on a server that has everything, and on no other.
func TestADecisionIsReadOnOneUpToDateReplica(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(1, 3), 0, 3))
	f.knowsEngine, f.mayLag = true, true
	end, _, err := f.Position(t.Context())
	require.NoError(t, err)
	assert.NotZero(t, end.LSN)
	server, lags, err := f.replica(t.Context())
	require.NoError(t, err)
	assert.NotEmpty(t, server)
	assert.False(t, lags)
	_, err = upToDate(t.Context(), f.Sink, func(context.Context) (int, error) { return 0, assert.AnError })
	require.ErrorIs(t, err, assert.AnError)
}
