package ops

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pglogrepl"

	"diehard/shared/telemetry"
	"diehard/streamer/sink"
)

// maxDeadLetters is how many of the last dead letters are shown.
const maxDeadLetters = 10

// ClickHouse is what ClickHouse says about our tables.
type ClickHouse struct {
	Version     string      `json:"version"`
	Parts       uint64      `json:"parts"`              // active parts of the event log
	MostParts   uint64      `json:"parts_in_partition"` // of the partition with the most
	Rows        uint64      `json:"rows"`               // of all sources
	Bytes       uint64      `json:"bytes"`              // on disk
	Disk        Disk        `json:"disk"`
	DeadLetters DeadLetters `json:"dead_letters"`

	views   *sink.ViewError // that refuse every insert; nil: none
	lastLSN pglogrepl.LSN   // of the last row of our source
	skew    time.Duration
}

// LastLSN is the commit LSN of the last row of our source; 0 without rows.
func (c *ClickHouse) LastLSN() pglogrepl.LSN { return c.lastLSN }

// Views are the materialized views that refuse every insert; nil for none.
func (c *ClickHouse) Views() *sink.ViewError { return c.views }

// Skew is ClickHouse's clock minus ours, to within half a round trip.
func (c *ClickHouse) Skew() time.Duration { return c.skew }

// Disk is the disk with the least free space; zero where the user may not read system.disks.
type Disk struct {
	Free  uint64 `json:"free_bytes"`
	Total uint64 `json:"total_bytes"`
}

// DeadLetters are the open dead letters of our source.
type DeadLetters struct {
	Open   uint64       `json:"open"`
	Recent []DeadLetter `json:"recent"`
}

// DeadLetter is one of them, without its payload.
type DeadLetter struct {
	LSN      string    `json:"commit_lsn"`
	Seq      uint32    `json:"commit_seq"`
	EventID  string    `json:"event_id"`
	Type     string    `json:"event_type"`
	Reason   string    `json:"reason"`
	FailedAt time.Time `json:"failed_at"`
}

// AskClickHouse asks ClickHouse. source is the value of the column source.
func (p *Probe) AskClickHouse(ctx context.Context, source string) (*ClickHouse, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	answer := &ClickHouse{}
	for _, ask := range []func(context.Context, string, *ClickHouse) error{
		p.askServer, p.askDisk, p.askPosition, p.askDeadLetters, p.askViews,
	} {
		if err := ask(ctx, source, answer); err != nil {
			return nil, fmt.Errorf("ask ClickHouse: %w", err)
		}
	}
	return answer, nil
}

func (p *Probe) askServer(ctx context.Context, _ string, c *ClickHouse) error {
	began := time.Now()
	var now time.Time
	err := p.ClickHouse.QueryRow(ctx, `
		SELECT version(), now64(6, 'UTC'), sum(n), max(n), sum(r), sum(b) FROM (
			SELECT count() AS n, sum(rows) AS r, sum(bytes_on_disk) AS b FROM system.parts
			WHERE database = currentDatabase() AND table = {table:String} AND active GROUP BY partition_id)`,
		clickhouse.Named("table", p.EventLog)).
		Scan(&c.Version, &now, &c.Parts, &c.MostParts, &c.Rows, &c.Bytes)
	c.skew = now.Sub(began.Add(time.Since(began) / 2))
	return err
}

func (p *Probe) askDisk(ctx context.Context, _ string, c *ClickHouse) error {
	err := p.ClickHouse.QueryRow(ctx, `SELECT min(free_space), argMin(total_space, free_space) FROM system.disks`).Scan(&c.Disk.Free, &c.Disk.Total)
	if proto.Error(sink.Code(err)) == proto.ErrAccessDenied {
		return nil // it is for alerts alone
	}
	return err
}

// askViews finds out before there is an event which views refuse it.
func (p *Probe) askViews(ctx context.Context, _ string, c *ClickHouse) (err error) {
	for _, table := range []string{p.EventLog, p.DeadLetter} {
		if c.views, err = sink.RefusingViews(ctx, p.ClickHouse, table); err != nil || c.views != nil {
			break
		}
	}
	if sink.Code(err) != 0 {
		return nil // the user may not ask
	}
	return err
}

// askPosition is answered from the table's projection.
func (p *Probe) askPosition(ctx context.Context, source string, c *ClickHouse) error {
	table := sink.Quote(p.EventLog)
	end, err := sink.ReadEnd(ctx, p.ClickHouse, table, source)
	c.lastLSN = end.LSN
	return err
}

func (p *Probe) askDeadLetters(ctx context.Context, source string, c *ClickHouse) error {
	table := sink.Quote(p.DeadLetter)
	rows, err := p.ClickHouse.Query(ctx, `
		SELECT commit_lsn, commit_seq, toString(event_id), event_type, reason, error_code, failed_at, count() OVER ()
		FROM `+table+` FINAL WHERE source = {source:String} AND `+sink.DeadLetterOpen+`
		ORDER BY failed_at DESC, commit_lsn DESC, commit_seq DESC LIMIT {limit:UInt8}`,
		clickhouse.Named("source", source), clickhouse.Named("limit", fmt.Sprint(maxDeadLetters)))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var d DeadLetter
		var lsn uint64
		var code int32
		if err := rows.Scan(&lsn, &d.Seq, &d.EventID, &d.Type, &d.Reason, &code, &d.FailedAt, &c.DeadLetters.Open); err != nil {
			return err
		}
		d.LSN, d.Reason = pglogrepl.LSN(lsn).String(), telemetry.Redact(sink.RedactedReason(d.Reason, code))
		c.DeadLetters.Recent = append(c.DeadLetters.Recent, d)
	}
	return rows.Err()
}
