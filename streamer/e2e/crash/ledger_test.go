package crash_test

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// mark is what is known of an event, from the journal and from both databases.
type mark uint8

const (
	expected mark = 1 << iota // must have been delivered
	poisoned                  // … as a dead letter
	stored                    // must be in the outbox
	inOutbox
	delivered // in event_log or the dead letters, or deleted since
	fleeting  // may leave event_log again
	gone      // lost with a primary: may have been delivered
)

// ledger holds one mark an event: by producer, then by number.
type ledger [producers][]mark

// witnessed are the transactions that left a witness.
type witnessed map[[2]int64]bool

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

func readWitnesses(ctx context.Context, w *environment, conn *pgx.Conn) witnessed {
	found := witnessed{}
	rows, err := conn.Query(ctx, "SELECT producer, number FROM witness")
	require.NoError(w.t, err)
	var producer, number int64
	_, err = pgx.ForEachRow(rows, []any{&producer, &number}, func() error {
		found[[2]int64{producer, number}] = true
		return nil
	})
	require.NoError(w.t, err)
	return found
}

// readJournals marks what must have been delivered. The last primary has a transaction if it has
// its events, or the witness.
func (l *ledger) readJournals(w *environment, witnesses witnessed, c *producerGroup, r *result) {
	for _, p := range c.members {
		for _, tx := range p.journal {
			r.transactions++
			if tx.outcome == unknown {
				r.resolved++
			}
			switch {
			case tx.outcome == rolledBack:
				r.rolledBack++
			case l.has(p.index, tx, witnesses):
				l.expect(p.index, tx, expected)
			case w.upheavals.isLost(tx.began, tx.ended):
				l.expect(p.index, tx, gone)
			case tx.outcome == committed:
				w.problem("PostgreSQL lacks a transaction of producer %d that was committed at %s, its first event is %d",
					p.index, tx.ended.UTC().Format("15:04:05.000"), tx.entries[0].number)
			default:
				r.rolledBack++
			}
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

func (l *ledger) has(producer uint8, tx *transaction, witnesses witnessed) bool {
	if tx.witness != 0 {
		return witnesses[[2]int64{int64(producer), int64(tx.witness)}]
	}
	for _, e := range tx.entries {
		if e.fate == stays && !e.message && l[producer][e.number]&inOutbox != 0 {
			return true
		}
	}
	return false
}

// expect marks the events of a transaction that the last primary has, or a lost one had.
func (l *ledger) expect(producer uint8, tx *transaction, as mark) {
	for _, e := range tx.entries {
		m := &l[producer][e.number]
		if e.fate != undone {
			*m |= as
		}
		if e.fate == stays && !e.message && as == expected {
			*m |= stored
		}
		if e.poison {
			*m |= poisoned
		}
		if e.fleeting {
			*m |= fleeting
		}
	}
}
