package clickhouse

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
)

// wire is a connection of the library's, on which a block goes out ahead of the packet that ends its insert.
type wire struct {
	net.Conn
	pool  *pool
	block atomic.Pointer[block] // goes out with the next Data packet, which ends its insert

	out    *bufio.Writer
	frames *bufio.Writer // compresses to out; nil without compression
}

const (
	outSize = 64 << 10
	// frameSize is what clickhouse-client compresses at once: DBMS_DEFAULT_BUFFER_SIZE.
	frameSize = 1 << 20
)

// socket is a wire over a socket, which the library looks at before it uses a connection again.
type socket struct {
	*wire
	syscall.Conn
}

// dialer connects as the library does by itself, or with the function that options name.
func (p *pool) dialer(options *clickhouse.Options) func(context.Context, string) (net.Conn, error) {
	dial := options.DialContext
	switch {
	case dial != nil:
	case options.TLS != nil:
		dial = onTCP((&tls.Dialer{Config: options.TLS}).DialContext)
	default:
		dial = onTCP(new(net.Dialer).DialContext)
	}
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dial(ctx, address)
		if err != nil {
			return nil, err
		}
		w := &wire{Conn: conn, pool: p}
		if encrypted, ok := conn.(*tls.Conn); ok {
			conn = encrypted.NetConn()
		}
		if s, ok := conn.(syscall.Conn); ok {
			return socket{w, s}, nil
		}
		return w, nil
	}
}

func onTCP(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }
}

// Write writes p, which begins with a packet, and the block that waits ahead of the packet that ends its
// insert. The library does not close a connection on which it could not write.
func (w *wire) Write(p []byte) (int, error) {
	w.pool.sends(p, w)
	n, err := w.write(p)
	if err != nil {
		_ = w.Close()
	}
	return n, err
}

func (w *wire) write(p []byte) (int, error) {
	if len(p) == 0 || proto.ClientCode(p[0]) != proto.ClientCodeData {
		return w.Conn.Write(p)
	}
	b := w.block.Swap(nil)
	if b == nil {
		return w.Conn.Write(p)
	}
	if err := w.writeBlock(b.columns, p); err != nil {
		b.failed = true
		return 0, err
	}
	return len(p), nil
}

// block is what an insert sends.
type block struct {
	columns []proto.InputColumn
	failed  bool // it, or the end of its insert, was not sent
}

// writeBlock writes a Data packet, and what follows it. Without compression only small parts are copied.
// The revision is the client's: any server that has our tables knows it.
// Source: ClickHouse docs, "Native Protocol: Client packets", Data.
func (w *wire) writeBlock(columns []proto.InputColumn, next []byte) error {
	if w.out == nil {
		w.out = bufio.NewWriterSize(w.Conn, outSize)
		if w.pool.method != clickhouse.CompressionNone {
			method := compress.Method(w.pool.method)
			w.frames = bufio.NewWriterSize(&compressor{to: w.out, compress: compress.NewWriter(0, method)}, frameSize)
		}
	}
	var head proto.Buffer
	proto.ClientCodeData.Encode(&head)
	proto.ClientData{}.EncodeAware(&head, clickhouse.ClientTCPProtocolVersion)
	_, _ = w.out.Write(head.Buf) // Flush returns its errors
	data := w.out
	if w.frames != nil {
		data = w.frames
	}
	b := proto.Block{Info: proto.BlockInfo{BucketNum: -1}, Columns: len(columns), Rows: columns[0].Data.Rows()}
	native := proto.NewWriter(data, new(proto.Buffer))
	if err := b.WriteBlock(native, clickhouse.ClientTCPProtocolVersion, columns); err != nil {
		return err
	}
	if _, err := native.Flush(); err != nil {
		return err
	}
	if w.frames != nil {
		if err := w.frames.Flush(); err != nil {
			return err
		}
	}
	_, _ = w.out.Write(next)
	return w.out.Flush()
}

// compressor writes frames of at most frameSize bytes each.
// Source: ClickHouse docs, "Native Protocol: Compression".
type compressor struct {
	to       io.Writer
	compress *compress.Writer
}

func (c *compressor) Write(p []byte) (n int, err error) {
	for n < len(p) {
		frame := p[n:min(len(p), n+frameSize)]
		if err := c.compress.Compress(frame); err != nil {
			return n, err
		}
		if _, err := c.to.Write(c.compress.Data); err != nil {
			return n, err
		}
		n += len(frame)
	}
	return n, nil
}
