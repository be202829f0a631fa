package pipeline

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// After a failover event_log may end behind the record: that is reported, and nothing else.
func TestWhatWasWrittenBehindTheRecordIsReported(t *testing.T) {
	t.Parallel()
	through := replication.Position{LSN: 300, Seq: 2}
	for name, c := range map[string]struct {
		timeline uint32
		intent   *replication.Intent
		end      decode.Position
		reported bool
	}{
		"behind the intent":         {1, &replication.Intent{Through: through}, decode.Position{LSN: 300, Seq: 3}, true},
		"at the intent":             {1, &replication.Intent{Through: through}, decode.Position{LSN: 300, Seq: 2}, false},
		"behind what was confirmed": {1, nil, decode.Position{LSN: 200, Seq: 1}, true},
		"before what was confirmed": {1, &replication.Intent{}, decode.Position{LSN: 199, Seq: 9}, false},
		"an empty table":            {1, nil, decode.Position{}, false},
		"the same history":          {2, nil, decode.Position{LSN: 900, Seq: 1}, false},
	} {
		var log bytes.Buffer
		s := &session{
			log: slog.New(slog.NewTextHandler(&log, nil)), source: sink.Source{SystemID: "7"}, history: replication.History{Timeline: 2},
			record: replication.IntentRecord{SystemID: "7", Timeline: c.timeline, Confirm: 200, Intent: c.intent},
		}
		s.warnOfUnrecorded(c.end)
		assert.Equal(t, c.reported, bytes.Contains(log.Bytes(), []byte("streamer verify")), name)
	}
}
