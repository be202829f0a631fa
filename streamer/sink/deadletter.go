package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	ours "diehard/shared/clickhouse"
	"diehard/streamer/decode"
)

// deadLetter lists the columns in the order of the INSERT; rejectColumns fills them.
var deadLetter = []col{
	{name: "source"},
	{name: "timeline"},
	{name: "commit_lsn"},
	{name: "commit_seq"},
	{name: "commit_time"},
	{name: "event_id"},
	{name: "event_type"},
	{name: "raw"},
	{name: "reason"},
	{name: "error_code"},
	{name: "failed_at"},
}

// Conditions on rows of the dead-letter table, which is read with FINAL.
const (
	// DeadLetterOpen holds for those that were neither written to event_log since nor dropped.
	DeadLetterOpen = `toUnixTimestamp64Milli(retried_at) = 0`
	// DeadLetterNotWritten holds for those whose event is not in event_log: open ones, and dropped ones.
	DeadLetterNotWritten = `(` + DeadLetterOpen + ` OR dropped)`
)

// PutDeadLetters writes rejects as one block, like Insert. rejects must not be empty.
func (s *Sink) PutDeadLetters(ctx context.Context, rejects []decode.Reject, a InsertRequest) error {
	op := fmt.Sprintf("dead-letter %d rows at %s", len(rejects), rejects[0].LSN)
	return s.insert(ctx, op, s.tables.DeadLetter, deadLetter, a, func(insert ours.Insert) (send, error) {
		columns := insert.Columns()
		for i, values := range s.rejectColumns(rejects, a.IngestedAt) {
			if _, err := columns[i].Append(values); err != nil {
				return nil, fmt.Errorf("column %s: %w", deadLetter[i].name, err)
			}
		}
		return insert.Send, nil
	})
}

// rejectColumns turns rejects into one slice per column.
func (s *Sink) rejectColumns(rejects []decode.Reject, failedAt time.Time) []any {
	n := len(rejects)
	source, types, raw, reason := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	timeline, seq := make([]uint32, n), make([]uint32, n)
	lsn, code := make([]uint64, n), make([]int32, n)
	committed, failed := make([]time.Time, n), make([]time.Time, n)
	ids := make([]uuid.UUID, n)
	for i, r := range rejects {
		source[i], timeline[i], failed[i] = s.source.String(), s.timeline(r.LSN), failedAt
		lsn[i], seq[i], committed[i] = uint64(r.LSN), r.Seq, time.UnixMicro(r.CommitTime).UTC()
		ids[i], types[i], raw[i], reason[i], code[i] = r.ID, r.Type, r.Raw, r.Reason, r.Code
	}
	return []any{source, timeline, lsn, seq, committed, ids, types, raw, reason, code, failed}
}
