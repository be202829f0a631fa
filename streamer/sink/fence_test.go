package sink

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// hung starts an insert that stands between registration and data, as that of a
// streamer that was frozen there. goOn lets it send; result is how it ended.
func (f *fixture) hung(s *Sink, id string) (goOn chan<- struct{}, result <-chan error) {
	f.t.Helper()
	registered, proceed, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Insert(f.t.Context(), sample(1, 3), 0, 3, InsertRequest{
			QueryID: id, Token: id, IngestedAt: time.Now(), Verify: func(context.Context) error {
				close(registered)
				<-proceed
				return nil // the slot was ours when it looked
			},
		})
	}()
	<-registered
	return proceed, done
}

// The zombie: frozen after its last check, woken after its successor has read
// where the table ends.
func TestNothingOfAFencedInsertIsWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	goOn, result := f.hung(f.Sink, f.source.QueryPrefix()+"predecessor-1-1")
	var waited []uint64
	require.NoError(t, f.Fence(t.Context(), f.source.QueryPrefix(), func(n uint64) { waited = append(waited, n) }))
	require.NotEmpty(t, waited)
	assert.Equal(t, uint64(1), waited[0])
	close(goOn)
	require.Error(t, <-result)
	assert.Zero(t, f.count("event_log"))
	require.NoError(t, f.insert(sample(1, 3), 0, 3))
	assert.Equal(t, 3, f.count("event_log"))
}

func TestOnlyThePrefixIsFenced(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	// One slot's name begins with ours; another's would match ours as a pattern.
	for i, slot := range []string{f.Slot + "_b", strings.Replace(f.Slot, "_", "a", 1)} {
		neighbour := f.as(Source{SystemID: f.source.SystemID, Slot: slot})
		goOn, result := f.hung(neighbour, neighbour.source.QueryPrefix()+"n-1-1")
		require.NoError(t, f.Fence(t.Context(), f.source.QueryPrefix(), func(uint64) { t.Error("there is nothing to wait for") }))
		close(goOn)
		require.NoError(t, <-result)
		assert.Equal(t, 3*(i+1), f.count("event_log"))
	}
}

// An insert that has its rows cannot be taken back: the fence waits for its end.
func TestTheFenceWaitsForAnInsertThatRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("CREATE TABLE slow (n UInt8) ENGINE = MergeTree ORDER BY n")
	f.exec("CREATE MATERIALIZED VIEW brake TO slow AS SELECT toUInt8(sleepEachRow(0.5)) AS n FROM event_log")
	a := f.attempt()
	result := make(chan error, 1)
	go func() { result <- f.Insert(t.Context(), sample(1, 3), 0, 3, a) }()
	await.True(t, func() bool {
		return f.count("system.processes WHERE query_id = '"+a.QueryID+"'") == 1
	}, "the insert runs")
	require.NoError(t, f.Fence(t.Context(), f.source.QueryPrefix(), func(uint64) {}))
	assert.Zero(t, f.count("system.processes WHERE query_id = '"+a.QueryID+"'"))
	written := f.count("event_log")
	err := <-result
	assert.Equal(t, written, f.count("event_log"), "nothing is written behind the fence")
	assert.Contains(t, []int{0, 3}, written, "all or nothing")
	if err == nil {
		assert.Equal(t, 3, written)
	}
}

func TestTheFenceEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	goOn, result := f.hung(f.Sink, f.source.QueryPrefix()+"predecessor-1-1")
	ctx, cancel := context.WithCancel(t.Context())
	err := f.Fence(ctx, f.source.QueryPrefix(), func(uint64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	close(goOn)
	t.Log("the insert, killed or not:", <-result)
}
