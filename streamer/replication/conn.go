// Package replication owns the connection to PostgreSQL's walsender: slot and
// publication checks, START_REPLICATION, receiving and acknowledging.
//
// Source: PostgreSQL docs, "Streaming Replication Protocol" and "Logical
// Streaming Replication Protocol".
package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"diehard/shared/postgres"
	"diehard/streamer/replication/coalesce"
)

// Kind of a Message.
type Kind uint8

const (
	// Data is XLogData, which carries one pgoutput message.
	Data Kind = iota
	// Keepalive is a primary keepalive message: how far the server has sent.
	Keepalive
)

// Message is an XLogData ('w') or a primary keepalive message ('k') of the streaming replication
// protocol. Data is valid until the next Receive. Of a message
// that is larger than an event can be, Data has the beginning.
type Message struct {
	Kind           Kind
	Data           []byte
	Size           int           // bytes of all of Data
	Sent           int64         // Data: when, by the server's clock; microseconds since 1970
	WALEnd         pglogrepl.LSN // Keepalive: everything before it has been sent
	ReplyRequested bool          // Keepalive: the server waits for a Confirm
}

// Conn is one replication session. Receive belongs to one goroutine and Confirm
// to one other; Close may be called from anywhere.
type Conn struct {
	pg   *pgconn.PgConn
	wire *wire
	conn net.Conn // set once the stream has started
	read reads    // under conn
	pid  uint32
	out  [39]byte // the standby status update being sent
}

// reads learns when the server sent what was read.
type reads interface{ Sent(micros int64) }

// Connect opens a connection in replication mode. The server drops it when it
// hears nothing for senderTimeout, which frees the slot for a standby. dial makes
// the network connection; nil is TCP with coalesced reads.
//
// Errors: failure.Fatal for a wrong URL, user or password, otherwise failure.Transient.
func Connect(ctx context.Context, url, application string, senderTimeout time.Duration, dial pgconn.DialFunc) (*Conn, error) {
	if dial == nil {
		dial = coalesce.Dialer{}.DialContext
	}
	var w *wire
	pg, err := postgres.ConnectReplication(ctx, postgres.Config{URL: url}, postgres.Options{
		Application: application, SenderTimeout: senderTimeout, Dial: dial,
		BuildFrontend: func(src io.Reader, dst io.Writer) *pgproto3.Frontend {
			w = newWire(src)
			return pgproto3.NewFrontend(w, dst)
		},
	})
	if err != nil {
		return nil, classify(fmt.Errorf("replication connection: %w", err))
	}
	return &Conn{pg: pg, wire: w, pid: pg.PID()}, nil
}

// PID is the server process of this session.
func (c *Conn) PID() uint32 { return c.pid }

// Identify sends IDENTIFY_SYSTEM and returns the server's system identifier, timeline and WAL end.
func (c *Conn) Identify(ctx context.Context) (pglogrepl.IdentifySystemResult, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, c.pg)
	if err != nil {
		return sys, classify(fmt.Errorf("identify system: %w", err))
	}
	return sys, nil
}

// Wanted says what a stream has beside the rows that were written in this database.
type Wanted struct {
	Messages  bool // logical decoding messages
	LocalOnly bool // and not what a subscription wrote, PostgreSQL 16 and later
}

// Start begins streaming from the slot's confirmed position, or from at if that
// is later. Only committed transactions arrive, in commit order, one at a time.
//
// Errors: ErrSlotActive when another session holds the slot.
func (c *Conn) Start(ctx context.Context, slot, publication string, wanted Wanted, at pglogrepl.LSN) error {
	options := []string{
		"proto_version '1'",
		"publication_names " + quoteLiteral(quoteIdent(publication)),
		"binary 'true'",
	}
	if wanted.Messages {
		options = append(options, "messages 'true'")
	}
	if wanted.LocalOnly {
		options = append(options, "origin 'none'")
	}
	err := pglogrepl.StartReplication(ctx, c.pg, slot, at, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication, PluginArgs: options,
	})
	if err != nil {
		return classify(fmt.Errorf("start replication on slot %s: %w", slot, err))
	}
	hijacked, err := c.pg.Hijack()
	if err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	c.conn, c.read = hijacked.Conn, coalesce.Of(hijacked.Conn)
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	c.wire.attach(c.conn)
	return nil
}

// Buffered reports that Receive would return a message without waiting.
func (c *Conn) Buffered() bool { return c.wire.buffered() }

// Progressed reports that the server sent something since the last call, be it a part of a message.
func (c *Conn) Progressed() bool { return c.wire.progressed() }

// Receive returns the next message, waiting until deadline.
//
// Errors: os.ErrDeadlineExceeded when there is none by then; io.EOF when the
// server ended the stream; every other error ends the session too.
func (c *Conn) Receive(deadline time.Time) (Message, error) {
	for {
		got, err := c.wire.next(deadline)
		if err != nil {
			return Message{}, fmt.Errorf("receive: %w", err)
		}
		switch got.typ {
		case 'd':
			msg, err := parseCopyData(got.body, got.size)
			if err == nil && msg.Kind == Data {
				c.read.Sent(msg.Sent)
			}
			return msg, err
		case 'E':
			return Message{}, classify(fmt.Errorf("receive: %w", serverError(got.body)))
		case 'c', 'C', 'Z':
			return Message{}, fmt.Errorf("receive: the server ended the stream: %w", io.EOF)
		case 'N', 'S': // notices and parameter changes do not matter here
		default:
			return Message{}, fmt.Errorf("receive: unexpected message %q", got.typ)
		}
	}
}

// End reads to the end of a stream that the server has ended, and returns why. commit is the
// position of the last transaction of which something was sent; 0 if there was none.
//
// Errors: as Receive; os.ErrDeadlineExceeded when the stream has not ended.
func (c *Conn) End(deadline time.Time) (commit pglogrepl.LSN, err error) {
	for {
		msg, err := c.Receive(deadline)
		if err != nil {
			return commit, err
		}
		if len(msg.Data) >= 9 && msg.Data[0] == 'B' {
			commit = pglogrepl.LSN(binary.BigEndian.Uint64(msg.Data[1:]))
		}
	}
}

// pgEpochMicros is 2000-01-01 in microseconds since 1970, the zero of PostgreSQL timestamps.
const pgEpochMicros = 946_684_800_000_000

var errShort = errors.New("message is truncated")

func parseCopyData(b []byte, size int) (Message, error) {
	switch {
	case len(b) >= 25 && b[0] == 'w':
		sent := int64(binary.BigEndian.Uint64(b[17:])) + pgEpochMicros //nolint:gosec // signed on the wire
		return Message{Kind: Data, Data: b[25:], Size: size - 25, Sent: sent}, nil
	case len(b) >= 18 && b[0] == 'k':
		return Message{
			Kind:           Keepalive,
			WALEnd:         pglogrepl.LSN(binary.BigEndian.Uint64(b[1:])),
			ReplyRequested: b[17] != 0,
		}, nil
	case len(b) > 0 && b[0] != 'w' && b[0] != 'k':
		return Message{}, fmt.Errorf("receive: unknown replication message %q", b[0])
	default:
		return Message{}, fmt.Errorf("receive: %w", errShort)
	}
}

func serverError(body []byte) error {
	var msg pgproto3.ErrorResponse
	if err := msg.Decode(body); err != nil {
		return fmt.Errorf("server error: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&msg)
}

// Confirm sends a standby status update ('r'): flushed is stored durably, and the server may
// recycle older WAL. All three positions are set: a zero flush position would be taken for
// the write position. flushed must be the end of a transaction or an idle
// keepalive position, and never lower than before; 0 confirms nothing. ask makes the
// server answer with a keepalive. Fails when the message cannot be written within timeout.
func (c *Conn) Confirm(flushed pglogrepl.LSN, ask bool, timeout time.Duration) error {
	b := append(c.out[:0], 'd', 0, 0, 0, 38, 'r')
	for range 3 {
		b = binary.BigEndian.AppendUint64(b, uint64(flushed))
	}
	now := time.Now()
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMicro()-pgEpochMicros)) //nolint:gosec // after 2000
	b = append(b, 0)
	if ask {
		b[len(b)-1] = 1
	}
	if err := c.conn.SetWriteDeadline(now.Add(timeout)); err != nil {
		return fmt.Errorf("confirm %s: %w", flushed, err)
	}
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("confirm %s: %w", flushed, err)
	}
	return nil
}

// Finish ends the stream gracefully, so that the server has read the last Confirm
// before the connection goes. It discards what still arrives, until deadline.
// Call it when Receive and Confirm are no longer running.
func (c *Conn) Finish(deadline time.Time) error {
	copyDone := []byte{'c', 0, 0, 0, 4}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	if _, err := c.conn.Write(copyDone); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	for {
		got, err := c.wire.next(deadline)
		if err != nil {
			return fmt.Errorf("finish: %w", err)
		}
		if got.typ == 'Z' || got.typ == 'E' {
			return nil
		}
	}
}

// Wake makes a Receive that is waiting return os.ErrDeadlineExceeded. One that
// is about to wait may miss it, so callers wait in bounded steps.
func (c *Conn) Wake() {
	_ = c.conn.SetReadDeadline(time.Now()) // a closed connection wakes by itself
}

// Close drops the connection at once; a running Receive or Confirm fails. It may be called twice.
func (c *Conn) Close() {
	if c.conn != nil {
		_ = c.conn.Close() // it is gone either way
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.pg.Close(ctx) // it is gone either way
}

func quoteLiteral(s string) string { return "'" + escape(s, '\'') + "'" }
func quoteIdent(s string) string   { return `"` + escape(s, '"') + `"` }

func escape(s string, q byte) string {
	b := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		if s[i] == q {
			b = append(b, q)
		}
		b = append(b, s[i])
	}
	return string(b)
}
