package chserver

import "fmt"

// resultWriter sends a result in format Native to the client as Data packets,
// a header without rows first, as clients expect it.
type resultWriter struct {
	out        *packetWriter
	compressed bool
	types      map[string]*columnType
	started    bool
}

// write sends the blocks in native, which must be whole.
func (w *resultWriter) write(native []byte) error {
	r := blockReader{cursor: cursor{buf: native}, types: w.types}
	for r.pos < len(r.buf) {
		if err := w.writeBlock(&r); err != nil {
			return err
		}
	}
	return nil
}

func (w *resultWriter) writeBlock(r *blockReader) error {
	columns, rows, err := r.header()
	if err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	header := blockHead(nil, columns, 0)
	block := blockHead(w.out.block[:0], columns, rows)
	for range columns {
		column, err := r.column(rows)
		if err != nil {
			return fmt.Errorf("read result: %w", err)
		}
		if !w.started {
			header = blockColumn(header, column.header, nil)
		}
		block = blockColumn(block, column.header, column.data)
	}
	w.out.block = block
	if err := w.begin(header); err != nil {
		return err
	}
	return w.out.data(block, w.compressed)
}

// begin sends the header once.
func (w *resultWriter) begin(header []byte) error {
	if w.started {
		return nil
	}
	w.started = true
	return w.out.data(header, w.compressed)
}

// stringTable decodes a result whose columns are all strings, column by column.
func stringTable(native []byte) (columns [][]string, err error) {
	r := blockReader{cursor: cursor{buf: native}, types: make(map[string]*columnType)}
	for r.pos < len(r.buf) {
		n, rows, err := r.header()
		if err != nil {
			return nil, err
		}
		if columns == nil {
			columns = make([][]string, n)
		}
		for i := range n {
			column, err := r.column(rows)
			if err != nil {
				return nil, err
			}
			values := cursor{buf: column.data}
			for range rows {
				s, err := values.string()
				if err != nil {
					return nil, err
				}
				columns[i] = append(columns[i], s)
			}
		}
	}
	return columns, nil
}
