package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/streamer/replay"
)

// probeTimeout bounds one question to a database.
const probeTimeout = 5 * time.Second

// Probe asks both databases how things stand. It reads only, and is safe for
// concurrent use.
type Probe struct {
	Postgres    *pgxpool.Pool
	ClickHouse  driver.Conn
	Slot        string
	Publication string
	Schema      event.Schema // of the outbox
	EventLog    string       // table
	DeadLetter  string       // table
}

// Slot is a logical replication slot of this database.
type Slot struct {
	Name               string     `json:"name"`
	Bookmark           string     `json:"bookmark,omitempty"` // its name, if it is a bookmark of our slot
	Active             bool       `json:"active"`
	Holder             string     `json:"holder,omitempty"` // application name of the session that streams from it
	WALStatus          string     `json:"wal_status"`
	RestartLSN         string     `json:"restart_lsn"`
	ConfirmedLSN       string     `json:"confirmed_flush_lsn"`
	LagBytes           int64      `json:"lag_bytes"`
	RetainedBytes      int64      `json:"retained_bytes"`
	SafeBytes          *int64     `json:"safe_wal_bytes"` // nil: nothing limits the slot
	InactiveSince      *time.Time `json:"inactive_since,omitempty"`
	InvalidationReason string     `json:"invalidation_reason,omitempty"`
	// WaitsFor are slots of standbys that are not connected, and without which PostgreSQL
	// sends nothing from this slot (synchronized_standby_slots).
	WaitsFor []string `json:"waits_for,omitempty"`

	restart, confirmed pglogrepl.LSN
}

// Lost reports whether PostgreSQL has removed WAL that the slot needs.
func (s Slot) Lost() bool { return s.WALStatus == "lost" || s.InvalidationReason != "" }

// Creating reports that the slot has no position yet.
func (s Slot) Creating() bool { return s.Active && s.confirmed == 0 }

// Postgres is what PostgreSQL says.
type Postgres struct {
	Version     string `json:"version"`
	SystemID    string `json:"system_id"`
	Recovery    bool   `json:"in_recovery"`
	Publication string `json:"publication"` // "ok", or what is wrong with it
	Slots       []Slot `json:"slots"`

	asked  time.Time     // our clock, half-way between question and answer
	now    time.Time     // its clock
	walEnd pglogrepl.LSN // position of its WAL
}

// Slot returns the slot called name, nil if there is none.
func (p *Postgres) Slot(name string) *Slot {
	for i := range p.Slots {
		if p.Slots[i].Name == name {
			return &p.Slots[i]
		}
	}
	return nil
}

// Skew is PostgreSQL's clock minus ours, to within half a round trip.
func (p *Postgres) Skew() time.Duration { return p.now.Sub(p.asked) }

// WALEnd is the end of the WAL.
func (p *Postgres) WALEnd() pglogrepl.LSN { return p.walEnd }

const (
	serverSQL = `
		SELECT clock_timestamp(), split_part(current_setting('server_version'), ' ', 1), pg_catalog.pg_is_in_recovery(),
		       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
		       (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
		             ELSE pg_catalog.pg_current_wal_lsn() END)::text`
	slotsSQL = `
		SELECT s.slot_name, s.active, coalesce(a.application_name, ''), coalesce(s.wal_status, ''),
		       coalesce(s.restart_lsn, '0/0')::text, coalesce(s.confirmed_flush_lsn, '0/0')::text, s.safe_wal_size,
		       (to_jsonb(s)->>'inactive_since')::timestamptz, coalesce(to_jsonb(s)->>'invalidation_reason', ''),
		       CASE WHEN (to_jsonb(s)->>'failover')::boolean THEN ARRAY (
		           SELECT trim(n, ' "') FROM unnest(string_to_array(nullif(current_setting('synchronized_standby_slots', true), ''), ',')) AS n
		           WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots p WHERE p.slot_name = trim(n, ' "') AND p.active)) END
		FROM pg_catalog.pg_replication_slots s
		LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
		WHERE s.slot_type = 'logical' AND s.database = current_database() ORDER BY s.slot_name`
	publicationSQL = `
		SELECT CASE WHEN NOT pubinsert OR pubupdate OR pubdelete OR pubtruncate THEN 'must publish inserts only'
		            WHEN NOT pubviaroot THEN 'must publish via the partition root' ELSE 'ok' END
		FROM pg_catalog.pg_publication WHERE pubname = $1`
)

// AskPostgres asks PostgreSQL, in one round trip.
func (p *Probe) AskPostgres(ctx context.Context) (*Postgres, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var batch pgx.Batch
	batch.Queue(serverSQL)
	batch.Queue(slotsSQL)
	batch.Queue(publicationSQL, p.Publication)
	began := time.Now()
	results := p.Postgres.SendBatch(ctx, &batch)
	defer func() { _ = results.Close() }()
	answer, err := readPostgres(results, p.Slot)
	if err != nil {
		return nil, fmt.Errorf("ask PostgreSQL: %w", postgres.Redact(err))
	}
	answer.asked = began.Add(time.Since(began) / 2)
	return answer, nil
}

func readPostgres(results pgx.BatchResults, slot string) (*Postgres, error) {
	p := &Postgres{}
	var end string
	if err := results.QueryRow().Scan(&p.now, &p.Version, &p.Recovery, &p.SystemID, &end); err != nil {
		return nil, err
	}
	var err error
	if p.walEnd, err = pglogrepl.ParseLSN(end); err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	if p.Slots, err = pgx.CollectRows(rows, p.scanSlot); err != nil {
		return nil, err
	}
	for i, s := range p.Slots {
		p.Slots[i].Bookmark = replay.BookmarkOf(slot, s.Name)
	}
	err = results.QueryRow().Scan(&p.Publication)
	if errors.Is(err, pgx.ErrNoRows) {
		p.Publication, err = "missing", nil
	}
	return p, err
}

func (p *Postgres) scanSlot(row pgx.CollectableRow) (Slot, error) {
	var s Slot
	err := row.Scan(&s.Name, &s.Active, &s.Holder, &s.WALStatus, &s.RestartLSN, &s.ConfirmedLSN,
		&s.SafeBytes, &s.InactiveSince, &s.InvalidationReason, &s.WaitsFor)
	if err != nil {
		return s, err
	}
	if s.restart, err = pglogrepl.ParseLSN(s.RestartLSN); err != nil {
		return s, err
	}
	if s.confirmed, err = pglogrepl.ParseLSN(s.ConfirmedLSN); err != nil {
		return s, err
	}
	s.LagBytes, s.RetainedBytes = behind(p.walEnd, s.confirmed), behind(p.walEnd, s.restart)
	return s, nil
}

// behind is how many bytes of WAL lie between lsn and end; 0 for an unknown lsn.
func behind(end, lsn pglogrepl.LSN) int64 {
	if lsn == 0 || lsn >= end {
		return 0
	}
	return int64(end - lsn) //nolint:gosec // a distance within one WAL
}
