package chserver

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ClickHouse/ch-go/proto"
)

// The Native format and the blocks of the protocol hold the same columns one
// after the other: name, type, data. The protocol puts block info in front and,
// since revision 54454, one byte behind every type that says whether the column
// is serialized specially. Blocks are therefore copied, not decoded; all that is
// needed is where each column ends, which depends on its type.

// cursor walks over the bytes of a block. It keeps what it has passed since
// mark, so that the caller can copy it.
type cursor struct {
	buf  []byte
	mark int
	pos  int
	// more appends at least n bytes to buf; nil when buf holds everything.
	more func(buf []byte, n int) ([]byte, error)
}

// maxBlock bounds what a block may claim to hold, in bytes.
const maxBlock = 4 << 30

// need makes n bytes available at the cursor's position.
func (c *cursor) need(n int) error {
	if n < 0 || n > maxBlock {
		return fmt.Errorf("block: length out of range")
	}
	missing := n - (len(c.buf) - c.pos)
	if missing <= 0 {
		return nil
	}
	if c.more == nil {
		return io.ErrUnexpectedEOF
	}
	c.buf = c.buf[:copy(c.buf, c.buf[c.mark:])]
	c.pos -= c.mark
	c.mark = 0
	buf, err := c.more(c.buf, missing)
	c.buf = buf
	return err
}

func (c *cursor) skip(n int) error {
	if err := c.need(n); err != nil {
		return err
	}
	c.pos += n
	return nil
}

func (c *cursor) take(n int) ([]byte, error) {
	if err := c.need(n); err != nil {
		return nil, err
	}
	b := c.buf[c.pos : c.pos+n]
	c.pos += n
	return b, nil
}

func (c *cursor) byte() (byte, error) {
	b, err := c.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

func (c *cursor) uint64() (uint64, error) {
	b, err := c.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func (c *cursor) uvarint() (int, error) {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		b, err := c.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return int(v), nil
		}
	}
	return 0, fmt.Errorf("block: number out of range")
}

func (c *cursor) string() (string, error) {
	n, err := c.uvarint()
	if err != nil {
		return "", err
	}
	b, err := c.take(n)
	return string(b), err
}

// skipStrings passes n strings, each behind its length.
func (c *cursor) skipStrings(n int) error {
	for n > 0 {
		n -= c.skipBufferedStrings(n)
		if n == 0 {
			break
		}
		length, err := c.uvarint()
		if err != nil {
			return err
		}
		if err := c.skip(length); err != nil {
			return err
		}
		n--
	}
	return nil
}

// skipBufferedStrings passes up to n strings that are in buf with their
// lengths, which are below 16 KiB, and returns how many. It is the hottest loop
// of an INSERT.
func (c *cursor) skipBufferedStrings(n int) int {
	buf, pos := c.buf, c.pos
	passed := 0
	for ; passed < n && pos+1 < len(buf); passed++ {
		next := pos + 1 + int(buf[pos])
		if buf[pos] >= 0x80 {
			if buf[pos+1] >= 0x80 {
				break
			}
			next = pos + 2 + int(buf[pos]&0x7f) + int(buf[pos+1])<<7
		}
		if next > len(buf) {
			break
		}
		pos = next
	}
	c.pos = pos
	return passed
}

// columnBytes are a column's bytes: name and type, and the data behind them.
// They are valid until the cursor moves on.
type columnBytes struct {
	name, typ    string
	header, data []byte
}

// blockReader reads blocks column by column.
type blockReader struct {
	cursor
	// wire is set for blocks of the protocol, which have block info and a byte after
	// each type.
	wire  bool
	types map[string]*columnType
}

// header reads the number of columns and rows.
func (r *blockReader) header() (columns, rows int, err error) {
	if r.wire {
		if err := r.blockInfo(); err != nil {
			return 0, 0, err
		}
	}
	if columns, err = r.uvarint(); err != nil {
		return 0, 0, err
	}
	rows, err = r.uvarint()
	return columns, rows, err
}

// column reads one column of so many rows. What was read before is dropped.
func (r *blockReader) column(rows int) (columnBytes, error) {
	r.mark = r.pos
	name, err := r.string()
	if err != nil {
		return columnBytes{}, err
	}
	typ, err := r.string()
	if err != nil {
		return columnBytes{}, err
	}
	headerLen := r.pos - r.mark
	if err := r.customByte(name); err != nil {
		return columnBytes{}, err
	}
	dataStart := r.pos - r.mark
	if rows > 0 {
		if err := r.columnData(name, typ, rows); err != nil {
			return columnBytes{}, err
		}
	}
	kept := r.buf[r.mark:r.pos]
	return columnBytes{name: name, typ: typ, header: kept[:headerLen], data: kept[dataStart:]}, nil
}

func (r *blockReader) customByte(column string) error {
	if !r.wire {
		return nil
	}
	custom, err := r.byte()
	if err == nil && custom != 0 {
		err = newException(proto.ErrNotImplemented, "NOT_IMPLEMENTED", "column "+column+" comes in a custom serialization")
	}
	return err
}

func (r *blockReader) columnData(name, typ string, rows int) error {
	t, ok := r.types[typ]
	if !ok {
		var err error
		if t, err = parseType(typ); err != nil {
			return unknownType("column " + name + " of type " + typ)
		}
		r.types[typ] = t
	}
	if err := t.skipPrefix(&r.cursor); err != nil {
		return err
	}
	return t.skipData(&r.cursor, rows)
}

func unknownType(what string) error {
	return newException(proto.ErrUnknownType, "UNKNOWN_TYPE",
		"the embedded server cannot transfer "+what+"; cast it, for example with toString")
}

// blockInfo passes numbered fields up to number 0.
func (r *blockReader) blockInfo() error {
	for {
		field, err := r.uvarint()
		if err != nil {
			return err
		}
		switch field {
		case 0:
			return nil
		case 1: // is_overflows
			err = r.skip(1)
		case 2: // bucket_num
			err = r.skip(4)
		default:
			err = fmt.Errorf("block info: unknown field %d", field)
		}
		if err != nil {
			return err
		}
	}
}
