package sim_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
	"diehard/streamer/sim/simnet"
	"diehard/streamer/sim/simpg"
)

// The model of PostgreSQL is asked what PostgreSQL is asked, and must answer alike:
// only then does a simulation on it mean something.

// postgres is either of the two.
type postgres struct {
	url, slot string
	dial      pgconn.DialFunc
	publish   func(n int) // in one transaction
	other     func()      // WAL without events
	create    func(slot string)
	kill      func(slot string)
	confirmed func(slot string) pglogrepl.LSN
}

func realPostgres(t *testing.T) postgres {
	t.Helper()
	env := testenv.New(t)
	exec := func(sql string, args ...any) {
		_, err := env.Pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	return postgres{
		url: env.PostgresURL, slot: env.Slot,
		publish: func(n int) {
			require.NoError(t, pgx.BeginFunc(t.Context(), env.Pool, func(tx pgx.Tx) error {
				events := make([]event.Event, n)
				for i := range events {
					events[i] = event.Event{Type: "t", Context: []byte(`{"a":1}`)}
				}
				return event.Publish(t.Context(), tx, events...)
			}))
		},
		other:  func() { exec("SELECT pg_logical_emit_message(true, 'other', repeat('x', 300))") },
		create: func(slot string) { exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot) },
		kill: func(slot string) {
			exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", slot)
		},
		confirmed: func(slot string) pglogrepl.LSN {
			var text string
			require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&text))
			lsn, err := pglogrepl.ParseLSN(text)
			require.NoError(t, err)
			return lsn
		},
	}
}

func modelPostgres(t *testing.T) postgres {
	t.Helper()
	n, s := simnet.New(1, shortDelays), simpg.New(systemID)
	client, server := n.Host("client"), n.Host("server")
	n.Listen(pgAddress, server, s.Accept)
	dial := func(ctx context.Context, _, address string) (net.Conn, error) { return client.Dial(ctx, address) }
	url := "postgres://sim@" + pgAddress + "/sim?sslmode=disable"
	t.Cleanup(func() {
		n.Close()
		s.Wait()
	})
	return postgres{
		url: url, slot: "s", dial: dial,
		publish: func(n int) {
			events := make([]simpg.Event, n)
			for i := range events {
				events[i] = simpg.Event{ID: uuid.New(), Type: "t", Context: `{"a":1}`, WAL: 120}
			}
			s.Publish(events, false)
		},
		other:     func() { s.Other(300) },
		create:    s.CreateSlot,
		kill:      func(slot string) { s.Terminate(slot) },
		confirmed: s.Slot,
	}
}

// begin starts a session on a slot that another one is about to leave.
func (p postgres) begin(t *testing.T, at pglogrepl.LSN) *stream {
	t.Helper()
	for {
		s := p.start(t, p.slot, at, time.Minute)
		if code(s.err) == "55006" && t.Context().Err() == nil {
			s.close()
			continue
		}
		require.NoError(t, s.err)
		return s
	}
}

// stream is a replication session.
type stream struct {
	t    *testing.T
	conn *pgconn.PgConn
	err  error
}

func (p postgres) start(t *testing.T, slot string, at pglogrepl.LSN, timeout time.Duration) *stream {
	t.Helper()
	cfg, err := pgconn.ParseConfig(p.url)
	require.NoError(t, err)
	if p.dial != nil {
		cfg.DialFunc = p.dial
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["options"] = fmt.Sprintf("-c wal_sender_timeout=%dms", timeout.Milliseconds())
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	err = pglogrepl.StartReplication(t.Context(), conn, slot, at, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'outbox_pub'", "binary 'true'"},
	})
	return &stream{t: t, conn: conn, err: err}
}

func (s *stream) close() { _ = s.conn.Close(context.Background()) }

// confirm sends a standby status update.
func (s *stream) confirm(lsn pglogrepl.LSN, ask bool) {
	s.t.Helper()
	require.NoError(s.t, pglogrepl.SendStandbyStatusUpdate(s.t.Context(), s.conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: lsn, WALFlushPosition: lsn, WALApplyPosition: lsn, ReplyRequested: ask,
	}))
}

// committed is a transaction as it was received.
type committed struct {
	begin, end pglogrepl.LSN
	rows       int
	rowLSNs    []pglogrepl.LSN
}

// next reads until a transaction or a keepalive is complete; the keepalive's position is returned with no transaction.
func (s *stream) next(wait time.Duration) (tx *committed, walEnd pglogrepl.LSN, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), wait)
	defer cancel()
	for {
		msg, err := s.conn.ReceiveMessage(ctx)
		if err != nil {
			return nil, 0, err
		}
		data, ok := msg.(*pgproto3.CopyData)
		if !ok {
			if e, isError := msg.(*pgproto3.ErrorResponse); isError {
				return nil, 0, pgconn.ErrorResponseToPgError(e)
			}
			return nil, 0, fmt.Errorf("%T", msg)
		}
		if data.Data[0] == 'k' {
			if tx == nil {
				return nil, pglogrepl.LSN(binary.BigEndian.Uint64(data.Data[1:])), nil
			}
			continue
		}
		body := data.Data[25:]
		switch body[0] {
		case 'B':
			tx = &committed{begin: pglogrepl.LSN(binary.BigEndian.Uint64(body[1:]))}
		case 'I':
			tx.rows++
			tx.rowLSNs = append(tx.rowLSNs, pglogrepl.LSN(binary.BigEndian.Uint64(data.Data[1:])))
		case 'C':
			assert.Equal(s.t, tx.begin, pglogrepl.LSN(binary.BigEndian.Uint64(body[2:])), "Begin and Commit name the same position")
			tx.end = pglogrepl.LSN(binary.BigEndian.Uint64(body[10:]))
			return tx, 0, nil
		}
	}
}

// transactions reads so many, past keepalives.
func (s *stream) transactions(n int) (list []committed) {
	s.t.Helper()
	for len(list) < n {
		tx, _, err := s.next(20 * time.Second)
		require.NoError(s.t, err)
		if tx != nil {
			list = append(list, *tx)
		}
	}
	return list
}

func code(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return fmt.Sprint(err)
}

// rowsOf says how large each transaction was: the tests publish them with different sizes.
func rowsOf(list []committed) string {
	var b strings.Builder
	for _, tx := range list {
		fmt.Fprint(&b, tx.rows, " ")
	}
	return b.String()
}

// onBoth runs the same calls on PostgreSQL and on its model.
func onBoth(t *testing.T, calls func(t *testing.T, p postgres) []string) {
	t.Helper()
	t.Parallel()
	var answers [2][]string
	for i, name := range []string{"PostgreSQL", "model"} {
		t.Run(name, func(t *testing.T) {
			p := modelPostgres
			if i == 0 {
				p = realPostgres
			}
			answers[i] = calls(t, p(t))
		})
	}
	assert.Equal(t, answers[0], answers[1])
	assert.NotEmpty(t, answers[0])
}

func TestModelBeginsAStreamWherePostgresDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, p postgres) (say []string) {
		t.Helper()
		p.create(p.slot)
		for n := range 4 {
			p.publish(n + 1)
		}
		first := p.start(t, p.slot, 0, time.Minute)
		require.NoError(t, first.err)
		all := first.transactions(4)
		say = append(say, "from the beginning: "+rowsOf(all))
		for i, tx := range all {
			assert.Less(t, tx.begin, tx.end)
			assert.LessOrEqual(t, tx.rowLSNs[0], tx.begin)
			if i > 0 {
				assert.GreaterOrEqual(t, tx.begin, all[i-1].end)
			}
		}
		first.close()
		from := func(what string, at pglogrepl.LSN, n int) {
			s := p.begin(t, at)
			say = append(say, what+": "+rowsOf(s.transactions(n)))
			s.close()
		}
		from("at a row of the third", all[2].rowLSNs[0], 2)
		from("at the commit of the third", all[2].begin, 2)
		from("behind the commit of the third", all[2].begin+1, 1)
		from("at the end of the third", all[2].end, 1)
		from("at 0 again", 0, 4)
		return say
	})
}

func TestModelConfirmsWhatPostgresConfirms(t *testing.T) {
	onBoth(t, func(t *testing.T, p postgres) (say []string) {
		t.Helper()
		p.create(p.slot)
		for n := range 4 {
			p.publish(n + 1)
		}
		confirm := func(what string, at func([]committed) pglogrepl.LSN, n, behind int) {
			s := p.begin(t, 0)
			list := s.transactions(n)
			lsn := at(list)
			before := p.confirmed(p.slot)
			s.confirm(lsn, false)
			if lsn > before {
				await.True(t, func() bool { return p.confirmed(p.slot) == lsn }, "the slot confirms")
			} else {
				s.confirm(lsn, true) // its answer comes behind the first one's effect
				for {
					if tx, walEnd, err := s.next(20 * time.Second); err != nil || tx == nil && walEnd > 0 {
						break
					}
				}
			}
			say = append(say, fmt.Sprintf("%s: moved %v", what, p.confirmed(p.slot) > before))
			s.close()
			again := p.begin(t, 0)
			say = append(say, "then "+rowsOf(again.transactions(behind)))
			again.close()
		}
		confirm("a row of the second", func(l []committed) pglogrepl.LSN { return l[1].rowLSNs[1] }, 4, 3)
		confirm("the commit of the second", func(l []committed) pglogrepl.LSN { return l[0].begin }, 3, 3)
		confirm("the end of the second", func(l []committed) pglogrepl.LSN { return l[0].end }, 3, 2)
		confirm("a position before that", func([]committed) pglogrepl.LSN { return p.confirmed(p.slot) - 8 }, 2, 2)
		// Nothing checks a position: what lies beyond the WAL is lost.
		confirm("far beyond", func(l []committed) pglogrepl.LSN { return l[1].end + 150 }, 2, 0)
		p.publish(1)
		p.publish(5)
		beyond := p.confirmed(p.slot)
		next := p.begin(t, 0).transactions(1)[0]
		// The first of the two is lost, unless other databases of the server have written as much WAL.
		say = append(say, fmt.Sprintf("what follows lies beyond: %v", next.begin >= beyond))
		return say
	})
}

func TestModelGivesASlotToOneAsPostgresDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, p postgres) (say []string) {
		t.Helper()
		missing := p.start(t, "not_there", 0, time.Minute)
		say = append(say, "missing: "+code(missing.err))
		p.create(p.slot)
		p.publish(2)
		holder := p.start(t, p.slot, 0, time.Minute)
		require.NoError(t, holder.err)
		holder.transactions(1)
		second := p.start(t, p.slot, 0, time.Minute)
		say = append(say, "held: "+code(second.err))
		second.close()
		p.kill(p.slot)
		for {
			if _, _, err := holder.next(20 * time.Second); err != nil {
				say = append(say, "ended: "+code(err))
				break
			}
		}
		third := p.begin(t, 0)
		say = append(say, "again: "+rowsOf(third.transactions(1)))
		return say
	})
}

func TestModelKeepsASessionAliveAsPostgresDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, p postgres) (say []string) {
		t.Helper()
		p.create(p.slot)
		p.publish(2)
		s := p.start(t, p.slot, 0, 2*time.Second)
		require.NoError(t, s.err)
		tx := s.transactions(1)[0]
		keepalive := func(what string, least pglogrepl.LSN) {
			for {
				got, walEnd, err := s.next(20 * time.Second)
				require.NoError(t, err, what)
				if got == nil && walEnd >= least {
					say = append(say, what+": a keepalive")
					return
				}
			}
		}
		s.confirm(0, true)
		keepalive("asked for", tx.end)
		s.confirm(tx.end, false)
		p.other()
		keepalive("other WAL", tx.end+300)
		keepalive("in silence", tx.end) // half of the time limit
		for {
			if _, _, err := s.next(20 * time.Second); err != nil {
				_, isSQL := errors.AsType[*pgconn.PgError](err)
				say = append(say, fmt.Sprintf("dropped after silence, with words %v", isSQL))
				return say
			}
		}
	})
}
