package sink

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
)

// Position returns the last row of this source in event_log, and the timeline
// it was written on; zeros when there is none.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) Position(ctx context.Context) (decode.Position, uint32, error) {
	end, err := Decide(ctx, s, s.end, func(a, b End) bool { return a == b })
	return end.Position, end.Timeline, err
}

func (s *Sink) end(ctx context.Context) (End, error) {
	return ReadEnd(ctx, s.reader, s.table, s.source.String())
}

// CommittedBefore returns when the last transaction before lsn was committed of which event_log has a
// row of source; the zero of Unix time when there is none. A replica that lags has an earlier one.
func (s *Sink) CommittedBefore(ctx context.Context, source Source, lsn pglogrepl.LSN) (time.Time, error) {
	for span := pglogrepl.LSN(1 << 30); ; span *= 16 { // the index of positions finds what is near
		from := lsn - min(lsn, span)
		if span >= 1<<58 {
			from = 0
		}
		var micros int64
		err := s.reader.QueryRow(ctx, `SELECT toUnixTimestamp64Micro(argMax(commit_time, commit_lsn)) FROM `+s.table+
			` WHERE source = {source:String} AND commit_lsn >= {from:UInt64} AND commit_lsn < {lsn:UInt64}`,
			clickhouse.Named("source", source.String()), clickhouse.Named("from", fmt.Sprint(uint64(from))), clickhouse.Named("lsn", fmt.Sprint(uint64(lsn)))).Scan(&micros)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the time of a commit: %w", classify(err))
		}
		if micros != 0 || from == 0 {
			return time.UnixMicro(micros), nil
		}
	}
}

// Commits returns the last commit of each slot of this server of which rows are in
// event_log, under its slot's name.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) Commits(ctx context.Context) (map[string]pglogrepl.LSN, error) {
	return Decide(ctx, s, s.commits, maps.Equal)
}

func (s *Sink) commits(ctx context.Context) (map[string]pglogrepl.LSN, error) {
	server := Source{SystemID: s.source.SystemID}.String()
	rows, err := s.reader.Query(ctx, `
		SELECT source, toUInt64(bitShiftRight(`+lastRow+`, 64)) FROM `+s.table+`
		WHERE startsWith(source, {server:String}) GROUP BY source`, clickhouse.Named("server", server))
	if err != nil {
		return nil, fmt.Errorf("read positions of other slots: %w", classify(err))
	}
	defer func() { _ = rows.Close() }()
	commits := make(map[string]pglogrepl.LSN)
	for rows.Next() {
		var source string
		var lsn uint64
		if err := rows.Scan(&source, &lsn); err != nil {
			return nil, fmt.Errorf("read positions of other slots: %w", err)
		}
		commits[strings.TrimPrefix(source, server)] = pglogrepl.LSN(lsn)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read positions of other slots: %w", classify(err))
	}
	return commits, nil
}

// OtherServers returns the sources in event_log that are of our slot's name on another
// PostgreSQL server.
func (s *Sink) OtherServers(ctx context.Context) ([]string, error) {
	return OtherServers(ctx, s.conn, s.table, s.source)
}

// OtherServers returns the sources in table, which is quoted, that are of the slot's name
// on another PostgreSQL server.
func OtherServers(ctx context.Context, conn driver.Conn, table string, ours Source) ([]string, error) {
	rows, err := conn.Query(reading(ctx, 0), `
		SELECT source FROM `+table+` WHERE endsWith(source, {slot:String}) AND source != {source:String}
		GROUP BY source ORDER BY source`, clickhouse.Named("slot", Source{Slot: ours.Slot}.String()), clickhouse.Named("source", ours.String()))
	if err != nil {
		return nil, fmt.Errorf("look for other servers: %w", classify(err))
	}
	defer func() { _ = rows.Close() }()
	var sources []string
	for rows.Next() {
		var source string
		if err := rows.Scan(&source); err != nil {
			return nil, fmt.Errorf("look for other servers: %w", err)
		}
		sources = append(sources, source)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look for other servers: %w", classify(err))
	}
	return sources, nil
}

// Range are the rows behind After, up to and including Through.
type Range struct{ After, Through decode.Position }

const inRange = `source = {source:String} AND commit_lsn >= {after_lsn:UInt64} AND commit_lsn <= {through_lsn:UInt64}
	AND (commit_lsn, commit_seq) > ({after_lsn:UInt64}, {after_seq:UInt32})
	AND (commit_lsn, commit_seq) <= ({through_lsn:UInt64}, {through_seq:UInt32})`

func (s *Sink) rangeParameters(r Range) []any {
	return []any{
		clickhouse.Named("source", s.source.String()),
		clickhouse.Named("after_lsn", fmt.Sprint(uint64(r.After.LSN))), clickhouse.Named("after_seq", fmt.Sprint(r.After.Seq)),
		clickhouse.Named("through_lsn", fmt.Sprint(uint64(r.Through.LSN))), clickhouse.Named("through_seq", fmt.Sprint(r.Through.Seq)),
	}
}

// HasRows reports whether event_log has any row of r whose position is not in except. A
// block is written whole or not at all, and rows may have been deleted since.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) HasRows(ctx context.Context, r Range, except map[decode.Position]bool) (bool, error) {
	limit := fmt.Sprintf(" LIMIT %d", len(except)+1) // so many positions cannot all be in except
	return s.hasPosition(ctx, s.table, r, limit, func(p decode.Position) bool { return !except[p] })
}

// DeadLettersIn returns the positions of r that are in event_dead_letter.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) DeadLettersIn(ctx context.Context, r Range) (map[decode.Position]bool, error) {
	return s.positionsIn(ctx, r, s.deadLetter)
}

// PositionsIn returns the positions of r that are in event_log or in event_dead_letter.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) PositionsIn(ctx context.Context, r Range) (map[decode.Position]bool, error) {
	return s.positionsIn(ctx, r, s.table, s.deadLetter)
}

func (s *Sink) positionsIn(ctx context.Context, r Range, tables ...string) (map[decode.Position]bool, error) {
	return Decide(ctx, s, func(ctx context.Context) (map[decode.Position]bool, error) {
		there := make(map[decode.Position]bool)
		for _, table := range tables {
			_, err := s.anyPosition(ctx, table, r, "", func(p decode.Position) bool {
				there[p] = true
				return false
			})
			if err != nil {
				return nil, err
			}
		}
		return there, nil
	}, maps.Equal)
}

// HasDeadLetters reports whether event_dead_letter has any row of r that is in want.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) HasDeadLetters(ctx context.Context, r Range, want map[decode.Position]bool) (bool, error) {
	return s.hasPosition(ctx, s.deadLetter, r, "", func(p decode.Position) bool { return want[p] })
}

// hasPosition reports whether a position of r is wanted.
func (s *Sink) hasPosition(ctx context.Context, table string, r Range, limit string, wanted func(decode.Position) bool) (bool, error) {
	return Decide(ctx, s, func(ctx context.Context) (bool, error) {
		return s.anyPosition(ctx, table, r, limit, wanted)
	}, func(a, b bool) bool { return a == b })
}

// anyPosition reads positions of r until one is wanted.
func (s *Sink) anyPosition(ctx context.Context, table string, r Range, limit string, wanted func(decode.Position) bool) (bool, error) {
	// One row: a profile may limit those of a result.
	var lsns []uint64
	var seqs []uint32
	err := s.reader.QueryRow(ctx, "SELECT arrayMap(p -> p.1, list), arrayMap(p -> p.2, list) FROM (SELECT groupArray((commit_lsn, commit_seq)) AS list "+
		"FROM (SELECT DISTINCT commit_lsn, commit_seq FROM "+table+" WHERE "+inRange+limit+"))", s.rangeParameters(r)...).Scan(&lsns, &seqs)
	if err != nil {
		return false, fmt.Errorf("look for written rows: %w", classify(err))
	}
	for i, lsn := range lsns {
		if wanted(decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seqs[i]}) {
			return true, nil
		}
	}
	return false, nil
}

// missingPage bounds the ids of one query.
const missingPage = 1000

// MissingEvents returns those of ids that are neither in event_log, from whatever source, nor in
// event_dead_letter.
//
// Errors: errBelowQuorum, with Tables.Quorum.
func (s *Sink) MissingEvents(ctx context.Context, ids []uuid.UUID) ([]uuid.UUID, error) {
	return Decide(ctx, s, func(ctx context.Context) ([]uuid.UUID, error) { return s.missingEvents(ctx, ids) }, slices.Equal)
}

func (s *Sink) missingEvents(ctx context.Context, ids []uuid.UUID) ([]uuid.UUID, error) {
	var missing []uuid.UUID
	for page := range slices.Chunk(ids, missingPage) {
		list := make([]string, len(page))
		for i, id := range page {
			list[i] = "'" + id.String() + "'"
		}
		in := " WHERE event_id IN (" + strings.Join(list, ",") + ")"
		var found []uuid.UUID // one row: a profile may limit those of a result
		err := s.reader.QueryRow(ctx, "SELECT groupUniqArray(event_id) FROM (SELECT event_id FROM "+s.table+in+" UNION ALL SELECT event_id FROM "+s.deadLetter+in+")").Scan(&found)
		if err != nil {
			return nil, fmt.Errorf("look for events: %w", classify(err))
		}
		there := make(map[uuid.UUID]bool, len(found))
		for _, id := range found {
			there[id] = true
		}
		for _, id := range page {
			if !there[id] {
				missing = append(missing, id)
			}
		}
	}
	return missing, nil
}
