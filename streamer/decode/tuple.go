package decode

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/event"
)

// Tuple is a row exactly as the server sent it, independent of any schema, so
// that a dead letter can be decoded again after a fix. That of a message has one
// column, message, of type bytea.
type Tuple struct {
	Columns []TupleColumn `json:"columns"`
	// BeginningOf is the size in bytes of a row or message that was too large to be kept whole; otherwise 0.
	// The last of the Columns is cut off.
	BeginningOf int `json:"beginning_of,omitempty"`
}

// TupleColumn is one value. Format is "b" (binary), "t" (text) or "n" (NULL);
// Value is base64 in JSON and holds the bytes as they came.
type TupleColumn struct {
	Name   string `json:"name"`
	OID    uint32 `json:"oid"`
	Format string `json:"format"`
	Value  []byte `json:"value,omitempty"`
}

// Encode returns the form kept in the dead-letter table.
func (t Tuple) Encode() string {
	b, _ := json.Marshal(t) // strings, numbers and bytes always marshal
	return string(b)
}

// ParseTuple is the inverse of Encode.
func ParseTuple(raw string) (Tuple, error) {
	var t Tuple
	if err := json.Unmarshal([]byte(raw), &t); err != nil {
		return Tuple{}, fmt.Errorf("parse raw row: %w", err)
	}
	return t, nil
}

// Append decodes t into rows at position p. The error names the column that
// still cannot be represented; rows is then unchanged.
func (t Tuple) Append(rows *Rows, p Position, commitTime int64) error {
	if t.BeginningOf > 0 {
		return fmt.Errorf("only the beginning of its %d bytes was kept", t.BeginningOf)
	}
	e := withDefaults
	if t.isMessage() {
		if err := parseMessage(t.Columns[0].Value, &e); err != nil {
			return fmt.Errorf("message %w", err)
		}
		rows.Append(p, commitTime, &e)
		return nil
	}
	var seen uint8
	for _, c := range t.Columns {
		f, ok := columnMappings[c.Name]
		if !ok || len(c.Format) != 1 {
			continue
		}
		if c.Format[0] == formatNull {
			seen |= f.bit & nullable
			continue
		}
		set := f.set
		if c.OID == pgtype.JSONBOID {
			set = setContextJSONB
		}
		seen |= f.bit
		if err := set(&e, c.Format[0], c.Value); err != nil {
			return fmt.Errorf("column %s %w", c.Name, err)
		}
	}
	if seen != allRequired {
		return fmt.Errorf("column %s %w", missing(seen), errNull)
	}
	rows.Append(p, commitTime, &e)
	return nil
}

// reject keeps a row that tuple found wanting. b was walked by tuple before, so
// its lengths are known to be good.
func (d *Decoder) reject(b []byte, rel *relation, reason string) Reject {
	t := Tuple{Columns: make([]TupleColumn, 0, len(rel.columns))}
	b = b[2:]
	for _, col := range rel.columns {
		c := TupleColumn{Name: col.name, OID: col.oid, Format: string(rune(b[0]))}
		b = b[1:]
		if c.Format != string(rune(formatNull)) {
			size := binary.BigEndian.Uint32(b)
			c.Value, b = b[4:4+size], b[4+size:]
		}
		t.Columns = append(t.Columns, c)
	}
	return Reject{
		Position: d.pos, CommitTime: d.commitTime,
		ID: d.event.ID, Type: string(d.event.Type),
		Raw: t.Encode(), Reason: reason,
	}
}

// rejectHead keeps the beginning of a row of which no more than the beginning was read: b, of a
// message of size bytes.
func (d *Decoder) rejectHead(b []byte, size int, rel *relation, reason string) Reject {
	t := Tuple{BeginningOf: size}
	b = b[2:min(len(b), maxRaw)]
	for _, col := range rel.columns {
		if len(b) == 0 {
			break
		}
		c := TupleColumn{Name: col.name, OID: col.oid, Format: string(rune(b[0]))}
		b = b[1:]
		if c.Format != string(rune(formatNull)) {
			if len(b) < 4 {
				break
			}
			n := min(int(binary.BigEndian.Uint32(b)), len(b)-4)
			c.Value, b = b[4:4+n], b[4+n:]
		}
		t.Columns = append(t.Columns, c)
	}
	return Reject{
		Position: d.pos, CommitTime: d.commitTime,
		ID: d.event.ID, Type: strings.ToValidUTF8(string(d.event.Type[:min(len(d.event.Type), event.MaxTypeBytes)]), "�"),
		Raw: t.Encode(), Reason: reason + keptOf(size),
	}
}

// TupleAt rebuilds row i as a Tuple, for a row that decoded well and that
// ClickHouse refused. Of its trace only the id was kept.
func (r *Rows) TupleAt(i int) Tuple {
	be64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	id := r.IDAt(i)
	trace := TupleColumn{"trace_context", pgtype.TextOID, string(rune(formatNull)), nil}
	if traceID := r.TraceIDAt(i); traceID != "" {
		trace.Format, trace.Value = string(rune(formatBinary)), fmt.Appendf(nil, "00-%s-%016d-00", traceID, 0)
	}
	return Tuple{Columns: []TupleColumn{
		{"id", pgtype.UUIDOID, "b", id[:]},
		{"event_type", pgtype.TextOID, "b", []byte(r.Type.Values[r.Type.Keys[i]])},
		{"event_date_time", pgtype.TimestamptzOID, "b", be64(uint64(r.DateTime[i] - pgEpoch))}, //nolint:gosec // two's complement on the wire
		{"environment", pgtype.TextOID, "b", []byte(r.Environment.Values[r.Environment.Keys[i]])},
		{"event_context", pgtype.JSONOID, "b", r.ContextAt(i)},
		{"metadata_version", pgtype.Int8OID, "b", be64(r.MetadataVersion[i])},
		trace,
		{"published_by", pgtype.TextOID, "b", []byte(r.PublishedBy.Values[r.PublishedBy.Keys[i]])},
	}}
}
