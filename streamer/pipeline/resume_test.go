package pipeline

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"

	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// After a failover that lost what was recorded of the last events, they are compared: those of the
// slot's transactions where its position is one that is recorded, and otherwise all since the record.
func TestWhatAFailoverMakesUnproved(t *testing.T) {
	t.Parallel()
	through, xmin, at := replication.Position{LSN: 300, Seq: 2}, uint32(77), time.Unix(9, 0)
	ofTheSlot, all := &replication.Unproved{Since: at, FromXID: &xmin}, &replication.Unproved{Since: at}
	for name, c := range map[string]struct {
		intent    *replication.Intent
		system    string
		confirmed pglogrepl.LSN
		end       decode.Position
		want      *replication.Unproved
	}{
		"behind the intent":         {&replication.Intent{Through: through}, "7", 200, decode.Position{LSN: 300, Seq: 3}, ofTheSlot},
		"at the intent":             {&replication.Intent{Through: through}, "7", 200, decode.Position{LSN: 300, Seq: 2}, nil},
		"behind what was confirmed": {nil, "7", 200, decode.Position{LSN: 200, Seq: 1}, ofTheSlot},
		"an older slot":             {nil, "7", 100, decode.Position{LSN: 200, Seq: 1}, ofTheSlot},
		"before what was confirmed": {&replication.Intent{}, "7", 200, decode.Position{LSN: 199, Seq: 9}, nil},
		"an empty table":            {nil, "7", 200, decode.Position{}, nil},
		"a slot beyond the record":  {nil, "7", 201, decode.Position{LSN: 300, Seq: 1}, all},
		"another server":            {&replication.Intent{Through: through}, "8", 100, decode.Position{}, all},
	} {
		s := &session{
			source: sink.Source{SystemID: "7"}, slot: replication.Slot{ConfirmedFlush: c.confirmed, CatalogXmin: &xmin},
			record: replication.IntentRecord{SystemID: c.system, Confirm: 200, Intent: c.intent, WrittenAt: at},
		}
		assert.Equal(t, c.want, s.lostProof(c.end), name)
	}
}
