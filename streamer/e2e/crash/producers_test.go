package crash_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/dev/await"
	"diehard/shared/event"
)

const (
	producers = 8
	// defaultRate is what the producers aim at together, in events a second, large
	// transactions not counted. After an outage they make up for up to maxBehind.
	defaultRate = 2100
	maxBehind   = 5 * time.Second
	// One of so many bad rows is refused by a derived column, which takes the streamer a dozen queries.
	underivable = 400
)

// fate is what becomes of an event if its transaction commits.
type fate uint8

const (
	stays   fate = iota // delivered, and in the outbox
	deleted             // delivered, but deleted from the outbox by its own transaction
	undone              // rolled back with its savepoint
)

// outcome of a transaction, as far as its producer knows.
type outcome uint8

const (
	unknown outcome = iota // the connection broke at the wrong moment; the outbox decides
	committed
	rolledBack
)

// entry is an event in a producer's journal.
type entry struct {
	number   uint32
	fate     fate
	poison   bool // a dead letter
	message  bool // not in the outbox
	fleeting bool // leaves event_log again
}

// transaction is what a producer tried.
type transaction struct {
	outcome      outcome
	began, ended time.Time
	entries      []entry
	witness      uint32 // number of its first event, if it leaves nothing in the outbox
}

// producerGroup are all producers.
type producerGroup struct {
	members  []*producer
	stopping context.CancelFunc
	over     sync.WaitGroup
	began    time.Time
	took     time.Duration
}

func startProducers(t *testing.T, w *environment) *producerGroup {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &producerGroup{stopping: cancel, began: time.Now()}
	for i := range producers {
		p := &producer{w: w, index: uint8(i), rng: random(w.seed, fmt.Sprint("producer ", i)), url: w.url}
		p.due = time.Now()
		if s, ok := seldoms[p.index]; ok {
			p.special = p.due.Add(between(p.rng, s.soon[0], s.soon[1]))
		}
		c.members = append(c.members, p)
		c.over.Go(func() { p.run(ctx) })
	}
	await.True(t, func() bool { return c.events() > 1000 }, "nothing is produced")
	return c
}

// stop ends every producer after its current transaction.
func (c *producerGroup) stop() {
	c.stopping()
	c.over.Wait()
	c.took = time.Since(c.began)
}

// events is how many were written, in transactions committed or not.
func (c *producerGroup) events() int64 {
	var n int64
	for _, p := range c.members {
		n += p.written.Load()
	}
	return n
}

// producer writes transactions one after the other and keeps a journal of them.
type producer struct {
	w       *environment
	index   uint8
	rng     *rand.Rand
	url     string
	conn    *pgx.Conn
	number  uint32 // of the last event
	journal []*transaction
	due     time.Time
	special time.Time // when its seldom shape is due
	written atomic.Int64
}

func (p *producer) run(ctx context.Context) {
	for ctx.Err() == nil {
		if p.conn == nil || p.conn.IsClosed() {
			if !p.connect(ctx) {
				pause(ctx, 20*time.Millisecond)
				continue
			}
		}
		// A transaction that has begun is finished: ctx ends only the waits.
		p.transact(context.WithoutCancel(ctx))
		pause(ctx, time.Until(p.due))
	}
	if p.conn != nil {
		_ = p.conn.Close(context.WithoutCancel(ctx))
	}
}

func (p *producer) connect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return false
	}
	p.conn = conn
	return true
}

// transact tries one transaction of a random shape and writes it down.
func (p *producer) transact(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tx := &transaction{began: time.Now()}
	p.journal = append(p.journal, tx)
	var err error
	if s, ok := seldoms[p.index]; ok && time.Now().After(p.special) {
		tx.outcome, err = s.shape(p, ctx, tx)
		p.special = time.Now().Add(between(p.rng, s.pauses[0], s.pauses[1]))
	} else {
		tx.outcome, err = weighted(p.rng, shapes)(p, ctx, tx)
		cost := time.Duration(len(tx.entries)) * time.Second * producers / time.Duration(p.w.rate)
		p.due = p.due.Add(cost)
	}
	tx.ended = time.Now()
	if earliest := tx.ended.Add(-maxBehind); p.due.Before(earliest) {
		p.due = earliest
	}
	p.written.Add(int64(len(tx.entries)))
	noReader := isCode(err, pgerrcode.ObjectNotInPrerequisiteState) && p.w.upheavals.lackedSlot(tx.began)
	if err != nil && !outage(err) && !noReader {
		p.w.problem("producer %d: %v", p.index, err)
	}
}

func isCode(err error, code string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == code
}

// outage reports whether err is what a dying PostgreSQL causes.
func outage(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return true // the connection's
	}
	isStandby := pg.Code == pgerrcode.ReadOnlySQLTransaction || strings.HasSuffix(pg.Message, "during recovery") // before its promotion
	return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || isStandby
}

// next makes the producer's next event and writes it into the journal.
func (p *producer) next(tx *transaction, f fate) event.Event {
	p.number++
	e := entry{number: p.number, fate: f}
	kind := eventTypes[p.rng.IntN(len(eventTypes))]
	if p.rng.IntN(100) < p.w.bad {
		kind, e.poison = refusedType, true
		if p.rng.IntN(underivable) == 0 {
			kind = underivableType
		}
	}
	e.fleeting = kind == fleetingType
	tx.entries = append(tx.entries, e)
	return event.Event{
		ID: p.w.eventID(p.index, p.number), Type: kind,
		Environment: "Crash",
		Context:     fmt.Appendf(nil, `{"producer":%d,"number":%d,"text":"%s"}`, p.index, p.number, padding[:p.rng.IntN(len(padding))]),
	}
}

func (p *producer) several(tx *transaction, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = p.next(tx, stays)
	}
	return events
}

var (
	eventTypes = []string{"user_created", "order_paid", "order_shipped", "cart_abandoned", "order_paid", "order_paid", fleetingType}
	padding    = strings.Repeat("die hard ", 40)
)

// eventID holds run, producer and number, so that every row shows where it is from.
func (w *environment) eventID(producer uint8, number uint32) uuid.UUID {
	id := w.idPrefix(producer)
	for i := range 4 {
		id[12+i] = byte(number >> (24 - 8*i))
	}
	return id
}

// idPrefix is what the ids of a producer begin with.
func (w *environment) idPrefix(producer uint8) uuid.UUID {
	var id uuid.UUID
	for i := range 4 {
		id[i] = byte(w.seed >> (24 - 8*i))
	}
	id[4], id[6], id[8] = producer, 0x80, 0x80 // version 8, variant 10
	return id
}

// parseID is the reverse; ok is false for an id that no producer of this run made.
func (w *environment) parseID(id uuid.UUID) (producer uint8, number uint32, ok bool) {
	for i := range 4 {
		number = number<<8 | uint32(id[12+i])
	}
	return id[4], number, id[4] < producers && id == w.eventID(id[4], number)
}
