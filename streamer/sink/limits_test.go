package sink

import (
	"bytes"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	ours "diehard/shared/clickhouse"
	"diehard/streamer/decode"
)

// A block that exceeds a limit of the user's profile is written in pieces that do not.
func TestABlockThatExceedsALimitIsWrittenInPieces(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("ALTER TABLE event_log ADD COLUMN words UInt64 MATERIALIZED length(splitByChar(' ', event_context))")
	options, err := ours.Options(f.ClickHouseConfig)
	require.NoError(t, err)
	options.Settings["max_memory_usage"] = 60 << 20
	conn, err := ours.OpenOptions(options)
	require.NoError(t, err)
	defer conn.Close()
	f.Sink = New(conn, f.tables, f.source, OnTimeline(timeline))
	rows, w := new(decode.Rows), &blocks{f: f}
	for i := range 1000 {
		e := event(i)
		e.Context = bytes.Repeat([]byte("x "), 5000)
		rows.Append(at(500, uint32(i+1)), sampleTime, &e)
	}
	require.NoError(t, f.Write(t.Context(), all(rows), w))
	assert.Equal(t, 1000, f.count("event_log"))
	assert.Empty(t, w.refused)
	require.NotEmpty(t, w.causes)
	require.ErrorIs(t, w.causes[0], ErrTooMuch)
}

func TestALimitIsWaitedForAtFirst(t *testing.T) {
	t.Parallel()
	of := func(code int32) error { return classify(&clickhouse.Exception{Code: code}) }
	l := LimitErrors{Limit: 3}
	for _, err := range []error{of(241), of(241), nil, of(159), of(241), of(252), of(241), of(396)} {
		assert.NotErrorIs(t, l.Classify(err), ErrTooMuch)
	}
	assert.ErrorIs(t, l.Classify(of(241)), ErrTooMuch)
}
