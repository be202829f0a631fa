package chserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sys/unix"
)

// insertData runs an INSERT whose rows come as Data packets. They are collected
// outside of the engine first, so that nothing is inserted unless all arrived.
func (c *client) insertData(q *request) error {
	columns, err := c.insertColumns(q)
	if err != nil {
		return err
	}
	if err := c.checkViews(q); err != nil {
		return err
	}
	if err := c.out.data(headerBlock(columns), q.compressed); err != nil {
		return err
	}
	if err := c.out.flush(); err != nil {
		return err
	}
	rows, size, err := c.collect(q)
	if err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	if err := q.running.begin(); err != nil || rows == 0 {
		return err
	}
	into := q.statement.insert
	sql := fmt.Sprintf("%s FROM INFILE '%s' %s FORMAT Native", into.head, c.spool.path(), into.tail)
	err = c.replica.insert(func() error { return c.session.query(sql, q.params, func([]byte) error { return nil }) })
	if err != nil {
		return err
	}
	c.out.progress(rows, size)
	return nil
}

// checkViews refuses an INSERT that the engine cannot build for a view on its table, before the
// client sends rows, as a server does. Without views there is nothing that DESCRIBE does not find.
func (c *client) checkViews(q *request) error {
	into := q.statement.insert
	if !c.server.hasViews.Load() || into.isFunction {
		return nil
	}
	return c.session.query("EXPLAIN PIPELINE "+into.head+" "+into.tail+" FORMAT Native", q.params, func([]byte) error { return nil })
}

// insertColumns asks the engine which columns the INSERT takes.
func (c *client) insertColumns(q *request) ([]columnInfo, error) {
	into := q.statement.insert
	described, err := c.describe(into.target, q.params)
	if err != nil {
		return nil, err
	}
	if into.columns == nil {
		return slices.DeleteFunc(described.insertable(), func(c columnInfo) bool {
			return slices.Contains(into.except, c.name)
		}), nil
	}
	columns := make([]columnInfo, 0, len(into.columns))
	for _, name := range into.columns {
		i := slices.Index(described.names, name)
		if i < 0 {
			return nil, newException(proto.ErrNoSuchColumnInTable, "NO_SUCH_COLUMN_IN_TABLE",
				"DB::Exception: No such column "+name+" in table "+into.target)
		}
		columns = append(columns, columnInfo{name, described.types[i]})
	}
	return columns, nil
}

// description is the answer to DESCRIBE TABLE.
type description struct{ names, types, defaults []string }

func (c *client) describe(what string, params []parameter) (description, error) {
	var d description
	err := c.session.query("DESCRIBE TABLE "+what, params, func(native []byte) error {
		table, err := stringTable(native)
		if err != nil {
			return fmt.Errorf("describe: %w", err)
		}
		if len(table) < 3 {
			return errors.New("describe: columns are missing")
		}
		d = description{names: table[0], types: table[1], defaults: table[2]}
		return nil
	})
	return d, err
}

// insertable leaves out the columns that an INSERT without a list does not take.
func (d description) insertable() []columnInfo {
	var columns []columnInfo
	for i, name := range d.names {
		switch d.defaults[i] {
		case "ALIAS", "MATERIALIZED", "EPHEMERAL":
		default:
			columns = append(columns, columnInfo{name, d.types[i]})
		}
	}
	return columns
}

// collect reads Data packets up to the empty one and spools their blocks.
func (c *client) collect(q *request) (rows, size int, err error) {
	if err := c.spool.start(); err != nil {
		return 0, 0, err
	}
	for {
		code, err := c.in.ReadByte()
		if err != nil {
			return 0, 0, fmt.Errorf("wait for rows: %w", err)
		}
		switch proto.ClientCode(code) {
		case proto.ClientCodeData:
			n, err := c.readData(q.compressed, &c.spool)
			if err != nil {
				return 0, 0, err
			}
			if n < 0 {
				return rows, c.spool.size, c.spool.finish()
			}
			rows += n
		case proto.ClientCodeCancel:
			return 0, 0, cancelled()
		default:
			return 0, 0, fmt.Errorf("wait for rows: unexpected packet %d", code)
		}
	}
}

// readData reads the rest of a Data packet into sink, which may be nil to drop
// it, and returns its rows, or -1 for an empty block.
func (c *client) readData(compressed bool, sink *spool) (rows int, err error) {
	if _, err := c.r.Str(); err != nil {
		return 0, fmt.Errorf("read data: table name: %w", err)
	}
	return c.readBlock(compressed, sink, func(columnBytes) {})
}

// readBlock is readData behind the table's name. seen is called with each column.
func (c *client) readBlock(compressed bool, sink *spool, seen func(columnBytes)) (rows int, err error) {
	c.blocks.buf, c.blocks.pos, c.blocks.mark = c.blocks.buf[:0], 0, 0
	c.blocks.more = c.readPlain
	if compressed {
		c.blocks.more = c.readFrames
	}
	columns, rows, err := c.blocks.header()
	if err != nil {
		return 0, fmt.Errorf("read data: %w", err)
	}
	if columns == 0 {
		return -1, nil
	}
	if rows == 0 {
		sink = nil
	}
	if sink != nil {
		sink.begin(columns, rows)
	}
	for range columns {
		column, err := c.blocks.column(rows)
		if err != nil {
			return 0, fmt.Errorf("read data: %w", err)
		}
		seen(column)
		if sink != nil {
			if err := sink.column(column); err != nil {
				return 0, err
			}
		}
	}
	if c.blocks.pos != len(c.blocks.buf) {
		return 0, errors.New("read data: bytes left behind the last column")
	}
	return rows, nil
}

// readPlain appends exactly n bytes, for what follows belongs to the next packet.
func (c *client) readPlain(buf []byte, n int) ([]byte, error) {
	from := len(buf)
	buf = slices.Grow(buf, n)[:from+n]
	_, err := io.ReadFull(c.in, buf[from:])
	return buf, err
}

// readFrames appends compressed frames until there are n bytes more. A frame
// never holds more than one packet's data.
func (c *client) readFrames(buf []byte, n int) ([]byte, error) {
	for want := len(buf) + n; len(buf) < want; {
		var err error
		if buf, err = c.frames.append(buf); err != nil {
			return buf, err
		}
	}
	return buf, nil
}

// spool is an anonymous file in memory with the blocks of an INSERT in format
// Native. It is reused from one INSERT to the next. (Blocks behind FORMAT in the
// statement itself do not work: the engine ends such data at a blank line.)
type spool struct {
	fd   int // 0: not open
	size int
	head []byte
}

// keepMemory is how large a buffer may be that is kept for the next INSERT, in bytes.
const keepMemory = 64 << 20

func (s *spool) start() error {
	s.size = 0
	if s.fd != 0 {
		return nil
	}
	fd, err := unix.MemfdCreate("clickhouse-insert", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("spool rows: %w", err)
	}
	s.fd = fd
	return nil
}

func (s *spool) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.fd) }

func (s *spool) begin(columns, rows int) {
	s.head = binary.AppendUvarint(s.head[:0], uint64(columns))
	s.head = binary.AppendUvarint(s.head, uint64(rows))
}

func (s *spool) column(c columnBytes) error {
	s.head = append(s.head, c.header...)
	if err := s.write(s.head); err != nil {
		return err
	}
	s.head = s.head[:0]
	return s.write(c.data)
}

func (s *spool) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(s.fd, b, int64(s.size))
		if err != nil {
			return fmt.Errorf("spool rows: %w", err)
		}
		s.size += n
		b = b[n:]
	}
	return nil
}

// finish cuts off what a longer INSERT before has left.
func (s *spool) finish() error {
	if err := unix.Ftruncate(s.fd, int64(s.size)); err != nil {
		return fmt.Errorf("spool rows: %w", err)
	}
	return nil
}

// release gives back memory that only a large INSERT needs.
func (s *spool) release() {
	if s.size > keepMemory {
		_ = unix.Ftruncate(s.fd, 0)
	}
}

// releaseMemory gives back memory that only a large INSERT needs.
func (c *client) releaseMemory() {
	c.spool.release()
	if cap(c.blocks.buf) > keepMemory {
		c.blocks.buf = nil
	}
	if cap(c.frames.raw) > keepMemory {
		c.frames.raw = nil
	}
}

func (s *spool) close() {
	if s.fd != 0 {
		_ = unix.Close(s.fd)
	}
}
