package crash_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"diehard/shared/dev/await"
)

const (
	samplePause = 200 * time.Millisecond
	// A sample costs more as the tables grow; a pause is at least so many times as long.
	sampleSpare = 3
)

// sample is taken in this order: first what PostgreSQL believes to be safe, then
// what is there. Whatever committed before confirmed must be among the rows
// counted, so their number must never grow: see verify.
type sample struct {
	at        time.Time
	confirmed pglogrepl.LSN
	slot      string
	timeline  uint32 // of PostgreSQL
	written   uint64 // the slot's rows of its timelines with a commit LSN below confirmed, in both tables, but for those that may leave
}

// observer watches both databases from outside, past the network.
type observer struct {
	w        *environment
	conn     *pgx.Conn
	samples  []sample      // complete after stop
	rounds   atomic.Uint64 // samples taken
	stopping context.CancelFunc
	over     sync.WaitGroup
}

func startObserver(t *testing.T, w *environment) *observer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &observer{w: w, stopping: cancel}
	o.over.Go(func() { o.run(ctx) })
	// What is written before the slot exists is not the streamer's.
	await.True(t, func() bool { return o.rounds.Load() > 0 }, "no streamer makes the slot")
	return o
}

func (o *observer) stop() {
	o.stopping()
	o.over.Wait()
}

func (o *observer) run(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		if s, err := o.sample(ctx); err == nil {
			o.samples = append(o.samples, s)
			o.rounds.Add(1)
		}
		pause(ctx, max(samplePause, sampleSpare*time.Since(began)))
	}
	if o.conn != nil {
		_ = o.conn.Close(context.WithoutCancel(ctx))
	}
}

// sample fails while a database is down: there is nothing to compare then.
func (o *observer) sample(ctx context.Context) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s := sample{at: time.Now(), slot: o.w.slot()}
	if err := o.confirmed(ctx, &s); err != nil {
		return s, err
	}
	err := o.w.ch.QueryRow(ctx, fmt.Sprintf(`
		SELECT count() FROM (SELECT source, timeline, commit_lsn FROM %s WHERE event_type != '%s' UNION ALL SELECT source, timeline, commit_lsn FROM %s)
		WHERE commit_lsn < %d AND timeline <= %d AND endsWith(source, '/%s')
		SETTINGS max_threads = 1`, eventLog, fleetingType, deadLetters, uint64(s.confirmed), s.timeline, s.slot)).Scan(&s.written)
	if err == nil && o.w.isMoved() {
		err = errors.New("a foreign reader has moved the slot")
	}
	return s, err
}

// confirmed reads what PostgreSQL holds to be safe.
func (o *observer) confirmed(ctx context.Context, s *sample) error {
	if o.conn == nil || o.conn.IsClosed() {
		conn, err := pgx.Connect(ctx, o.w.url)
		if err != nil {
			return err
		}
		o.conn = conn
	}
	var text string
	err := o.conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint
		FROM pg_replication_slots WHERE slot_name = $1`, s.slot).Scan(&text, &s.timeline)
	if err == nil {
		s.confirmed, err = pglogrepl.ParseLSN(text)
	}
	return err
}

// confirmedNow returns what PostgreSQL holds to be safe, and the end of its WAL.
func (w *environment) confirmedNow(ctx context.Context) (confirmed, end pglogrepl.LSN, err error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close(ctx)
	var c, e string
	err = conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text, pg_current_wal_insert_lsn()::text
		FROM pg_replication_slots WHERE slot_name = $1`, w.slot()).Scan(&c, &e)
	if err != nil {
		return 0, 0, err
	}
	if confirmed, err = pglogrepl.ParseLSN(c); err == nil {
		end, err = pglogrepl.ParseLSN(e)
	}
	return confirmed, end, err
}

// rows is how many events are written, but for those that may leave; 0 while ClickHouse does not answer.
func (o *observer) rows(ctx context.Context) uint64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var n uint64
	if o.w.ch.QueryRow(ctx, "SELECT count() FROM "+eventLog+" WHERE event_type != '"+fleetingType+"'").Scan(&n) != nil {
		return 0
	}
	return n
}

// awaitProgress waits until rows were written since there were n, at most for d.
func (o *observer) awaitProgress(ctx context.Context, n uint64, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		switch now := o.rows(ctx); {
		case n == 0: // ClickHouse did not answer then
			n = now
		case now > n:
			return true
		}
		if !pause(ctx, 50*time.Millisecond) {
			return false
		}
	}
}

// awaitLag waits until there are at most n bytes of WAL to deliver, at most for d.
func (o *observer) awaitLag(ctx context.Context, n pglogrepl.LSN, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		confirmed, end, err := o.w.confirmedNow(ctx)
		if err == nil && end <= confirmed+n || !pause(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// awaitEverything waits until PostgreSQL knows that all it has is safe, as long
// as something moves within stallTimeout.
func (o *observer) awaitEverything(ctx context.Context, stallTimeout time.Duration) {
	var goal pglogrepl.LSN
	var rows uint64
	for moved := time.Now(); time.Since(moved) < stallTimeout; pause(ctx, 100*time.Millisecond) {
		confirmed, end, err := o.w.confirmedNow(ctx)
		if goal == 0 && err == nil {
			goal = end
		}
		if goal != 0 && confirmed >= goal {
			return
		}
		if now := o.rows(ctx); now > rows {
			rows, moved = now, time.Now()
		}
	}
	o.w.problem("not everything was confirmed, and nothing has moved for %s of quiet", stallTimeout)
}
