package sink

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
)

// rowRange is the part of a batch that one insert writes.
type rowRange struct {
	rows       *decode.Rows
	from, to   int
	timeline   Timeline
	source     string
	ingestedAt int64 // milliseconds since 1970
}

func (r rowRange) len() int { return r.to - r.from }

// col is a column of event_log: its type and its values.
type col struct {
	name string
	kind string
	data func(e *encoder, r rowRange) [][]byte // as in format Native
}

const (
	typeString   = "String"
	typeLowCard  = "LowCardinality(String)"
	typeDateTime = "DateTime64(6, 'UTC')"
)

// eventLog lists the columns in the order of the INSERT.
var eventLog = []col{
	{"event_id", "UUID", func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{r.rows.ID[16*r.from : 16*r.to]}
	}},
	{"event_type", typeLowCard, func(_ *encoder, r rowRange) [][]byte {
		return dict(r.rows.Type.Values, r.rows.Type.Keys[r.from:r.to])
	}},
	{"event_date_time", typeDateTime, func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{bytesOf(r.rows.DateTime[r.from:r.to])}
	}},
	{"environment", typeLowCard, func(_ *encoder, r rowRange) [][]byte {
		return dict(r.rows.Environment.Values, r.rows.Environment.Keys[r.from:r.to])
	}},
	{"event_context", typeString, func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{r.rows.Context[r.rows.ContextStart(r.from):r.rows.ContextStart(r.to)]}
	}},
	{"metadata_version", "UInt64", func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{bytesOf(r.rows.MetadataVersion[r.from:r.to])}
	}},
	{"trace_id", typeString, func(e *encoder, r rowRange) [][]byte {
		e.traceIDs = appendTraceIDs(e.traceIDs[:0], r)
		return [][]byte{e.traceIDs}
	}},
	{"published_by", typeLowCard, func(_ *encoder, r rowRange) [][]byte {
		return dict(r.rows.PublishedBy.Values, r.rows.PublishedBy.Keys[r.from:r.to])
	}},
	{"source", typeLowCard, func(e *encoder, r rowRange) [][]byte {
		e.zero = repeat(e.zero, 0, r.len())
		return dict([]string{r.source}, e.zero)
	}},
	{"timeline", "UInt32", func(e *encoder, r rowRange) [][]byte {
		e.timeline = appendTimelines(e.timeline[:0], r)
		return [][]byte{bytesOf(e.timeline)}
	}},
	{"commit_lsn", "UInt64", func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{bytesOf(r.rows.LSN[r.from:r.to])}
	}},
	{"commit_seq", "UInt32", func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{bytesOf(r.rows.Seq[r.from:r.to])}
	}},
	{"commit_time", typeDateTime, func(_ *encoder, r rowRange) [][]byte {
		return [][]byte{bytesOf(r.rows.CommitTime[r.from:r.to])}
	}},
	{"ingested_at", "DateTime64(3, 'UTC')", func(e *encoder, r rowRange) [][]byte {
		e.ingestedAt = repeat(e.ingestedAt, r.ingestedAt, r.len())
		return [][]byte{bytesOf(e.ingestedAt)}
	}},
}

// encoder lays rows out in format Native. Most columns of a batch have it already. What it returns is
// valid until it is used again or the rows are reset.
type encoder struct {
	columns    []proto.InputColumn
	zero       []uint16
	timeline   []uint32
	ingestedAt []int64
	traceIDs   []byte
}

// native is a column in format Native.
type native struct {
	kind  proto.ColumnType
	rows  int
	parts [][]byte // one after the other
}

// reader reads what EncodeColumn writes.
func (n *native) reader() *proto.Reader {
	parts := net.Buffers(slices.Clone(n.parts))
	return proto.NewReader(&parts)
}

func (n *native) Type() proto.ColumnType { return n.kind }
func (n *native) Rows() int              { return n.rows }

// EncodeState writes what goes before a LowCardinality.
// Source: ClickHouse's SerializationLowCardinality, KeysSerializationVersion.
func (n *native) EncodeState(b *proto.Buffer) {
	if n.kind == typeLowCard {
		b.PutUInt64(1) // shared dictionaries with additional keys
	}
}

func (n *native) EncodeColumn(b *proto.Buffer) {
	for _, part := range n.parts {
		b.PutRaw(part)
	}
}

func (n *native) WriteColumn(w *proto.Writer) {
	for _, part := range n.parts {
		w.ChainWrite(part)
	}
}

// encode returns r for an INSERT of eventLog, whose types in the table are those of header.
func (e *encoder) encode(header []column.Interface, r rowRange) ([]proto.InputColumn, error) {
	e.columns = e.columns[:0]
	for i, c := range eventLog {
		if kind := string(header[i].Type()); kind != c.kind {
			return nil, fmt.Errorf("column %s is %s, not %s", c.name, kind, c.kind)
		}
		e.columns = append(e.columns, proto.InputColumn{
			Name: c.name, Data: &native{kind: proto.ColumnType(c.kind), rows: r.len(), parts: c.data(e, r)},
		})
	}
	return e.columns, nil
}

// LowCardinality on the wire: flags and key width, the dictionary, one key per row.
// Source: ClickHouse's SerializationLowCardinality, IndexesSerializationType.
const lowCardinality16 = 1<<9 /* has additional keys */ | 1<<10 /* update the dictionary */ | 1 /* UInt16 keys */

func dict(values []string, keys []uint16) [][]byte {
	h := binary.LittleEndian.AppendUint64(nil, lowCardinality16)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(values)))
	for _, v := range values {
		h = binary.AppendUvarint(h, uint64(len(v)))
		h = append(h, v...)
	}
	h = binary.LittleEndian.AppendUint64(h, uint64(len(keys)))
	return [][]byte{h, bytesOf(keys)}
}

// appendTraceIDs adds those of r as Strings in format Native: length and bytes.
func appendTraceIDs(b []byte, r rowRange) []byte {
	for i := r.from; i < r.to; i++ {
		id := [16]byte(r.rows.TraceID[16*i:])
		if id == [16]byte{} {
			b = append(b, 0)
			continue
		}
		b = append(b, 2*byte(len(id)))
		b = hex.AppendEncode(b, id[:])
	}
	return b
}

func appendTimelines(b []uint32, r rowRange) []uint32 {
	for _, lsn := range r.rows.LSN[r.from:r.to] {
		b = append(b, r.timeline(pglogrepl.LSN(lsn)))
	}
	return b
}

func repeat[T comparable](buf []T, v T, n int) []T {
	buf = buf[:0]
	for range n {
		buf = append(buf, v)
	}
	return buf
}

// bytesOf views numbers as the bytes the wire wants: both are little-endian on
// every platform we build for.
func bytesOf[T uint16 | uint32 | uint64 | int64](v []T) []byte {
	if len(v) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(v[0])))
}
