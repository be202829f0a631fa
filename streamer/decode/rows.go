package decode

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
)

// Position names a row in the stream: the LSN of its transaction's commit record
// (Begin.FinalLSN) and its number in the transaction, counted from 1. Positions
// grow in delivery order; the zero Position lies before every row.
type Position struct {
	LSN pglogrepl.LSN
	Seq uint32
}

// After reports whether p lies behind q in the stream.
func (p Position) After(q Position) bool {
	return p.LSN > q.LSN || p.LSN == q.LSN && p.Seq > q.Seq
}

// Compare orders positions as the stream does.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.LSN, q.LSN), cmp.Compare(p.Seq, q.Seq))
}

// Rows are outbox rows as columns, laid out as ClickHouse's format Native wants
// them, and the rows that could not be decoded. Not safe for concurrent use.
//
// Invariants:
//   - Every column has one value for each of the Len rows: 16 bytes of ID and TraceID, and the
//     part of Context that ends at ContextEnd.
//   - Rows are in stream order, and so are Rejects; no position is in both, or twice.
//   - Buffers are reused: what the fields hold is valid until the next Reset.
type Rows struct {
	ID              []byte // 16 bytes per row, in ClickHouse's order: two little-endian halves
	Type            Dict
	DateTime        []int64 // microseconds since 1970
	Environment     Dict
	Context         []byte // per row: length as uvarint, then the bytes as published
	ContextEnd      []int  // end of each row in Context
	MetadataVersion []uint64
	TraceID         []byte // 16 bytes per row, see TraceIDAt
	PublishedBy     Dict
	LSN             []uint64
	Seq             []uint32
	CommitTime      []int64 // microseconds since 1970

	// Rejects are rows whose values cannot be represented, in stream order.
	Rejects []Reject
	// Traces holds up to MaxTraces distinct W3C traceparents of these rows.
	Traces []string

	rejectBytes int
}

// MaxTraces bounds Rows.Traces: enough to follow a request to its flush,
// few enough to cost nothing on a busy stream.
const MaxTraces = 16

// Reject is a row that cannot become a row of event_log.
type Reject struct {
	Position
	CommitTime int64     // microseconds since 1970
	ID         uuid.UUID // zero when unknown
	Type       string    // empty when unknown
	Raw        string    // the columns as received, see Tuple
	Reason     string
	Code       int32 // ClickHouse's error code when the server refused the row, otherwise 0
}

// fixedBytes is what a row takes besides its context.
const fixedBytes = 16 + 2 + 8 + 2 + 8 + 8 + 16 + 2 + 8 + 4 + 8

// Len is the number of rows without the rejects.
func (r *Rows) Len() int { return len(r.LSN) }

// Bytes is the memory the rows take, rejects included.
func (r *Rows) Bytes() int {
	return r.Len()*fixedBytes + len(r.Context) + r.Type.bytes + r.Environment.bytes + r.PublishedBy.bytes + r.rejectBytes
}

// Empty reports that there is neither a row nor a reject.
func (r *Rows) Empty() bool { return r.Len() == 0 && len(r.Rejects) == 0 }

// Full reports that a dictionary has no room for another value.
func (r *Rows) Full() bool { return r.Type.full() || r.Environment.full() || r.PublishedBy.full() }

// Position returns where row i lies in the stream.
func (r *Rows) Position(i int) Position {
	return Position{LSN: pglogrepl.LSN(r.LSN[i]), Seq: r.Seq[i]}
}

// First and Last return the outermost positions, rejects included; zero when Empty.
func (r *Rows) First() Position {
	var p Position
	if r.Len() > 0 {
		p = r.Position(0)
	}
	if len(r.Rejects) > 0 && (r.Len() == 0 || p.After(r.Rejects[0].Position)) {
		p = r.Rejects[0].Position
	}
	return p
}

// Last is First's counterpart.
func (r *Rows) Last() Position {
	var p Position
	if n := r.Len(); n > 0 {
		p = r.Position(n - 1)
	}
	if n := len(r.Rejects); n > 0 && r.Rejects[n-1].After(p) {
		p = r.Rejects[n-1].Position
	}
	return p
}

// ContextStart is the offset of row i in Context; i may be Len().
func (r *Rows) ContextStart(i int) int {
	if i == 0 {
		return 0
	}
	return r.ContextEnd[i-1]
}

// ContextAt returns the bytes published with row i, valid until Reset.
func (r *Rows) ContextAt(i int) []byte {
	b := r.Context[r.ContextStart(i):r.ContextEnd[i]]
	_, n := binary.Uvarint(b)
	return b[n:]
}

// IDAt returns the event id of row i.
func (r *Rows) IDAt(i int) uuid.UUID {
	var u uuid.UUID
	b := r.ID[16*i:]
	binary.BigEndian.PutUint64(u[:8], binary.LittleEndian.Uint64(b))
	binary.BigEndian.PutUint64(u[8:], binary.LittleEndian.Uint64(b[8:]))
	return u
}

// TraceIDAt returns the W3C trace id of row i, 32 characters in lower case; empty without one.
func (r *Rows) TraceIDAt(i int) string {
	id := [16]byte(r.TraceID[16*i:])
	if id == [16]byte{} { // which W3C forbids as a trace id
		return ""
	}
	return hex.EncodeToString(id[:])
}

// Reset empties r and keeps its memory.
func (r *Rows) Reset() {
	r.ID, r.DateTime, r.Context = r.ID[:0], r.DateTime[:0], r.Context[:0]
	r.ContextEnd, r.MetadataVersion = r.ContextEnd[:0], r.MetadataVersion[:0]
	r.TraceID = r.TraceID[:0]
	r.LSN, r.Seq, r.CommitTime = r.LSN[:0], r.Seq[:0], r.CommitTime[:0]
	r.Type.reset()
	r.Environment.reset()
	r.PublishedBy.reset()
	clear(r.Rejects)
	clear(r.Traces)
	r.Rejects, r.Traces, r.rejectBytes = r.Rejects[:0], r.Traces[:0], 0
}

// Cut takes the rows and rejects of one transaction out again: the last one, which commits at lsn.
func (r *Rows) Cut(lsn pglogrepl.LSN) {
	n := len(r.LSN)
	for n > 0 && r.LSN[n-1] == uint64(lsn) {
		n--
	}
	r.truncate(n)
	k := len(r.Rejects)
	for k > 0 && r.Rejects[k-1].LSN == lsn {
		k--
		r.rejectBytes -= r.Rejects[k].size()
		r.Rejects[k] = Reject{}
	}
	r.Rejects = r.Rejects[:k]
}

// Append adds a row: event's values at position p. It copies what it keeps.
func (r *Rows) Append(p Position, commitTime int64, e *Event) {
	n := len(r.LSN)
	if n == cap(r.LSN) {
		r.grow()
	}
	r.ID = r.ID[:16*n+16]
	id := r.ID[16*n : 16*n+16]
	binary.LittleEndian.PutUint64(id, binary.BigEndian.Uint64(e.ID[:8]))
	binary.LittleEndian.PutUint64(id[8:], binary.BigEndian.Uint64(e.ID[8:]))
	r.Type.append(e.Type)
	r.Environment.append(e.Environment)
	r.Context = binary.AppendUvarint(r.Context, uint64(len(e.Context)))
	r.Context = append(r.Context, e.Context...)
	r.ContextEnd = r.ContextEnd[:n+1]
	r.ContextEnd[n] = len(r.Context)
	r.DateTime = r.DateTime[:n+1]
	r.DateTime[n] = e.DateTime
	r.MetadataVersion = r.MetadataVersion[:n+1]
	r.MetadataVersion[n] = e.MetadataVersion
	r.TraceID = r.TraceID[:16*n+16]
	copy(r.TraceID[16*n:], e.TraceID[:])
	r.PublishedBy.append(e.PublishedBy)
	r.LSN = r.LSN[:n+1]
	r.LSN[n] = uint64(p.LSN)
	r.Seq = r.Seq[:n+1]
	r.Seq[n] = p.Seq
	r.CommitTime = r.CommitTime[:n+1]
	r.CommitTime[n] = commitTime
	if len(e.Trace) > 0 {
		r.trace(e.Trace)
	}
}

// grow makes room for more rows in the columns of fixed width, all at once.
func (r *Rows) grow() {
	more := max(1024, len(r.LSN)/2)
	r.ID = slices.Grow(r.ID, 16*more)
	r.ContextEnd = slices.Grow(r.ContextEnd, more)
	r.DateTime = slices.Grow(r.DateTime, more)
	r.MetadataVersion = slices.Grow(r.MetadataVersion, more)
	r.TraceID = slices.Grow(r.TraceID, 16*more)
	r.LSN = slices.Grow(r.LSN, more)
	r.LSN = slices.Clip(r.LSN[:len(r.LSN)+more])[:len(r.LSN)] // the others have at least as much
	r.Seq = slices.Grow(r.Seq, more)
	r.CommitTime = slices.Grow(r.CommitTime, more)
}

// Reject adds a row that cannot be represented.
func (r *Rows) Reject(x Reject) {
	r.Rejects = append(r.Rejects, x)
	r.rejectBytes += x.size()
}

func (x Reject) size() int { return len(x.Raw) + len(x.Reason) + len(x.Type) + fixedBytes }

func (r *Rows) trace(v []byte) {
	if len(r.Traces) == MaxTraces || len(v) != traceparentLen {
		return
	}
	for _, t := range r.Traces {
		if t == string(v) {
			return
		}
	}
	r.Traces = append(r.Traces, string(v))
}
