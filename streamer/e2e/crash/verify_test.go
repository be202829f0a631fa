package crash_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// result is what the comparison of both databases brought.
type result struct {
	events, deadLetters       uint64
	transactions, resolved    int // resolved: of unknown outcome
	rolledBack                int // transactions
	lost, duplicated, foreign int
	disordered, misplaced     int
	early                     int // samples whose confirmed LSN was ahead of what was durable
}

// mark is what is known of an event, from the journal and from both databases.
type mark uint8

const (
	expected mark = 1 << iota // must have been delivered
	poisoned                  // … as a dead letter
	stored                    // must be in the outbox
	inOutbox
	delivered // in event_log or the dead letters
)

// row is a delivered row, known by its place in the stream.
type row struct {
	lsn      uint64
	seq      uint32
	dead     bool
	producer uint8
	number   uint32
}

// ledger holds one mark an event: by producer, then by number.
type ledger [producers][]mark

// verify compares what was committed with what arrived. Nothing runs any more.
func verify(ctx context.Context, w *environment, c *producerGroup, o *observer) result {
	var r result
	conn, err := pgx.Connect(ctx, w.url)
	require.NoError(w.t, err)
	defer conn.Close(ctx)
	var book ledger
	book.open(c)
	book.readOutbox(ctx, w, conn)
	book.readJournals(ctx, w, conn, c, &r)
	rows := readRows(ctx, w)
	book.compare(w, rows, &r)
	checkOrder(w, rows, &r)
	checkSamples(w, rows, o.samples, &r)
	checkBySQL(ctx, w, &r)
	return r
}

func (l *ledger) open(c *producerGroup) {
	for _, p := range c.members {
		l[p.index] = make([]mark, p.number+1)
	}
}

// readOutbox marks what PostgreSQL has: the truth about what was committed.
func (l *ledger) readOutbox(ctx context.Context, w *environment, conn *pgx.Conn) {
	rows, err := conn.Query(ctx, "SELECT id FROM outbox")
	require.NoError(w.t, err)
	var id uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&id)}, func() error {
		producer, number, ok := w.parseID(id)
		switch {
		case !ok:
			w.problem("the outbox holds %s, which no producer wrote", id)
		case l[producer][number]&inOutbox != 0:
			w.problem("the outbox holds %s twice", id)
		default:
			l[producer][number] |= inOutbox
		}
		return nil
	})
	require.NoError(w.t, err)
}

// readJournals marks what must have been delivered. A transaction of unknown
// outcome was committed if the outbox has its events, or the witness.
func (l *ledger) readJournals(ctx context.Context, w *environment, conn *pgx.Conn, c *producerGroup, r *result) {
	for _, p := range c.members {
		for _, tx := range p.journal {
			r.transactions++
			if tx.outcome == unknown {
				r.resolved++
				tx.outcome = l.resolve(ctx, w, conn, p.index, tx)
			}
			if tx.outcome == rolledBack {
				r.rolledBack++
				continue
			}
			l.expect(p.index, tx)
		}
	}
	for producer, marks := range l {
		for number, m := range marks {
			if (m&stored == 0) != (m&inOutbox == 0) {
				w.problem("PostgreSQL and the journal of producer %d do not agree about event %d: %b", producer, number, m)
			}
		}
	}
}

func (l *ledger) resolve(ctx context.Context, w *environment, conn *pgx.Conn, producer uint8, tx *transaction) outcome {
	if tx.witness != 0 {
		var isCommitted bool
		require.NoError(w.t, conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM witness WHERE producer = $1 AND number = $2)",
			producer, tx.witness).Scan(&isCommitted))
		if isCommitted {
			return committed
		}
		return rolledBack
	}
	for _, e := range tx.entries {
		if e.fate == stays && !e.message && l[producer][e.number]&inOutbox != 0 {
			return committed
		}
	}
	return rolledBack
}

func (l *ledger) expect(producer uint8, tx *transaction) {
	for _, e := range tx.entries {
		m := &l[producer][e.number]
		if e.fate != undone {
			*m |= expected
		}
		if e.fate == stays && !e.message {
			*m |= stored
		}
		if e.poison {
			*m |= poisoned
		}
	}
}

// readRows returns all that arrived, in stream order.
func readRows(ctx context.Context, w *environment) []row {
	var all []row
	for _, table := range []string{eventLog, deadLetters} {
		rows, err := w.ch.Query(ctx, "SELECT event_id, commit_lsn, commit_seq FROM "+table)
		require.NoError(w.t, err)
		for rows.Next() {
			r := row{dead: table == deadLetters}
			var id uuid.UUID
			require.NoError(w.t, rows.Scan(&id, &r.lsn, &r.seq))
			var ok bool
			if r.producer, r.number, ok = w.parseID(id); !ok {
				w.problem("%s holds %s at %s, which no producer wrote", table, id, pglogrepl.LSN(r.lsn))
				continue
			}
			all = append(all, r)
		}
		require.NoError(w.t, rows.Err())
	}
	slices.SortFunc(all, func(a, b row) int { return cmp.Or(cmp.Compare(a.lsn, b.lsn), cmp.Compare(a.seq, b.seq)) })
	return all
}

// compare sets what arrived against what was committed.
func (l *ledger) compare(w *environment, rows []row, r *result) {
	for _, x := range rows {
		marks := l[x.producer]
		if int(x.number) >= len(marks) || marks[x.number]&expected == 0 {
			r.foreign++
			w.detail(r.foreign, "event %d of producer %d arrived at %s/%d and was never committed", x.number, x.producer, pglogrepl.LSN(x.lsn), x.seq)
			continue
		}
		m := &marks[x.number]
		if *m&delivered != 0 {
			r.duplicated++
			w.detail(r.duplicated, "event %d of producer %d arrived again at %s/%d", x.number, x.producer, pglogrepl.LSN(x.lsn), x.seq)
		}
		if x.dead != (*m&poisoned != 0) {
			r.misplaced++
			w.detail(r.misplaced, "event %d of producer %d at %s/%d is a dead letter: %v", x.number, x.producer, pglogrepl.LSN(x.lsn), x.seq, x.dead)
		}
		*m |= delivered
	}
	for producer, marks := range l {
		for number, m := range marks {
			if m&expected != 0 && m&delivered == 0 {
				r.lost++
				w.detail(r.lost, "event %d of producer %d was committed and never arrived", number, producer)
			}
		}
	}
}

// detail records the first few problems of a kind.
func (w *environment) detail(n int, format string, args ...any) {
	const enough = 5
	if n <= enough {
		w.problem(format, args...)
	}
	if n == enough+1 {
		w.problem("… and more of that kind")
	}
}

// checkOrder demands that every producer's events come in the order it wrote them.
func checkOrder(w *environment, rows []row, r *result) {
	var last [producers]uint32
	for _, x := range rows {
		if x.number <= last[x.producer] {
			r.disordered++
			w.detail(r.disordered, "event %d of producer %d comes after its event %d", x.number, x.producer, last[x.producer])
		}
		last[x.producer] = max(last[x.producer], x.number)
	}
}

// checkSamples demands of every sample that all rows below the confirmed LSN,
// as they are known now, were already there.
func checkSamples(w *environment, rows []row, samples []sample, r *result) {
	for _, s := range samples {
		now := sort.Search(len(rows), func(i int) bool { return rows[i].lsn >= uint64(s.confirmed) })
		if uint64(now) != s.written {
			r.early++
			w.detail(r.early, "at %s %s was confirmed to PostgreSQL, and %d of %d rows before it were there",
				s.at.UTC().Format("15:04:05.000"), s.confirmed, s.written, now)
		}
	}
}

// checkBySQL asks as a user would: plain SELECTs, no FINAL.
func checkBySQL(ctx context.Context, w *environment, r *result) {
	for table, n := range map[string]*uint64{eventLog: &r.events, deadLetters: &r.deadLetters} {
		var ids, places, sources uint64
		require.NoError(w.t, w.ch.QueryRow(ctx, "SELECT count(), uniqExact(event_id), uniqExact((source, commit_lsn, commit_seq)), uniqExact(source) FROM "+table).
			Scan(n, &ids, &places, &sources))
		if ids != *n || places != *n || sources > 1 {
			w.problem("%s: count() %d, uniqExact(event_id) %d, unique places %d, sources %d", table, *n, ids, places, sources)
		}
	}
	const mangled = `SELECT count() FROM ` + eventLog + ` WHERE JSONExtractUInt(event_context, 'number')
			!= reinterpretAsUInt32(reverse(unhex(right(toString(event_id), 8)))) OR timeline != 1 OR event_type = ''`
	var n uint64
	require.NoError(w.t, w.ch.QueryRow(ctx, mangled).Scan(&n))
	if n > 0 {
		w.problem("%d rows carry the context of another event", n)
	}
	if r.events == 0 {
		w.problem("%s is empty", eventLog)
	}
}

// lines are the table of a run.
func (r result) lines() [][2]string {
	return [][2]string{
		{"events in event_log", fmt.Sprint(r.events)},
		{"dead letters", fmt.Sprint(r.deadLetters)},
		{"transactions", fmt.Sprint(r.transactions)},
		{"rolled back", fmt.Sprint(r.rolledBack)},
		{"outcome unknown to the producer", fmt.Sprint(r.resolved)},
		{"lost", fmt.Sprint(r.lost)},
		{"duplicated", fmt.Sprint(r.duplicated)},
		{"never committed", fmt.Sprint(r.foreign)},
		{"out of order", fmt.Sprint(r.disordered)},
		{"in the wrong table", fmt.Sprint(r.misplaced)},
	}
}
