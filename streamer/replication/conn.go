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

	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// Kind of a Message.
type Kind uint8

const (
	// Data carries one pgoutput message.
	Data Kind = iota
	// Keepalive tells how far the server has sent.
	Keepalive
)

// Message is what the walsender sent. Data is valid until the next Receive.
type Message struct {
	Kind           Kind
	Data           []byte
	WALEnd         pglogrepl.LSN // Keepalive: everything before it has been sent
	ReplyRequested bool          // Keepalive: the server waits for a Confirm
}

// Conn is one replication session. Receive belongs to one goroutine and Confirm
// to one other; Close may be called from anywhere.
type Conn struct {
	pg   *pgconn.PgConn
	wire *wire
	conn net.Conn // set once the stream has started
	pid  uint32
	out  [39]byte // the status update being sent
}

// Connect opens a connection in replication mode. The server drops it when it
// hears nothing for senderTimeout, which frees the slot for a standby.
//
// Errors: failure.Fatal for a wrong URL, user or password, otherwise failure.Transient.
func Connect(ctx context.Context, url, application string, senderTimeout time.Duration) (*Conn, error) {
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, failure.Wrap(failure.Fatal, fmt.Errorf("DATABASE_URL: %w", postgres.Redact(err)))
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = application
	// Text values must come in forms the decoder reads; the timeout is for this session alone.
	cfg.RuntimeParams["options"] += fmt.Sprintf(
		" -c wal_sender_timeout=%dms -c datestyle=ISO -c timezone=UTC -c client_encoding=UTF8 -c statement_timeout=0 -c lock_timeout=0",
		senderTimeout.Milliseconds())
	cfg.DialFunc = dialer{near: near}.dial
	var w *wire
	cfg.BuildFrontend = func(src io.Reader, dst io.Writer) *pgproto3.Frontend {
		w = newWire(src)
		return pgproto3.NewFrontend(w, dst)
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, classify(fmt.Errorf("connect for replication: %w", postgres.Explain(err)))
	}
	return &Conn{pg: pg, wire: w, pid: pg.PID()}, nil
}

// PID is the server process of this session.
func (c *Conn) PID() uint32 { return c.pid }

// Identify returns the server's system identifier, timeline and WAL end.
func (c *Conn) Identify(ctx context.Context) (pglogrepl.IdentifySystemResult, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, c.pg)
	if err != nil {
		return sys, classify(fmt.Errorf("identify system: %w", err))
	}
	return sys, nil
}

// Start begins streaming from the slot's confirmed position, or from at if that
// is later; with logical decoding messages, if they are wanted. Only committed transactions arrive, in commit order, one at a time.
//
// Errors: ErrSlotActive when another session holds the slot.
func (c *Conn) Start(ctx context.Context, slot, publication string, messages bool, at pglogrepl.LSN) error {
	options := []string{
		"proto_version '1'",
		"publication_names " + quoteLiteral(quoteIdent(publication)),
		"binary 'true'",
	}
	if messages {
		options = append(options, "messages 'true'")
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
	c.conn = hijacked.Conn
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	c.wire.take(c.conn)
	return nil
}

// Buffered reports that Receive would return a message without waiting.
func (c *Conn) Buffered() bool { return c.wire.buffered() }

// Receive returns the next message, waiting until deadline.
//
// Errors: os.ErrDeadlineExceeded when there is none by then; io.EOF when the
// server ended the stream; every other error ends the session too.
func (c *Conn) Receive(deadline time.Time) (Message, error) {
	for {
		typ, body, err := c.wire.next(deadline)
		if err != nil {
			return Message{}, fmt.Errorf("receive: %w", err)
		}
		switch typ {
		case 'd':
			return parseCopyData(body)
		case 'E':
			return Message{}, classify(fmt.Errorf("receive: %w", serverError(body)))
		case 'c', 'C', 'Z':
			return Message{}, fmt.Errorf("receive: the server ended the stream: %w", io.EOF)
		case 'N', 'S': // notices and parameter changes concern nobody here
		default:
			return Message{}, fmt.Errorf("receive: unexpected message %q", typ)
		}
	}
}

var errShort = errors.New("message is truncated")

func parseCopyData(b []byte) (Message, error) {
	switch {
	case len(b) >= 25 && b[0] == 'w':
		return Message{Kind: Data, Data: b[25:]}, nil
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

// Confirm reports flushed as durably stored, letting the server recycle older
// WAL. All three positions are set: a zero flush position would be taken for
// the write position. flushed must be the end of a transaction or an idle
// keepalive position, and never lower than before; 0 confirms nothing. ask makes the
// server answer with a keepalive. Fails when the message cannot be written within timeout.
func (c *Conn) Confirm(flushed pglogrepl.LSN, ask bool, timeout time.Duration) error {
	const pgEpochMicros = 946_684_800_000_000
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

// Finish ends the stream in order, so that the server has read the last Confirm
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
		typ, _, err := c.wire.next(deadline)
		if err != nil {
			return fmt.Errorf("finish: %w", err)
		}
		if typ == 'Z' || typ == 'E' {
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

func quoteLiteral(s string) string { return "'" + doubled(s, '\'') + "'" }
func quoteIdent(s string) string   { return `"` + doubled(s, '"') + `"` }

func doubled(s string, q byte) string {
	b := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		if s[i] == q {
			b = append(b, q)
		}
		b = append(b, s[i])
	}
	return string(b)
}
