package decode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/event"
	"diehard/shared/failure"
)

type column struct {
	name string
	oid  uint32
}

// relation is a table as announced by the server.
type relation struct {
	schema, name string
	columns      []column
	fields       []field // one per column; nil until first used
}

// field says what to do with a column of a row.
type field struct {
	set setter // nil: the column is not ours
	bit uint8  // of the required columns seen so far; 0 for an optional one
}

// columnMapping says how an outbox column becomes a column of event_log.
type columnMapping struct {
	field
	oids []uint32
}

var columnMappings = map[string]columnMapping{
	"id":               {field{setID, 1}, []uint32{pgtype.UUIDOID}},
	"event_type":       {field{setType, 2}, []uint32{pgtype.TextOID, pgtype.VarcharOID}},
	"event_date_time":  {field{setDateTime, 4}, []uint32{pgtype.TimestamptzOID, pgtype.TimestampOID}},
	"environment":      {field{setEnvironment, 8}, []uint32{pgtype.TextOID, pgtype.VarcharOID}},
	"event_context":    {field{setContext, 16}, []uint32{pgtype.JSONOID, pgtype.JSONBOID, pgtype.TextOID}},
	"metadata_version": {field{setMetadataVersion, 32}, []uint32{pgtype.Int8OID, pgtype.Int4OID}},
	"trace_context":    {field{setTrace, 0}, []uint32{pgtype.TextOID, pgtype.VarcharOID}},
	"published_by":     {field{setPublishedBy, 0}, []uint32{pgtype.TextOID, pgtype.VarcharOID}},
}

// ColumnTypes returns the types, as OIDs, that each column of the outbox may have.
func ColumnTypes() map[string][]uint32 {
	types := make(map[string][]uint32, len(columnMappings))
	for name, mapping := range columnMappings {
		types[name] = slices.Clone(mapping.oids)
	}
	return types
}

const (
	// allRequired has the bit of every required column.
	allRequired = 1 | 2 | 4 | 8 | 16 | 32
	// nullable has the bits of those in which NULL stands for the default.
	nullable = 8 | 32
)

// maxColumns is PostgreSQL's own limit (docs, "PostgreSQL Limits").
const maxColumns = 1600

// readRelation parses a Relation message.
func readRelation(b []byte) (oid uint32, rel *relation, err error) {
	c := cursor{b: b}
	oid = c.u32()
	rel = &relation{schema: c.str(), name: c.str()}
	c.u8() // replica identity: of no use with inserts only
	n := int(c.u16())
	if n > maxColumns {
		return 0, nil, fmt.Errorf("relation %s: %d columns", rel.name, n)
	}
	for range n {
		if c.err != nil {
			break
		}
		c.u8() // key flag
		col := column{name: c.str(), oid: c.u32()}
		c.u32() // type modifier
		rel.columns = append(rel.columns, col)
	}
	if c.err != nil {
		return 0, nil, fmt.Errorf("relation: %w", c.err)
	}
	return oid, rel, nil
}

// partitionPrefix is that of the outbox's partitions, under whose names rows arrive that
// were committed while the publication did not publish via the partition root.
const partitionPrefix = "diehard_outbox_"

// resolve maps the columns, once, when the first row arrives: all tables are
// announced, and only those that rows are sent under must be ours.
func (r *relation) resolve() error {
	if r.name != event.Table && !strings.HasPrefix(r.name, partitionPrefix) {
		return misfit(fmt.Errorf(
			"the publication sends rows of table %s.%s: publish the table %s alone (ALTER PUBLICATION … SET TABLE %s). "+
				"If it does so now, the WAL has older rows: pass this transaction with `streamer run --start-lsn` and a position behind it, then `streamer replay --from-table`",
			r.schema, r.name, event.Table, event.Table))
	}
	fields := make([]field, len(r.columns))
	var seen uint8
	for i, col := range r.columns {
		t, ok := columnMappings[col.name]
		if !ok {
			continue
		}
		if !slices.Contains(t.oids, col.oid) {
			return misfit(fmt.Errorf(
				"column %s.%s has a type (oid %d) that cannot be mapped to the column of the same name in ClickHouse: change it back"+pastRows,
				r.name, col.name, col.oid))
		}
		fields[i] = t.field
		if col.oid == pgtype.JSONBOID {
			fields[i].set = setContextJSONB
		}
		seen |= t.bit
	}
	if seen != allRequired {
		return misfit(fmt.Errorf(
			"table %s.%s has no column %s any more: add it back or restore its name"+pastRows,
			r.schema, r.name, missing(seen)))
	}
	r.fields = fields
	return nil
}

// pastRows is the rest of a fix: the WAL keeps rows in the shape they were written in.
const pastRows = ". Rows written since cannot be read from the WAL: run `streamer slot drop`, `streamer slot create` " +
	"and `streamer replay --from-table`"

// missing names the required columns whose bit is not in seen.
func missing(seen uint8) string {
	var names []string
	for name, t := range columnMappings {
		if t.bit != 0 && seen&t.bit == 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func misfit(err error) error {
	return failure.Wrap(failure.Fatal, failure.Because(failure.Schema, err))
}
