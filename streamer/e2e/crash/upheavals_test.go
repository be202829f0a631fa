package crash_test

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// upheavals are what changes the truth that the databases are compared by: failovers,
// foreign readers, and the repairs that they need.
type upheavals struct {
	// deletes is held by who deletes rows, and around a failover: rows that leave in the
	// seconds before it may come back.
	deletes sync.Mutex
	// calm is held by the operator while faults have to wait.
	calm sync.Mutex

	mu        sync.Mutex
	slots     int                // names that the slot has had
	renaming  bool               // there may be no slot
	renamed   time.Time          // the last time, when that was over
	moved     bool               // by a foreign reader, and not accepted yet
	repairing bool               // the operator is at work
	excused   map[uuid.UUID]bool // taken out of a slot: what the outbox lacks is gone
	gaps      []gap
	forks     []fork
	tally     tally
}

// tally is what the report says of upheavals.
type tally struct {
	failovers, behind, foreign, refusals, repairs, filled int
}

// gap is a time whose commits a failover has lost.
type gap struct{ from, to time.Time }

// fork is where the WAL of a promoted copy left a timeline.
type fork struct {
	timeline int
	at       pglogrepl.LSN
}

func newUpheavals() *upheavals {
	return &upheavals{slots: 1, excused: map[uuid.UUID]bool{}}
}

// with calls do under the lock.
func (u *upheavals) with(do func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	do()
}

// awaitCalm waits until the operator lets faults begin.
func (u *upheavals) awaitCalm() {
	u.calm.Lock()
	u.calm.Unlock() //nolint:staticcheck // an empty section: having had the lock is all
}

// total is the tally so far.
func (u *upheavals) total() (t tally) {
	u.with(func() { t = u.tally })
	return t
}

// slot is the name of the slot now.
func (w *environment) slot() (name string) {
	w.upheavals.with(func() {
		name = "outbox_streamer"
		if n := w.upheavals.slots; n > 1 {
			name = fmt.Sprintf("%s_%d", name, n)
		}
	})
	return name
}

// isMoved reports whether the slot stands where no streamer has put it.
func (w *environment) isMoved() (moved bool) {
	w.upheavals.with(func() { moved = w.upheavals.moved })
	return moved
}

// lackedSlot reports whether events in messages may have been refused since began, because no streamer read them.
func (u *upheavals) lackedSlot(began time.Time) (lacked bool) {
	u.with(func() { lacked = u.renaming || began.Before(u.renamed) })
	return lacked
}

// isLost reports whether a failover can have lost what was committed from one moment to another.
func (u *upheavals) isLost(from, to time.Time) (lost bool) {
	u.with(func() {
		for _, g := range u.gaps {
			lost = lost || !to.Before(g.from) && !from.After(g.to)
		}
	})
	return lost
}

// settled reports whether a streamer goes on behind the last upheaval.
func (w *environment) settled(ctx context.Context) bool {
	var busy, ours bool
	w.upheavals.with(func() { busy = w.upheavals.moved || w.upheavals.repairing })
	if busy {
		return false
	}
	err := w.ask(ctx, `SELECT timeline = ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AND confirm_lsn <> '0/0'
		FROM diehard_intent WHERE slot_name = $1`, &ours, w.slot())
	return err == nil && ours
}

// ask reads one value of PostgreSQL.
func (w *environment) ask(ctx context.Context, sql string, value any, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return w.onPostgres(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(value) })
}

var idPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}`)

// take reads a slot with a function of PostgreSQL's, which moves it or does not. It returns the events of this run
// that were in it, and the position of the last change.
func (w *environment) take(ctx context.Context, conn *pgx.Conn, function, name string, upTo *string, changes *int) (ids []uuid.UUID, last string, err error) {
	rows, err := conn.Query(ctx, `SELECT lsn::text, data FROM `+function+`($1, $2::pg_lsn, $3,
		'proto_version', '1', 'publication_names', 'outbox_pub', 'messages', 'true')`, name, upTo, changes)
	if err != nil {
		return nil, "", err
	}
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&last, &data}, func() error {
		for _, text := range idPattern.FindAllString(string(data), -1) {
			id := uuid.MustParse(text)
			if _, _, ok := w.parseID(id); ok {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, last, err
}

// excuse notes events that no stream brings any more.
func (u *upheavals) excuse(ids []uuid.UUID) {
	u.with(func() {
		for _, id := range ids {
			u.excused[id] = true
		}
	})
}
