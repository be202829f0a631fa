package decode_test

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

// The messages are put together by hand, so that the tests know the format
// independently of the decoder.
// Source: PostgreSQL docs, "Logical Replication Message Formats".

const (
	oidInt8        = 20
	oidInt4        = 23
	oidText        = 25
	oidJSON        = 114
	oidVarchar     = 1043
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802

	// pgEpoch is 2000-01-01 in microseconds since 1970.
	pgEpoch = 946_684_800_000_000

	outboxOID = 16_384
)

var (
	be16 = binary.BigEndian.AppendUint16
	be32 = binary.BigEndian.AppendUint32
	be64 = binary.BigEndian.AppendUint64
)

func beginMessage(lsn pglogrepl.LSN, micros int64) []byte {
	return be32(be64(be64([]byte{'B'}, uint64(lsn)), uint64(micros-pgEpoch)), 777)
}

func commitMessage(lsn, end pglogrepl.LSN, micros int64) []byte {
	return be64(be64(be64([]byte{'C', 0}, uint64(lsn)), uint64(end)), uint64(micros-pgEpoch))
}

type columnType struct {
	name string
	oid  uint32
}

func relationMessage(oid uint32, table string, columns ...columnType) []byte {
	b := be32([]byte{'R'}, oid)
	b = append(b, "public\x00"+table+"\x00d"...)
	b = be16(b, uint16(len(columns)))
	for _, c := range columns {
		b = append(b, 0)
		b = append(b, c.name+"\x00"...)
		b = be32(be32(b, c.oid), math.MaxUint32)
	}
	return b
}

// datum is a column's value in a tuple.
type datum struct {
	format byte
	value  []byte
}

var null = datum{format: 'n'}

func asText(v string) datum       { return datum{'t', []byte(v)} }
func asBinary(v []byte) datum     { return datum{'b', v} }
func asBytes(hexed string) datum  { return asBinary(unhex(hexed)) }
func binaryInt8(v int64) datum    { return asBinary(be64(nil, uint64(v))) }
func binaryTime(us int64) datum   { return binaryInt8(us - pgEpoch) }
func binaryString(v string) datum { return asBinary([]byte(v)) }

func unhex(v string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(v, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func insertMessage(oid uint32, values ...datum) []byte {
	b := append(be32([]byte{'I'}, oid), 'N')
	b = be16(b, uint16(len(values)))
	for _, v := range values {
		b = append(b, v.format)
		if v.format == 't' || v.format == 'b' {
			b = append(be32(b, uint32(len(v.value))), v.value...)
		}
	}
	return b
}

// outbox is the table as the migrations make it.
var outbox = []columnType{
	{"id", oidUUID},
	{"event_type", oidText},
	{"event_date_time", oidTimestamptz},
	{"environment", oidText},
	{"event_context", oidJSON},
	{"metadata_version", oidInt8},
	{"trace_context", oidText},
	{"published_by", oidText},
	{"published_at", oidTimestamptz},
}

const (
	sampleTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	sampleLSN   = pglogrepl.LSN(0x1_0000_0100)
	sampleEnd   = pglogrepl.LSN(0x1_0000_0130)
)

var (
	sampleID   = uuid.MustParse("0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
	sampleTime = time.Date(2026, 11, 23, 12, 34, 56, 789_012_000, time.UTC).UnixMicro()
)

// sampleRow returns the values of a good row of outbox, in binary.
func sampleRow() []datum {
	return []datum{
		asBinary(sampleID[:]), binaryString("user_created"), binaryTime(sampleTime), binaryString("Production"),
		binaryString(`{"a": 1}`), binaryInt8(3), binaryString(sampleTrace), binaryString("shop"), binaryTime(sampleTime),
	}
}

// with returns a good row whose column name has another value.
func with(name string, d datum) []datum {
	row := sampleRow()
	for i, c := range outbox {
		if c.name == name {
			row[i] = d
			return row
		}
	}
	panic("no column " + name)
}

// feed decodes messages that must be good.
func feed(t testing.TB, d *decode.Decoder, rows *decode.Rows, messages ...[]byte) decode.Kind {
	t.Helper()
	var kind decode.Kind
	for _, m := range messages {
		var err error
		kind, err = d.Decode(m, rows)
		require.NoError(t, err)
	}
	return kind
}

// started returns a decoder inside a transaction that knows the outbox with these columns.
func started(t testing.TB, columns ...columnType) *decode.Decoder {
	t.Helper()
	d := decode.NewDecoder(decode.Position{})
	feed(t, d, new(decode.Rows), beginMessage(sampleLSN, sampleTime), relationMessage(outboxOID, "outbox", columns...))
	return d
}
