package ops

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/shared/postgres"
)

// Outbox is the state of the outbox table.
type Outbox struct {
	Retention  float64     `json:"retention_seconds"` // 0: events are kept for ever
	Partitions []Partition `json:"partitions"`        // by day
	Ahead      int         `json:"days_ahead"`        // days after today that have their partition without a gap
	Default    bool        `json:"rows_in_default"`   // diehard_outbox_default holds rows: no day's partition will take them
	Bytes      int64       `json:"bytes"`
	Error      string      `json:"error,omitempty"` // why partition maintenance failed
}

// Partition is one day of the outbox.
type Partition struct {
	Name     string    `json:"name"`
	State    string    `json:"state"` // attached; expired and detached are on their way out
	StartsAt time.Time `json:"starts_at"`
	EndsAt   time.Time `json:"ends_at"`
	Rows     int64     `json:"estimated_rows"` // -1: not known yet
	Bytes    int64     `json:"bytes"`
}

// AskOutbox asks PostgreSQL for the partitions of the outbox.
func (p *Probe) AskOutbox(ctx context.Context) (*Outbox, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var batch pgx.Batch
	batch.Queue(p.Origin.Schema.SQL(`SELECT partition, state, starts_at, ends_at, estimated_rows, coalesce(bytes, 0) FROM {outbox}.diehard_partitions ORDER BY starts_at`))
	batch.Queue(p.Origin.Schema.SQL(`SELECT EXISTS (SELECT FROM {outbox}.diehard_outbox_default), now()`))
	results := p.Postgres.SendBatch(ctx, &batch)
	defer func() { _ = results.Close() }()
	answer, err := readOutbox(results)
	if err != nil {
		return nil, fmt.Errorf("ask PostgreSQL for the outbox: %w", postgres.Redact(err))
	}
	return answer, nil
}

func readOutbox(results pgx.BatchResults) (*Outbox, error) {
	o := &Outbox{}
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	o.Partitions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Partition, error) {
		var p Partition
		err := row.Scan(&p.Name, &p.State, &p.StartsAt, &p.EndsAt, &p.Rows, &p.Bytes)
		o.Bytes += p.Bytes
		return p, err
	})
	if err != nil {
		return nil, err
	}
	var now time.Time
	if err := results.QueryRow().Scan(&o.Default, &now); err != nil {
		return nil, err
	}
	o.Ahead = daysAhead(o.Partitions, now)
	return o, nil
}

// daysAhead counts the days after now's that have a partition, up to the first
// that has none; -1 when today has none.
func daysAhead(partitions []Partition, now time.Time) int {
	has := map[time.Time]bool{}
	for _, p := range partitions {
		has[p.StartsAt.UTC()] = true
	}
	days := -1
	for day := now.UTC().Truncate(24 * time.Hour); has[day]; day = day.AddDate(0, 0, 1) {
		days++
	}
	return days
}

// states counts the partitions by state.
func (o *Outbox) states() map[string]int {
	counts := map[string]int{"attached": 0, "expired": 0, "detached": 0}
	for _, p := range o.Partitions {
		counts[p.State]++
	}
	return counts
}
