package crash_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

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
	gone, goneDelivered       int // events lost with a primary; those that had arrived before
	excused                   int // events not in the outbox that an upheaval took out of the slot
	deleted, returned         int // rows that left event_log; those that a replay brought back
}

// row is a delivered row, known by its place in the stream.
type row struct {
	origin   uint8 // index into the origins
	dead     bool
	producer uint8
	number   uint32
	lsn      uint64
	seq      uint32
}

// origin is a stream of rows.
type origin struct {
	source   string
	timeline uint32
}

// verify compares what was committed with what arrived. Nothing runs any more.
func verify(ctx context.Context, w *environment, c *producerGroup, o *observer) result {
	var r result
	conn, err := pgx.Connect(ctx, w.url)
	require.NoError(w.t, err)
	defer conn.Close(ctx)
	require.NoError(w.t, w.noteFleeting(ctx))
	var book ledger
	book.open(c)
	book.readOutbox(ctx, w, conn)
	book.readJournals(w, readWitnesses(ctx, w, conn), c, &r)
	rows, origins := readRows(ctx, w)
	book.compare(w, rows, &r)
	book.readFleeting(ctx, w, &r)
	book.settle(w, &r)
	book.checkOrder(w, rows, origins, &r)
	book.checkSamples(w, rows, origins, o.samples, &r)
	checkBySQL(ctx, w, &r)
	return r
}

// readRows returns all that arrived, in stream order.
func readRows(ctx context.Context, w *environment) (all []row, origins []origin) {
	known := map[origin]uint8{}
	for _, table := range []string{eventLog, deadLetters} {
		rows, err := w.ch.Query(ctx, "SELECT event_id, source, timeline, commit_lsn, commit_seq FROM "+table)
		require.NoError(w.t, err)
		for rows.Next() {
			r := row{dead: table == deadLetters}
			var id uuid.UUID
			var at origin
			require.NoError(w.t, rows.Scan(&id, &at.source, &at.timeline, &r.lsn, &r.seq))
			var ok bool
			if r.producer, r.number, ok = w.parseID(id); !ok {
				w.problem("%s holds %s at %s, which no producer wrote", table, id, pglogrepl.LSN(r.lsn))
				continue
			}
			if r.origin, ok = known[at]; !ok {
				r.origin = uint8(len(origins))
				known[at] = r.origin
				origins = append(origins, at)
			}
			all = append(all, r)
		}
		require.NoError(w.t, rows.Err())
	}
	slices.SortFunc(all, func(a, b row) int { return cmp.Or(cmp.Compare(a.lsn, b.lsn), cmp.Compare(a.seq, b.seq)) })
	return all, origins
}

// compare sets what arrived against what was committed.
func (l *ledger) compare(w *environment, rows []row, r *result) {
	for _, x := range rows {
		marks := l[x.producer]
		if int(x.number) >= len(marks) || marks[x.number]&(expected|gone) == 0 {
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
}

// readFleeting finds the rows that left event_log again, and those that were written twice.
func (l *ledger) readFleeting(ctx context.Context, w *environment, r *result) {
	rows, err := w.ch.Query(ctx, `SELECT event_id, countIf(how = '`+byView+`' AND NOT endsWith(source, '/table')), countIf(endsWith(source, '/table'))
		FROM `+fleetingLog+` GROUP BY event_id`)
	require.NoError(w.t, err)
	for rows.Next() {
		var id uuid.UUID
		var written, replayed uint64
		require.NoError(w.t, rows.Scan(&id, &written, &replayed))
		producer, number, ok := w.parseID(id)
		if !ok || int(number) >= len(l[producer]) {
			w.problem("%s holds %s, which no producer wrote", fleetingLog, id)
			continue
		}
		m := &l[producer][number]
		switch {
		case written > 1:
			r.duplicated++
			w.detail(r.duplicated, "event %d of producer %d was written %d times, and deleted in between", number, producer, written)
		case written == 1 && replayed > 0:
			r.returned++
		}
		if *m&delivered == 0 {
			r.deleted++
			*m |= delivered
		}
	}
	require.NoError(w.t, rows.Err())
}

// settle counts what never arrived.
func (l *ledger) settle(w *environment, r *result) {
	for producer, marks := range l {
		for number, m := range marks {
			switch {
			case m&gone != 0:
				r.gone++
				if m&delivered != 0 {
					r.goneDelivered++
				}
			case m&(expected|delivered) != expected:
			case m&inOutbox == 0 && w.upheavals.excused[w.eventID(uint8(producer), uint32(number))]:
				r.excused++
			default:
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

// checkOrder demands that every producer's events come in the order it wrote them, in
// each stream. What a replay fills has no order, and what was lost with an old primary has none to
// what the new one committed at the same positions.
func (l *ledger) checkOrder(w *environment, rows []row, origins []origin, r *result) {
	last := map[string]*[producers]row{}
	for _, o := range origins {
		last[o.source] = &[producers]row{}
	}
	for _, x := range rows {
		o, known := origins[x.origin], l[x.producer]
		if strings.HasSuffix(o.source, "/table") || int(x.number) < len(known) && known[x.number]&gone != 0 {
			continue
		}
		before := &last[o.source][x.producer]
		if x.number <= before.number {
			r.disordered++
			w.detail(r.disordered, "event %d of producer %d at %s/%d of timeline %d comes after its event %d at %s/%d of timeline %d in %s", x.number, x.producer,
				pglogrepl.LSN(x.lsn), x.seq, o.timeline, before.number, pglogrepl.LSN(before.lsn), before.seq, origins[before.origin].timeline, o.source)
			continue
		}
		*before = x
	}
}

// checkBySQL asks as a user would: plain SELECTs, no FINAL.
func checkBySQL(ctx context.Context, w *environment, r *result) {
	u := w.upheavals
	for table, n := range map[string]*uint64{eventLog: &r.events, deadLetters: &r.deadLetters} {
		var ids, places, sources uint64
		require.NoError(w.t, w.ch.QueryRow(ctx, "SELECT count(), uniqExact(event_id), uniqExact((source, commit_lsn, commit_seq)), uniqExact(source) FROM "+table).
			Scan(n, &ids, &places, &sources))
		if ids != *n || places != *n || sources > uint64(2*u.slots) { // each slot has a replay's
			w.problem("%s: count() %d, uniqExact(event_id) %d, unique places %d, sources %d", table, *n, ids, places, sources)
		}
	}
	mangled := `SELECT count() FROM ` + eventLog + ` WHERE JSONExtractUInt(event_context, 'number')
			!= reinterpretAsUInt32(reverse(unhex(right(toString(event_id), 8)))) OR timeline NOT BETWEEN 1 AND ` +
		strconv.Itoa(1+u.tally.failovers) + ` OR event_type = ''`
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
		{"lost with the old primary", fmt.Sprint(r.gone)},
		{"  of them in ClickHouse", fmt.Sprint(r.goneDelivered)},
		{"taken by a foreign reader, not in the outbox", fmt.Sprint(r.excused)},
		{"deleted rows", fmt.Sprint(r.deleted)},
		{"  brought back by a replay", fmt.Sprint(r.returned)},
		{"lost", fmt.Sprint(r.lost)},
		{"duplicated", fmt.Sprint(r.duplicated)},
		{"never committed", fmt.Sprint(r.foreign)},
		{"out of order", fmt.Sprint(r.disordered)},
		{"in the wrong table", fmt.Sprint(r.misplaced)},
	}
}
