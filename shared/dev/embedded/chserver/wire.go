package chserver

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// revision is the protocol's version that clients are offered: the lowest with
// query parameters, and progress as clickhouse-go and ch-go read it.
const revision = 54460

// packetWriter writes the packets that go to a client.
type packetWriter struct {
	conn  net.Conn
	buf   proto.Buffer
	frame compress.Writer
	block []byte // scratch
}

// flushAt bounds what is kept before it is written, in bytes.
const flushAt = 1 << 20

// maxFrame is how much of a block is compressed at once, in bytes.
const maxFrame = 1 << 20

func (w *packetWriter) flush() error {
	if len(w.buf.Buf) == 0 {
		return nil
	}
	_, err := w.conn.Write(w.buf.Buf)
	w.buf.Reset()
	if err != nil {
		return fmt.Errorf("write to client: %w", err)
	}
	return nil
}

// endOfStream, pong and exception are whole answers and flush.
func (w *packetWriter) endOfStream() error {
	proto.ServerCodeEndOfStream.Encode(&w.buf)
	return w.flush()
}

func (w *packetWriter) pong() error {
	proto.ServerCodePong.Encode(&w.buf)
	return w.flush()
}

func (w *packetWriter) exception(e *exception) error {
	proto.ServerCodeException.Encode(&w.buf)
	packet := proto.Exception{Code: e.code, Name: "DB::Exception", Message: e.text}
	packet.EncodeAware(&w.buf, revision)
	return w.flush()
}

// progress reports written rows and bytes.
func (w *packetWriter) progress(rows, bytes int) {
	proto.ServerCodeProgress.Encode(&w.buf)
	proto.Progress{WroteRows: uint64(rows), WroteBytes: uint64(bytes)}.EncodeAware(&w.buf, revision)
}

// data sends block, which has block info and custom bytes, as a Data packet.
func (w *packetWriter) data(block []byte, compressed bool) error {
	proto.ServerCodeData.Encode(&w.buf)
	w.buf.PutString("") // table name
	if !compressed {
		w.buf.PutRaw(block)
	}
	for compressed && len(block) > 0 {
		n := min(len(block), maxFrame)
		if err := w.frame.Compress(block[:n]); err != nil {
			return fmt.Errorf("compress block: %w", err)
		}
		w.buf.PutRaw(w.frame.Data)
		block = block[n:]
	}
	if len(w.buf.Buf) < flushAt {
		return nil
	}
	return w.flush()
}

// blockHead starts a block in the protocol's form.
func blockHead(dst []byte, columns, rows int) []byte {
	dst = append(dst, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0) // no overflow, no bucket
	dst = binary.AppendUvarint(dst, uint64(columns))
	return binary.AppendUvarint(dst, uint64(rows))
}

// blockColumn appends a column, with a zero custom byte between type and data.
func blockColumn(dst, header, data []byte) []byte {
	dst = append(dst, header...)
	dst = append(dst, 0)
	return append(dst, data...)
}

// stringColumn encodes the data of a column of strings.
func stringColumn(values []string) []byte {
	var data []byte
	for _, v := range values {
		data = binary.AppendUvarint(data, uint64(len(v)))
		data = append(data, v...)
	}
	return data
}

// columnHeader encodes a column's name and type.
func columnHeader(dst []byte, name, typ string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(name)))
	dst = append(dst, name...)
	dst = binary.AppendUvarint(dst, uint64(len(typ)))
	return append(dst, typ...)
}

// headerBlock is a block without rows, for the names and types of the columns.
func headerBlock(columns []columnInfo) []byte {
	block := blockHead(nil, len(columns), 0)
	for _, c := range columns {
		block = blockColumn(block, columnHeader(nil, c.name, c.typ), nil)
	}
	return block
}

type columnInfo struct{ name, typ string }
