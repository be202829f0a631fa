package simpg

import (
	"encoding/binary"
	"time"
)

// The messages of pgoutput, protocol version 1, with binary values.
// Source: PostgreSQL docs, "Logical Replication Message Formats".

const relationOID = 16390

var pgEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func micros(t time.Time) uint64 { return uint64(t.Sub(pgEpoch).Microseconds()) } //nolint:gosec // after 2000

func begin(r record) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(r.commit))
	b = binary.BigEndian.AppendUint64(b, micros(r.at))
	return binary.BigEndian.AppendUint32(b, r.xid)
}

func commit(r record) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(r.commit))
	b = binary.BigEndian.AppendUint64(b, uint64(r.end))
	return binary.BigEndian.AppendUint64(b, micros(r.at))
}

var outbox = []struct {
	name string
	oid  uint32
}{
	{"id", 2950},
	{"event_type", 25},
	{"event_date_time", 1184},
	{"environment", 25},
	{"event_context", 114},
	{"metadata_version", 20},
	{"trace_context", 25},
	{"published_by", 25},
	{"published_at", 1184},
}

func relation() []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, relationOID)
	b = append(b, "public\x00outbox\x00n"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(outbox))) //nolint:gosec // nine
	for _, c := range outbox {
		b = append(b, 0)
		b = append(b, c.name...)
		b = append(b, 0)
		b = binary.BigEndian.AppendUint32(b, c.oid)
		b = binary.BigEndian.AppendUint32(b, 0xffffffff)
	}
	return b
}

func insert(e Event, at time.Time) []byte {
	b := make([]byte, 0, 200+len(e.Context))
	b = binary.BigEndian.AppendUint32(append(b, 'I'), relationOID)
	b = append(b, 'N')
	b = binary.BigEndian.AppendUint16(b, uint16(len(outbox))) //nolint:gosec // nine
	when := binary.BigEndian.AppendUint64(nil, micros(at))
	for _, v := range [][]byte{e.ID[:], []byte(e.Type), when, []byte("Sim"), []byte(e.Context), {0, 0, 0, 0, 0, 0, 0, 1}, nil, []byte("sim"), when} {
		if v == nil {
			b = append(b, 'n')
			continue
		}
		b = append(b, 'b')
		b = binary.BigEndian.AppendUint32(b, uint32(len(v))) //nolint:gosec // an event is small
		b = append(b, v...)
	}
	return b
}
