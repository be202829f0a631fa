package sink

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
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

// col is a column of event_log: the types it may have and how it is filled.
type col struct {
	name  string
	types []string
	fill  func(e *encoder, c column.Interface, r rowRange) error
}

const (
	typeString   = "String"
	typeLowCard  = "LowCardinality(String)"
	typeDateTime = "DateTime64(6, 'UTC')"
)

// eventLog lists the columns in the order of the INSERT.
var eventLog = []col{
	{"event_id", []string{"UUID"}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), r.rows.ID[16*r.from:16*r.to])
	}},
	{"event_type", []string{typeLowCard}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.dict(c, r.rows.Type.Values, r.rows.Type.Keys[r.from:r.to])
	}},
	{"event_date_time", []string{typeDateTime}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), bytesOf(r.rows.DateTime[r.from:r.to]))
	}},
	{"environment", []string{typeLowCard}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.dict(c, r.rows.Environment.Values, r.rows.Environment.Keys[r.from:r.to])
	}},
	{"event_context", []string{typeString}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.context(c, r)
	}},
	{"metadata_version", []string{"UInt64"}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), bytesOf(r.rows.MetadataVersion[r.from:r.to]))
	}},
	{"trace_id", []string{typeString}, func(e *encoder, c column.Interface, r rowRange) error {
		e.traceIDs = appendTraceIDs(e.traceIDs[:0], r)
		return e.raw(c, r.len(), e.traceIDs)
	}},
	{"published_by", []string{typeLowCard}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.dict(c, r.rows.PublishedBy.Values, r.rows.PublishedBy.Keys[r.from:r.to])
	}},
	{"source", []string{typeLowCard}, func(e *encoder, c column.Interface, r rowRange) error {
		e.zero = repeat(e.zero, 0, r.len())
		return e.dict(c, []string{r.source}, e.zero)
	}},
	{"timeline", []string{"UInt32"}, func(e *encoder, c column.Interface, r rowRange) error {
		e.timeline = appendTimelines(e.timeline[:0], r)
		return e.raw(c, r.len(), bytesOf(e.timeline))
	}},
	{"commit_lsn", []string{"UInt64"}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), bytesOf(r.rows.LSN[r.from:r.to]))
	}},
	{"commit_seq", []string{"UInt32"}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), bytesOf(r.rows.Seq[r.from:r.to]))
	}},
	{"commit_time", []string{typeDateTime}, func(e *encoder, c column.Interface, r rowRange) error {
		return e.raw(c, r.len(), bytesOf(r.rows.CommitTime[r.from:r.to]))
	}},
	{"ingested_at", []string{"DateTime64(3, 'UTC')"}, func(e *encoder, c column.Interface, r rowRange) error {
		e.ingestedAt = repeat(e.ingestedAt, r.ingestedAt, r.len())
		return e.raw(c, r.len(), bytesOf(e.ingestedAt))
	}},
}

// encoder moves rows into clickhouse-go's columns. The library's Append boxes
// every value of a LowCardinality and knows no raw microseconds, so the columns
// are decoded from our own buffers instead, which already have the format Native
// that the library reads from servers: a memory copy per column.
type encoder struct {
	feed   feed
	reader *proto.Reader

	head       []byte
	views      []string
	zero       []uint16
	timeline   []uint32
	ingestedAt []int64
	traceIDs   []byte
}

// feed is the reader's source: a few slices, one after the other.
type feed struct{ parts [][]byte }

func (f *feed) Read(p []byte) (int, error) {
	for len(f.parts) > 0 && len(f.parts[0]) == 0 {
		f.parts = f.parts[1:]
	}
	if len(f.parts) == 0 {
		return 0, errShortColumn
	}
	n := copy(p, f.parts[0])
	f.parts[0] = f.parts[0][n:]
	return n, nil
}

var errShortColumn = fmt.Errorf("column ends before its rows do")

func newEncoder() *encoder {
	e := &encoder{}
	e.reader = proto.NewReader(&e.feed)
	return e
}

// fill moves r into the columns of an INSERT of cols, in their order.
func (e *encoder) fill(columns []column.Interface, cols []col, r rowRange) error {
	for i, c := range cols {
		if !slices.Contains(c.types, string(columns[i].Type())) {
			return fmt.Errorf("column %s is %s, not %s", c.name, columns[i].Type(), strings.Join(c.types, " or "))
		}
		if err := c.fill(e, columns[i], r); err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
	}
	return nil
}

// raw fills a column from bytes in format Native.
func (e *encoder) raw(c column.Interface, rows int, b []byte) error {
	e.feed.parts = append(e.feed.parts[:0], b)
	return c.Decode(e.reader, rows)
}

// LowCardinality on the wire: flags and key width, the dictionary, one key per row.
// Source: ClickHouse's SerializationLowCardinality, IndexesSerializationType.
const lowCardinality16 = 1<<9 /* has additional keys */ | 1<<10 /* update the dictionary */ | 1 /* UInt16 keys */

func (e *encoder) dict(c column.Interface, values []string, keys []uint16) error {
	h := binary.LittleEndian.AppendUint64(e.head[:0], lowCardinality16)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(values)))
	for _, v := range values {
		h = binary.AppendUvarint(h, uint64(len(v)))
		h = append(h, v...)
	}
	h = binary.LittleEndian.AppendUint64(h, uint64(len(keys)))
	e.head = h
	e.feed.parts = append(e.feed.parts[:0], h, bytesOf(keys))
	return c.Decode(e.reader, len(keys))
}

// context fills event_context. The library's buffer would be grown, and copied,
// a dozen times for a batch; one append of the whole and a Reset size it at once.
func (e *encoder) context(c column.Interface, r rowRange) error {
	all := r.rows.Context[r.rows.ContextStart(r.from):r.rows.ContextStart(r.to)]
	e.views = append(e.views[:0], unsafe.String(unsafe.SliceData(all), len(all)))
	if _, err := c.Append(e.views); err != nil {
		return err
	}
	c.Reset()
	e.views = e.views[:0]
	for i := r.from; i < r.to; i++ {
		v := r.rows.ContextAt(i)
		e.views = append(e.views, unsafe.String(unsafe.SliceData(v), len(v)))
	}
	_, err := c.Append(e.views)
	clear(e.views) // they must not outlive the batch
	return err
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
