package sink

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

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

// PutDeadLetters lands rejects as one block, like Insert. rejects must not be empty.
func (s *Sink) PutDeadLetters(ctx context.Context, rejects []decode.Reject, a Attempt) error {
	op := fmt.Sprintf("dead-letter %d rows at %s", len(rejects), rejects[0].LSN)
	return s.insert(ctx, op, s.deadLetter, deadLetter, a, func(columns []column.Interface) error {
		for i, values := range s.rejectColumns(rejects, a.IngestedAt) {
			if _, err := columns[i].Append(values); err != nil {
				return fmt.Errorf("column %s: %w", deadLetter[i].name, err)
			}
		}
		return nil
	})
}

// rejectColumns turns rejects into one slice a column.
func (s *Sink) rejectColumns(rejects []decode.Reject, failedAt time.Time) []any {
	n := len(rejects)
	source, types, raw, reason := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	timeline, seq := make([]uint32, n), make([]uint32, n)
	lsn, code := make([]uint64, n), make([]int32, n)
	committed, failed := make([]time.Time, n), make([]time.Time, n)
	ids := make([]uuid.UUID, n)
	for i, r := range rejects {
		source[i], timeline[i], failed[i] = s.source.String(), s.timeline, failedAt
		lsn[i], seq[i], committed[i] = uint64(r.LSN), r.Seq, time.UnixMicro(r.CommitTime).UTC()
		ids[i], types[i], raw[i], reason[i], code[i] = r.ID, r.Type, r.Raw, r.Reason, r.Code
	}
	return []any{source, timeline, lsn, seq, committed, ids, types, raw, reason, code, failed}
}

// DeadLettersAfter returns the positions of this source's dead letters behind p.
// Only those of the last batch can be there, so the set is small.
//
// Errors: errUnsettled, with Tables.Quorum.
func (s *Sink) DeadLettersAfter(ctx context.Context, p decode.Position) (map[decode.Position]bool, error) {
	return settled(ctx, s.quorum, func(ctx context.Context) (map[decode.Position]bool, error) {
		return s.deadLettersAfter(ctx, p)
	}, maps.Equal)
}

func (s *Sink) deadLettersAfter(ctx context.Context, p decode.Position) (map[decode.Position]bool, error) {
	rows, err := s.conn.Query(ctx, `
		SELECT commit_lsn, commit_seq FROM `+s.deadLetter+`
		WHERE source = {source:String} AND (commit_lsn, commit_seq) > ({lsn:UInt64}, {seq:UInt32})`,
		clickhouse.Named("source", s.source.String()), clickhouse.Named("lsn", fmt.Sprint(uint64(p.LSN))),
		clickhouse.Named("seq", fmt.Sprint(p.Seq)))
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", classify(err))
	}
	defer func() { _ = rows.Close() }()
	known := make(map[decode.Position]bool)
	for rows.Next() {
		var lsn uint64
		var seq uint32
		if err := rows.Scan(&lsn, &seq); err != nil {
			return nil, fmt.Errorf("read dead letters: %w", err)
		}
		known[decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seq}] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read dead letters: %w", classify(err))
	}
	return known, nil
}
