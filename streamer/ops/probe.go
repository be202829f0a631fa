package ops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/clickhouse"
	"diehard/shared/postgres"
	"diehard/streamer/replay"
	"diehard/streamer/replication"
)

// probeTimeout bounds one question to a database.
const probeTimeout = 5 * time.Second

// Probe asks both databases how things stand. It reads only, and is safe for
// concurrent use.
type Probe struct {
	Postgres   *pgxpool.Pool
	ClickHouse clickhouse.Conn
	Origin     replication.Origin
	EventLog   string // table
	DeadLetter string // table
}

// Slot is a logical replication slot of this database.
type Slot struct {
	replication.Slot
	Bookmark  string `json:"bookmark,omitempty"` // its name, if it is a bookmark of our slot
	Restart   string `json:"restart_lsn"`
	Confirmed string `json:"confirmed_flush_lsn"`
}

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
		             ELSE pg_catalog.pg_current_wal_lsn() END)`
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
	batch.Queue(replication.LogicalSlots)
	batch.Queue(publicationSQL, p.Origin.PublicationName())
	began := time.Now()
	results := p.Postgres.SendBatch(ctx, &batch)
	defer func() { _ = results.Close() }()
	answer, err := readPostgres(results, p.Origin.SlotName())
	if err != nil {
		return nil, fmt.Errorf("ask PostgreSQL: %w", postgres.Redact(err))
	}
	answer.asked = began.Add(time.Since(began) / 2)
	return answer, nil
}

func readPostgres(results pgx.BatchResults, slot string) (*Postgres, error) {
	p := &Postgres{}
	if err := results.QueryRow().Scan(&p.now, &p.Version, &p.Recovery, &p.SystemID, &p.walEnd); err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, replication.ScanSlot)
	if err != nil {
		return nil, err
	}
	p.Slots = make([]Slot, len(list))
	for i, s := range list {
		p.Slots[i] = Slot{Slot: s, Bookmark: replay.BookmarkOf(slot, s.Name), Restart: s.RestartLSN.String(), Confirmed: s.ConfirmedFlush.String()}
	}
	err = results.QueryRow().Scan(&p.Publication)
	if errors.Is(err, pgx.ErrNoRows) {
		p.Publication, err = "missing", nil
	}
	return p, err
}
