package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/failure"
	"diehard/streamer/replication/coalesce"
)

func dataMessage(payload string) []byte {
	head := append([]byte{'w'}, make([]byte, 16)...)
	head = binary.BigEndian.AppendUint64(head, 12345)
	return message('d', append(head, payload...))
}

func keepaliveMessage(end pglogrepl.LSN, reply byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(end))
	b = binary.BigEndian.AppendUint64(b, 12345)
	return message('d', append(b, reply))
}

// begin opens a session with s and starts the stream.
func begin(t *testing.T, s *server) (*Conn, net.Conn) {
	t.Helper()
	c, err := Connect(t.Context(), s.url(), "tester", 10*time.Second, nil)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.NoError(t, c.Start(t.Context(), "slot", "it's \"odd\"", Wanted{}, 0x1_0000_0042))
	return c, <-s.conns
}

func TestASessionBeginsAsItMust(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c, _ := begin(t, s)
	assert.Equal(t, uint32(4711), c.PID())
	assert.Equal(t, "database", s.startup["replication"])
	assert.Equal(t, "tester", s.startup["application_name"])
	for name, value := range map[string]string{
		"wal_sender_timeout": "10000ms", "DateStyle": "ISO, MDY", "TimeZone": "UTC", "client_encoding": "UTF8", "row_security": "off",
	} {
		assert.Equal(t, value, s.startup[name], name)
	}
	assert.Equal(t, `START_REPLICATION SLOT slot LOGICAL 1/42 `+
		`(proto_version '1', publication_names '"it''s ""odd"""', binary 'true')`, strings.Join(strings.Fields(s.query), " "))
}

// The first messages come in the segment that ends the handshake, and must not be lost with it.
func TestWhatFollowsTheHandshakeIsReceived(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answer = bytes.Join([][]byte{copyBoth(), dataMessage("one"), keepaliveMessage(42, 1), dataMessage("two")[:9]}, nil)
	c, theirs := begin(t, s)
	await.True(t, c.Buffered, "the message is buffered")
	m, err := c.Receive(soon())
	require.NoError(t, err)
	assert.Equal(t, Message{Kind: Data, Data: []byte("one"), Size: 3, Sent: pgEpochMicros + 12345}, m)
	assert.True(t, c.Buffered())
	m, err = c.Receive(soon())
	require.NoError(t, err)
	assert.Equal(t, Message{Kind: Keepalive, WALEnd: 42, ReplyRequested: true}, m)
	assert.False(t, c.Buffered())
	_, err = c.Receive(time.Now().Add(time.Millisecond))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	write(t, theirs, dataMessage("two")[9:])
	m, err = c.Receive(soon())
	require.NoError(t, err)
	assert.Equal(t, "two", string(m.Data))
}

func TestHandshakeByteByByte(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answer = nil
	c, err := Connect(t.Context(), s.url(), "tester", time.Second, nil)
	require.NoError(t, err)
	defer c.Close()
	go func() {
		theirs := <-s.conns
		for _, b := range bytes.Join([][]byte{copyBoth(), dataMessage("one")}, nil) {
			_, _ = theirs.Write([]byte{b})
		}
	}()
	require.NoError(t, c.Start(t.Context(), "slot", "publication", Wanted{}, 0))
	m, err := c.Receive(soon())
	require.NoError(t, err)
	assert.Equal(t, "one", string(m.Data))
}

// session is a Conn whose stream has started, and the other end of it.
func session(t testing.TB) (*Conn, net.Conn) {
	t.Helper()
	w, theirs := taken(t)
	return &Conn{wire: w, conn: w.conn, read: coalesce.Of(w.conn)}, theirs
}

// times are what a connection has learned.
type times []int64

func (t *times) Sent(micros int64) { *t = append(*t, micros) }

// Reads are coalesced by the times at which the server sent its messages.
func TestReadsLearnWhenMessagesWereSent(t *testing.T) {
	t.Parallel()
	c, theirs := begin(t, newServer(t))
	assert.Same(t, coalesce.Of(c.conn), c.read)
	var learned times
	c.read = &learned
	write(t, theirs, bytes.Join([][]byte{keepaliveMessage(42, 0), dataMessage("one"), dataMessage("two")}, nil))
	for range 3 {
		_, err := c.Receive(soon())
		require.NoError(t, err)
	}
	assert.Equal(t, times{pgEpochMicros + 12345, pgEpochMicros + 12345}, learned)
}

func TestReceiveDistinguishesMessages(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sent  []byte
		want  string
		class failure.Class
		is    error
	}{
		"server error":     {serverErrorMessage("57P01", "terminating connection"), "terminating connection", failure.Transient, nil},
		"slot taken":       {serverErrorMessage("55006", "slot is active"), "slot is active", failure.Transient, ErrSlotActive},
		"slot lost":        {serverErrorMessage("55000", "can no longer"), "max_slot_wal_keep_size", failure.Fatal, nil},
		"publication gone": {serverErrorMessage("42704", "publication does not exist"), "replay --from-table", failure.Fatal, nil},
		"no permission":    {serverErrorMessage("42501", "denied"), "denied", failure.Fatal, nil},
		"broken error":     {message('E', []byte("S")), "server error", failure.Transient, nil},
		"copy done":        {message('c', nil), "the server ended the stream", failure.Transient, io.EOF},
		"command complete": {message('C', []byte("x\x00")), "the server ended the stream", failure.Transient, io.EOF},
		"ready":            {message('Z', []byte("I")), "the server ended the stream", failure.Transient, io.EOF},
		"unexpected":       {message('T', nil), `unexpected message 'T'`, failure.Transient, nil},
		"unknown payload":  {message('d', []byte("x")), `unknown replication message 'x'`, failure.Transient, nil},
		"empty payload":    {message('d', nil), "message is truncated", failure.Transient, errShort},
		"short data":       {message('d', append([]byte{'w'}, make([]byte, 23)...)), "message is truncated", failure.Transient, errShort},
		"short keepalive":  {message('d', append([]byte{'k'}, make([]byte, 16)...)), "message is truncated", failure.Transient, errShort},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, theirs := session(t)
			// Notices and parameter changes are passed over.
			write(t, theirs, bytes.Join([][]byte{message('N', []byte("M\x00\x00")), message('S', []byte("a\x00b\x00")), c.sent}, nil))
			_, err := conn.Receive(soon())
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, c.class, failure.Of(err))
			if c.is != nil {
				assert.ErrorIs(t, err, c.is)
			}
		})
	}
}

func TestAConnectionThatEndsIsNotADeadline(t *testing.T) {
	t.Parallel()
	for _, sent := range [][]byte{nil, dataMessage("cut")[:10]} {
		conn, theirs := session(t)
		write(t, theirs, sent)
		theirs.Close()
		_, err := conn.Receive(soon())
		require.ErrorIs(t, err, io.EOF)
	}
}

// Source: PostgreSQL docs, "Streaming Replication Protocol", Standby status update.
func TestConfirmSaysTheSameInAllThreePositions(t *testing.T) {
	t.Parallel()
	for _, ask := range []bool{false, true} {
		for _, lsn := range []pglogrepl.LSN{0, 1, 0x16_B374_D848, 1<<64 - 1} {
			conn, theirs := session(t)
			before := time.Now()
			require.NoError(t, conn.Confirm(lsn, ask, time.Second))
			b := make([]byte, 100)
			n, err := theirs.Read(b)
			require.NoError(t, err)
			b = b[:n]
			require.Len(t, b, 39)
			assert.Equal(t, []byte{'d', 0, 0, 0, 38, 'r'}, b[:6])
			for _, at := range []int{6, 14, 22} { // written, flushed, applied
				assert.Equal(t, uint64(lsn), binary.BigEndian.Uint64(b[at:]))
			}
			epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
			sent := epoch.Add(time.Duration(binary.BigEndian.Uint64(b[30:])) * time.Microsecond)
			assert.WithinRange(t, sent, before.Truncate(time.Microsecond), time.Now())
			assert.Equal(t, ask, b[38] == 1)
		}
	}
}

func TestConfirmDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe() // nothing reads
	defer theirs.Close()
	conn := &Conn{conn: ours}
	began := time.Now()
	err := conn.Confirm(42, false, 20*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
	conn.Close()
	require.Error(t, conn.Confirm(42, false, time.Second))
	conn.Close()
}

// Receive in one goroutine and Confirm in another; the race detector watches.
func TestConfirmWhileReceiving(t *testing.T) {
	t.Parallel()
	conn, theirs := session(t)
	const n = 500
	go func() {
		for range n {
			_, _ = theirs.Write(dataMessage("x"))
		}
	}()
	confirmed := make(chan error, 1)
	go func() {
		for i := range n {
			if err := conn.Confirm(pglogrepl.LSN(i), false, time.Second); err != nil {
				confirmed <- err
				return
			}
		}
		confirmed <- nil
	}()
	for range n {
		_, err := conn.Receive(soon())
		require.NoError(t, err)
	}
	require.NoError(t, <-confirmed)
	got, err := io.ReadAll(io.LimitReader(theirs, n*39))
	require.NoError(t, err)
	for i := range n {
		assert.Equal(t, uint64(i), binary.BigEndian.Uint64(got[i*39+6:]), "whole and in order")
	}
}

func TestWakeEndsAWait(t *testing.T) {
	t.Parallel()
	conn, _ := session(t)
	result := make(chan error, 1)
	go func() {
		_, err := conn.Receive(soon())
		result <- err
	}()
	await.True(t, func() bool { // one that is about to wait may miss it
		conn.Wake()
		select {
		case err := <-result:
			return assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		default:
			return false
		}
	}, "the receiver wakes")
}

func TestCloseEndsAWait(t *testing.T) {
	t.Parallel()
	conn, _ := session(t)
	result := make(chan error, 1)
	go func() {
		_, err := conn.Receive(soon())
		result <- err
	}()
	conn.Close()
	err := <-result
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestFinishWaitsForTheServer(t *testing.T) {
	t.Parallel()
	conn, theirs := session(t)
	write(t, theirs, bytes.Join([][]byte{dataMessage("late"), message('c', nil), message('C', []byte("COPY 0\x00")), message('Z', []byte("I"))}, nil))
	require.NoError(t, conn.Finish(soon()))
	b := make([]byte, 10)
	n, err := theirs.Read(b)
	require.NoError(t, err)
	assert.Equal(t, message('c', nil), b[:n])

	conn, _ = session(t)
	require.ErrorIs(t, conn.Finish(time.Now().Add(10*time.Millisecond)), os.ErrDeadlineExceeded)
}

func TestConnectExplainsWithoutThePassword(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		greeting []byte
		want     string
		class    failure.Class
	}{
		"wrong password":   {serverErrorMessage("28P01", "password authentication failed"), "password authentication failed", failure.Fatal},
		"no such database": {serverErrorMessage("3D000", "does not exist"), "does not exist", failure.Fatal},
		"starting up":      {serverErrorMessage("57P03", "starting up"), "starting up", failure.Transient},
		"no slots left":    {serverErrorMessage("53300", "too many clients"), "too many clients", failure.Transient},
		"a web server":     {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "connect to PostgreSQL", failure.Transient},
		"corrupt":          {[]byte{'R', 0, 0, 0, 0}, "connect to PostgreSQL", failure.Transient},
		"nothing":          {[]byte{}, "connect to PostgreSQL", failure.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.greeting = c.greeting
			_, err := Connect(t.Context(), s.url(), "tester", time.Second, nil)
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, c.class, failure.Of(err), err)
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
	_, err := Connect(t.Context(), "postgres://user:hunter2@host:port/", "tester", time.Second, nil)
	require.ErrorContains(t, err, "DATABASE_URL")
	assert.Equal(t, failure.Fatal, failure.Of(err))
	assert.NotContains(t, err.Error(), "hunter2")
}

func TestStartIsRefusedByClass(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answer = append(serverErrorMessage("55006", "slot is active for PID 1"), message('Z', []byte("I"))...)
	c, err := Connect(t.Context(), s.url(), "tester", time.Second, nil)
	require.NoError(t, err)
	defer c.Close()
	require.ErrorIs(t, c.Start(t.Context(), "slot", "publication", Wanted{}, 0), ErrSlotActive)
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.answer = nil // the server waits for a slot
	c, err := Connect(t.Context(), s.url(), "tester", time.Second, nil)
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Start(ctx, "slot", "publication", Wanted{}, 0), context.DeadlineExceeded)
}

func FuzzCopyData(f *testing.F) {
	f.Add(dataMessage("payload")[frameHeader:])
	f.Add(keepaliveMessage(42, 1)[frameHeader:])
	f.Add([]byte("w"))
	f.Add([]byte("k"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseCopyData(b, len(b))
		if err != nil {
			require.Zero(t, m)
			return
		}
		switch m.Kind {
		case Data:
			require.Equal(t, byte('w'), b[0])
			require.Equal(t, b[25:], m.Data)
			require.Equal(t, len(m.Data), m.Size)
		case Keepalive:
			require.Equal(t, byte('k'), b[0])
			require.Equal(t, binary.BigEndian.Uint64(b[1:]), uint64(m.WALEnd))
			require.Equal(t, b[17] != 0, m.ReplyRequested)
		}
	})
}
