package pipeline

import (
	"encoding/json"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

func batchOf(positions ...decode.Position) *batch.Batch {
	b := batch.New(roomy)
	for i, p := range positions {
		b.Append(p, 0, &decode.Event{ID: [16]byte{byte(i)}, Type: []byte("t"), Context: []byte("{}")})
	}
	return b
}

// A successor takes the rows out that the intent names. Of a range whose beginning is confirmed it
// may be sent the end alone.
func TestTheRowsThatAnIntentNamesAreRefusedAgain(t *testing.T) {
	t.Parallel()
	at := func(lsn pglogrepl.LSN, seq uint32) decode.Position { return decode.Position{LSN: lsn, Seq: seq} }
	all := []decode.Position{at(1<<63, 1), at(1<<63, 2), at(1<<63+8, 1), at(1<<63+8, 2), at(1<<63+8, 3)}
	b := batchOf(all...)
	w := &writer{s: &session{}}
	p := &part{b: b, intent: replication.Intent{Through: replication.Position(all[4])}}
	for i, code := range []int32{0, 469, 469, 6, 469} {
		if code != 0 {
			w.refused = append(w.refused, b.RejectAt(i, "refused", code))
		}
	}
	w.nameRefused(p)
	assert.Equal(t, "refused4", p.refusedToken())
	text, err := json.Marshal(p.intent)
	require.NoError(t, err)

	for n, sent := range map[int][]decode.Position{4: all, 2: all[3:]} {
		successor := &part{b: batchOf(sent...)}
		require.NoError(t, json.Unmarshal(text, &successor.intent))
		w := &writer{s: &session{}}
		w.refuseAgain(successor)
		require.Len(t, successor.b.Rejects, n)
		assert.Equal(t, len(sent)-n, successor.b.Len())
		assert.Equal(t, "refused4", successor.refusedToken())
		for i, x := range successor.b.Rejects {
			assert.Equal(t, all[len(all)-n+i], x.Position)
			assert.Equal(t, map[decode.Position]int32{all[3]: 6}[x.Position] != 0, x.Code == 6)
			assert.Contains(t, x.Reason, "refused by ClickHouse with code ")
		}
	}
}
