package decode

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// Tuple is a row exactly as the server sent it, independent of any schema, so
// that a dead letter can be decoded again after a fix. That of a message has one
// column, message, of type bytea.
type Tuple struct {
	Columns []TupleColumn `json:"columns"`
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
	var e Event
	if t.isMessage() {
		if err := parseMessage(t.Columns[0].Value, &e); err != nil {
			return fmt.Errorf("message %w", err)
		}
		rows.Append(p, commitTime, &e)
		return nil
	}
	var seen uint8
	for _, c := range t.Columns {
		f, ok := targets[c.Name]
		if !ok || c.Format == string(rune(formatNull)) || len(c.Format) != 1 {
			continue
		}
		set := f.set
		if c.OID == oidJSONB {
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

// TupleAt rebuilds row i as a Tuple, for a row that decoded well and that
// ClickHouse refused.
func (r *Rows) TupleAt(i int) Tuple {
	be64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	id := r.IDAt(i)
	return Tuple{Columns: []TupleColumn{
		{"id", oidUUID, "b", id[:]},
		{"event_type", oidText, "b", []byte(r.Type.Values[r.Type.Keys[i]])},
		{"event_date_time", oidTimestamptz, "b", be64(uint64(r.DateTime[i] - pgEpoch))}, //nolint:gosec // two's complement on the wire
		{"environment", oidText, "b", []byte(r.Environment.Values[r.Environment.Keys[i]])},
		{"event_context", oidJSON, "b", r.ContextAt(i)},
		{"metadata_version", oidInt8, "b", be64(r.MetadataVersion[i])},
	}}
}
