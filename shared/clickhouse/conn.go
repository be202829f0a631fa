package clickhouse

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Conn is clickhouse-go's pool of connections. It can also insert a block that its caller has in
// format Native already, which the library would copy into its own columns and out of them again.
type Conn interface {
	driver.Conn
	// PrepareInsert sends an INSERT, and returns when ClickHouse has registered it. queryID must be
	// unique. ctx bounds the whole insert. Errors are those of PrepareBatch.
	PrepareInsert(ctx context.Context, queryID, query string, settings clickhouse.Settings) (Insert, error)
}

// Insert is an INSERT that ClickHouse has registered and whose rows it waits for: those that are
// appended before Send, or a block.
type Insert interface {
	driver.Batch
	// SendBlock sends columns as one block, ends the insert, and returns when ClickHouse has written it.
	// They have the names and types of Columns, in their order, and at least one row, and must not change
	// until it returns. Nothing may have been appended or sent. Errors are those of Send; after one that
	// is no exception of ClickHouse's the outcome is unknown.
	SendBlock(columns []proto.InputColumn) error
}

// OpenOptions is clickhouse.Open for a Conn. It does not connect yet.
func OpenOptions(options *clickhouse.Options) (Conn, error) {
	p := &pool{method: clickhouse.CompressionNone, prepared: make(map[string]*insert)}
	if options.Compression != nil {
		p.method = options.Compression.Method
	}
	over := *options
	over.DialContext = p.dialer(options)
	conn, err := clickhouse.Open(&over)
	if err != nil {
		return nil, err
	}
	p.Conn = conn
	return p, nil
}

type pool struct {
	driver.Conn
	method clickhouse.CompressionMethod

	mu       sync.Mutex
	prepared map[string]*insert // by query id: those whose query is being sent
}

type insert struct {
	driver.Batch
	ctx  context.Context //nolint:containedctx // as the library's batch
	wire *wire           // the connection on which its query was sent
}

func (p *pool) PrepareInsert(ctx context.Context, queryID, query string, settings clickhouse.Settings) (Insert, error) {
	i := &insert{ctx: ctx}
	p.expect(queryID, i)
	defer p.expect(queryID, nil)
	batch, err := p.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithQueryID(queryID), clickhouse.WithSettings(settings)), query)
	if err != nil {
		return nil, err
	}
	i.Batch = batch
	return i, nil
}

func (i *insert) SendBlock(columns []proto.InputColumn) error {
	if i.wire == nil { // the library sends queries in another form
		_ = i.Abort()
		return errNotSent
	}
	if i.IsSent() || i.Rows() > 0 || len(columns) == 0 || columns[0].Data.Rows() == 0 {
		_ = i.Abort()
		return errNoBlock
	}
	b := &block{columns: columns}
	i.wire.block.Store(b)
	err := i.Send()
	waits := i.wire.block.CompareAndSwap(b, nil) // another insert may use the connection by now
	switch {
	case b.failed && i.ctx.Err() != nil:
		return i.ctx.Err()
	case err == nil && waits:
		return errNotSent
	default:
		return err
	}
}

var (
	errNoBlock = errors.New("an insert takes one block, of at least one row")
	errNotSent = errors.New("the insert ended without its block")
)

// expect notes the insert whose query will be sent under an id; nil for none any more.
func (p *pool) expect(queryID string, i *insert) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i == nil {
		delete(p.prepared, queryID)
		return
	}
	p.prepared[queryID] = i
}

// sends notes for the insert whose query packet is on which connection it goes out.
// Source of the layout: ClickHouse docs, "Native Protocol: Client packets", Query.
func (p *pool) sends(packet []byte, on *wire) {
	if len(packet) == 0 || packet[0] != byte(proto.ClientCodeQuery) {
		return
	}
	length, n := binary.Uvarint(packet[1:])
	rest := packet[1+max(n, 0):]
	if n <= 0 || length > uint64(len(rest)) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.prepared[string(rest[:length])]; i != nil {
		i.wire = on
	}
}
