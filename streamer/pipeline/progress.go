package pipeline

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/batch"
)

// State of a Pipeline.
type State int32

const (
	// Connecting includes every check before the slot is taken.
	Connecting State = iota
	// Standby waits for another streamer to leave the slot.
	Standby
	// Streaming reads and writes rows.
	Streaming
	// Retrying is Streaming with ClickHouse refusing the current batch.
	Retrying
	// Stopped is after Run.
	Stopped
)

// String is the name used in /readyz, logs and metrics.
func (s State) String() string {
	return [...]string{"connecting", "standby", "streaming", "retrying", "stopped"}[s]
}

// Progress is where a Pipeline stands. All methods may be called at any time.
type Progress struct {
	state           atomic.Int32
	session         atomic.Pointer[string]
	waitsFor        atomic.Pointer[string]
	received        atomic.Uint64
	decoded         atomic.Uint64
	flushed         atomic.Uint64
	durable         atomic.Uint64
	confirmed       atomic.Uint64
	readRows        atomic.Int64
	readBytes       atomic.Int64
	droppedMessages atomic.Int64
	openRows        atomic.Int64 // of the open batch
	openBytes       atomic.Int64
	handRows        atomic.Int64 // of batches handed over and not yet durable
	handBytes       atomic.Int64
	rows            atomic.Int64
	bytes           atomic.Int64
	flushes         atomic.Int64
	lastFlush       atomic.Int64 // unix nanoseconds

	mu      sync.Mutex
	lastErr error
	errAt   time.Time
}

// State is what the pipeline is doing.
func (p *Progress) State() State { return State(p.state.Load()) }

// Session is the application name of the connection that holds the slot, or
// last held it; empty before the first one.
func (p *Progress) Session() string {
	if name := p.session.Load(); name != nil {
		return *name
	}
	return ""
}

// WaitsFor says what a pipeline that is connecting waits for; empty for nothing that takes long.
func (p *Progress) WaitsFor() string {
	if what := p.waitsFor.Load(); what != nil {
		return *what
	}
	return ""
}

// Received is how far the server has sent: the commit LSN of the last
// transaction of which something was read, or a later idle position.
func (p *Progress) Received() pglogrepl.LSN { return pglogrepl.LSN(p.received.Load()) }

// Decoded is the position before which every transaction was read to its end.
func (p *Progress) Decoded() pglogrepl.LSN { return pglogrepl.LSN(p.decoded.Load()) }

// Flushed is the commit LSN of the last row that is durable in ClickHouse.
func (p *Progress) Flushed() pglogrepl.LSN { return pglogrepl.LSN(p.flushed.Load()) }

// Durable is the position before which everything is durable in ClickHouse. An idle
// streamer confirms it to PostgreSQL only now and then: the record of it is WAL, too.
func (p *Progress) Durable() pglogrepl.LSN { return pglogrepl.LSN(p.durable.Load()) }

// Confirmed is the last position that was sent to PostgreSQL.
func (p *Progress) Confirmed() pglogrepl.LSN { return pglogrepl.LSN(p.confirmed.Load()) }

// Read is the number of rows that were read, dead letters included, and the
// bytes that PostgreSQL sent for them. Rows that come again after a lost
// connection count again.
func (p *Progress) Read() (rows, bytes int64) { return p.readRows.Load(), p.readBytes.Load() }

// DroppedMessages is the number of events that were dropped because their messages were
// not transactional. Such a message may be counted again after a reconnect.
func (p *Progress) DroppedMessages() int64 { return p.droppedMessages.Load() }

// Buffered is what was read and is not yet durable, in rows and bytes of memory.
func (p *Progress) Buffered() (rows, bytes int64) {
	return max(0, p.openRows.Load()+p.handRows.Load()), max(0, p.openBytes.Load()+p.handBytes.Load())
}

// Written is the number of rows that became durable and their bytes, and of flushes, since the start.
func (p *Progress) Written() (rows, bytes, inserts int64) {
	return p.rows.Load(), p.bytes.Load(), p.flushes.Load()
}

// LastFlush is when rows last became durable; the zero time when none did.
func (p *Progress) LastFlush() time.Time {
	if n := p.lastFlush.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// LastError is the last error that was retried, and when it happened.
func (p *Progress) LastError() (error, time.Time) { //nolint:revive,staticcheck // the pair reads in this order
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastErr, p.errAt
}

func (p *Progress) setState(s State) { p.state.Store(int32(s)) }

// begin notes a new session, which reads again from the slot's position.
func (p *Progress) begin(name string, confirmed pglogrepl.LSN) {
	p.session.Store(&name)
	p.received.Store(uint64(confirmed))
	p.decoded.Store(uint64(confirmed))
	p.durable.Store(uint64(confirmed))
	p.openRows.Store(0)
	p.openBytes.Store(0)
	p.handRows.Store(0)
	p.handBytes.Store(0)
}

// size is what a batch holds.
type size struct{ rows, bytes, received int64 }

func measure(b *batch.Batch) size {
	return size{rows: int64(b.Len() + len(b.Rejects)), bytes: int64(b.Bytes()), received: int64(b.Received)}
}

// reading notes the totals that were read, and what of them is in the open batch.
func (p *Progress) reading(rows, received int64, open size) {
	p.readRows.Store(rows)
	p.readBytes.Store(received)
	p.openRows.Store(open.rows)
	p.openBytes.Store(open.bytes)
}

// handed moves what the open batch held to what the writer has.
func (p *Progress) handed(s size) {
	p.handRows.Add(s.rows)
	p.handBytes.Add(s.bytes)
	p.openRows.Store(0)
	p.openBytes.Store(0)
}

// done takes a batch that is durable off what the writer has.
func (p *Progress) done(s size) {
	p.handRows.Add(-s.rows)
	p.handBytes.Add(-s.bytes)
}

func (p *Progress) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastErr, p.errAt = err, time.Now()
}

func (p *Progress) wrote(f Flush) {
	p.flushed.Store(uint64(f.Last.LSN))
	p.rows.Add(int64(f.Rows))
	p.bytes.Add(int64(f.Bytes))
	p.flushes.Add(1)
	p.lastFlush.Store(time.Now().UnixNano())
}
