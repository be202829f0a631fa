package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// Slot is a row of pg_replication_slots, and who streams from it. What a version of
// PostgreSQL does not know is empty.
type Slot struct {
	Name               string        `json:"name"`
	Plugin             string        `json:"-"`
	Database           string        `json:"-"`
	Active             bool          `json:"active"`
	Holder             string        `json:"holder,omitempty"` // application name of the session that streams from it
	WALStatus          string        `json:"wal_status"`
	InvalidationReason string        `json:"invalidation_reason,omitempty"`
	RestartLSN         pglogrepl.LSN `json:"-"`
	ConfirmedFlush     pglogrepl.LSN `json:"-"`
	LagBytes           int64         `json:"lag_bytes"`      // of WAL behind ConfirmedFlush
	RetainedBytes      int64         `json:"retained_bytes"` // of WAL behind RestartLSN, which the server keeps
	SafeBytes          *int64        `json:"safe_wal_bytes"` // nil: nothing limits the slot
	InactiveSince      *time.Time    `json:"inactive_since,omitempty"`
	Failover           bool          `json:"-"`
	// WaitsFor are slots of standbys that are not connected, and without which PostgreSQL
	// sends nothing from this slot (synchronized_standby_slots).
	WaitsFor []string `json:"waits_for,omitempty"`
	// MissedEvents is set by CreateInitialSlot: the outbox already had events, which the slot may not deliver.
	MissedEvents bool `json:"-"`
}

// Lost reports whether PostgreSQL has removed WAL that the slot needs.
func (s Slot) Lost() bool { return s.WALStatus == "lost" || s.InvalidationReason != "" }

// Creating reports that the slot has no position yet.
func (s Slot) Creating() bool { return s.Active && s.ConfirmedFlush == 0 }

// missingStandbys is an array of the slots of synchronized_standby_slots that no standby reads.
const missingStandbys = `ARRAY (
	SELECT trim(n, ' "') FROM unnest(string_to_array(nullif(current_setting('synchronized_standby_slots', true), ''), ',')) AS n
	WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots p WHERE p.slot_name = trim(n, ' "') AND p.active))`

// slots is a query for slots, which ScanSlot reads. Columns that are newer than PostgreSQL 14
// are read through to_jsonb.
const slots = `
	SELECT s.slot_name, coalesce(s.plugin, ''), coalesce(s.database, ''), s.active,
	       CASE WHEN s.active_pid IS NOT NULL THEN coalesce((SELECT application_name FROM pg_catalog.pg_stat_get_activity(s.active_pid)), '') ELSE '' END,
	       coalesce(s.wal_status, ''), coalesce(to_jsonb(s)->>'invalidation_reason', ''),
	       coalesce(s.restart_lsn, '0/0'), coalesce(s.confirmed_flush_lsn, '0/0'),
	       greatest(coalesce(w.lsn - s.confirmed_flush_lsn, 0), 0)::bigint, greatest(coalesce(w.lsn - s.restart_lsn, 0), 0)::bigint,
	       s.safe_wal_size, (to_jsonb(s)->>'inactive_since')::timestamptz, coalesce((to_jsonb(s)->>'failover')::boolean, false),
	       CASE WHEN (to_jsonb(s)->>'failover')::boolean THEN ` + missingStandbys + ` END
	FROM pg_catalog.pg_replication_slots s,
	     (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END AS lsn) w`

// LogicalSlots is a query for the logical slots of the session's database, which ScanSlot reads.
const LogicalSlots = slots + ` WHERE s.slot_type = 'logical' AND s.database = current_database() ORDER BY s.slot_name`

// ScanSlot reads a row of LogicalSlots.
func ScanSlot(row pgx.CollectableRow) (s Slot, err error) {
	err = row.Scan(&s.Name, &s.Plugin, &s.Database, &s.Active, &s.Holder, &s.WALStatus, &s.InvalidationReason,
		&s.RestartLSN, &s.ConfirmedFlush, &s.LagBytes, &s.RetainedBytes, &s.SafeBytes, &s.InactiveSince, &s.Failover, &s.WaitsFor)
	return s, err
}

// ErrNoSlot means that the slot does not exist.
var ErrNoSlot = errors.New("the replication slot does not exist")

// ReadSlot reads the state of a slot, which may be one of another database. Every row of a
// commit before its ConfirmedFlush is in event_log or in the dead-letter table, or was.
//
// Errors: ErrNoSlot.
func ReadSlot(ctx context.Context, conn *pgx.Conn, name string) (Slot, error) {
	rows, err := conn.Query(ctx, slots+` WHERE s.slot_name = $1`, name)
	if err != nil {
		return Slot{Name: name}, classify(fmt.Errorf("read slot %s: %w", name, err))
	}
	s, err := pgx.CollectExactlyOneRow(rows, ScanSlot)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Slot{Name: name}, ErrNoSlot
	case err != nil:
		return Slot{Name: name}, classify(fmt.Errorf("read slot %s: %w", name, err))
	}
	return s, nil
}

// Slot reads the streamer's slot.
//
// Errors: ErrNoSlot.
func (c *Control) Slot(ctx context.Context) (Slot, error) { return ReadSlot(ctx, c.conn, c.slot) }
