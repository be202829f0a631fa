package sim_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/sim/simch"
	"diehard/streamer/sim/simnet"
	"diehard/streamer/sink"
)

// realOrModel is ClickHouse or its model, with a window of three tokens.
type realOrModel struct {
	conn       clickhouse.Conn
	rows       func(table string) int
	remove     func() // deletes all rows
	constraint func(on bool)
	view       func() // makes a view that copies rows
	breakView  func(on bool)
}

const viewTable = "copy"

func realClickHouse(t *testing.T) realOrModel {
	t.Helper()
	env := testenv.New(t)
	exec := func(sql string) { require.NoError(t, env.ClickHouse.Exec(t.Context(), sql), sql) }
	exec("ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 3")
	constraint := func(table string) func(bool) {
		return func(on bool) {
			if on {
				exec("ALTER TABLE " + table + " ADD CONSTRAINT c CHECK position(event_context, 'poison') = 0")
				return
			}
			exec("ALTER TABLE " + table + " DROP CONSTRAINT c")
		}
	}
	return realOrModel{
		conn: env.ClickHouse,
		rows: func(table string) int {
			var n uint64
			require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n))
			return int(n)
		},
		remove:     func() { exec("ALTER TABLE event_log DELETE WHERE true SETTINGS mutations_sync = 1") },
		constraint: constraint(eventLog),
		view: func() {
			exec("CREATE TABLE " + viewTable + " (event_id UUID, event_context String, ingested_at DateTime64(3, 'UTC')) ENGINE = MergeTree ORDER BY event_id " +
				"SETTINGS non_replicated_deduplication_window = 3")
			exec("CREATE MATERIALIZED VIEW v TO " + viewTable + " AS SELECT event_id, event_context, ingested_at FROM event_log")
		},
		breakView: constraint(viewTable),
	}
}

func modelClickHouse(t *testing.T) realOrModel {
	t.Helper()
	var fate simch.Fate
	c := simch.New(simch.Options{
		Kind: simch.Plain, Nodes: 1, Window: 3, Schema: schema(t),
		Fate: func() simch.Fate { return fate }, Lag: func(int) time.Duration { return 0 },
	})
	n := simnet.New(1, shortDelays)
	client, server := n.Host("client"), n.Host("ch")
	n.Listen("ch", server, c.Node(0).Accept)
	conn, err := clickhouse.OpenOptions(&ch.Options{
		Protocol: ch.Native, Addr: []string{"ch"}, Compression: &ch.Compression{Method: ch.CompressionNone},
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) { return client.Dial(ctx, "ch") },
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = conn.Close()
		n.Close()
		c.Wait()
		require.NoError(t, c.Err())
	})
	return realOrModel{
		conn: conn,
		rows: func(table string) int {
			if table == viewTable {
				return len(c.View(eventLog))
			}
			return len(c.Rows(table))
		},
		remove:     func() { c.Delete(eventLog, func(*simch.Row) bool { return true }) },
		constraint: func(on bool) { c.SetConstraint(eventLog, on) },
		view:       func() { c.AddView(eventLog) },
		breakView: func(on bool) {
			if fate = (simch.Fate{}); on {
				fate.ViewError = 469
			}
		},
	}
}

// blocks inserts blocks as the streamer does.
type blocks struct {
	t    *testing.T
	sink *sink.Sink
	lsn  pglogrepl.LSN
	n    int
}

func (b *blocks) insert(token string, month time.Month, contexts ...string) error {
	b.t.Helper()
	return b.try(token, month, func(context.Context) error { return nil }, contexts...)
}

func (b *blocks) try(token string, month time.Month, verify func(context.Context) error, contexts ...string) error {
	b.t.Helper()
	rows := &decode.Rows{}
	b.lsn += 100
	for i, c := range contexts {
		e := decode.Event{ID: uuid.New(), Type: []byte("t"), Context: []byte(c)}
		rows.Append(decode.Position{LSN: b.lsn, Seq: uint32(i) + 1}, 0, &e)
	}
	b.n++
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	return b.sink.Insert(ctx, rows, 0, len(contexts), sink.InsertRequest{
		QueryID: fmt.Sprintf("diehard-%p-%d", b, b.n), Token: token,
		IngestedAt: time.Date(2026, month, 15, 0, 0, 0, 0, time.UTC), Verify: verify,
	})
}

func onBothClickHouses(t *testing.T, calls func(t *testing.T, c realOrModel, b *blocks) []string) {
	t.Helper()
	t.Parallel()
	var answers [2][]string
	for i, name := range []string{"ClickHouse", "model"} {
		t.Run(name, func(t *testing.T) {
			open := modelClickHouse
			if i == 0 {
				open = realClickHouse
			}
			c := open(t)
			s := sink.New(c.conn, sink.Tables{EventLog: eventLog, DeadLetter: deadLetter}, sink.Source{SystemID: "1", Slot: "s"}, sink.OnTimeline(1))
			require.NoError(t, s.CheckTables(t.Context()))
			answers[i] = calls(t, c, &blocks{t: t, sink: s})
		})
	}
	assert.Equal(t, answers[0], answers[1])
	assert.NotEmpty(t, answers[0])
}

func say(what string, err error, rows int) string {
	if err != nil {
		return fmt.Sprintf("%s: %s, code %d, %d rows", what, failure.Of(err), sink.Code(err), rows)
	}
	return fmt.Sprintf("%s: %d rows", what, rows)
}

func TestModelRemembersTokensAsClickHouseDoes(t *testing.T) {
	onBothClickHouses(t, func(_ *testing.T, c realOrModel, b *blocks) (lines []string) {
		do := func(what, token string, month time.Month, contexts ...string) {
			err := b.insert(token, month, contexts...)
			lines = append(lines, say(what, err, c.rows(eventLog)))
		}
		do("a block", "a", 1, "1", "2", "3")
		do("the same token, a different block", "a", 1, "4", "5", "6", "7")
		do("another token, the first block's bytes", "b", 1, "1", "2", "3")
		do("the same token in another month", "a", 2, "1", "2", "3")
		do("a third token", "c", 1, "x")
		do("the first one again, still remembered", "a", 1, "1")
		do("a fourth", "d", 1, "x")
		do("the first one again, forgotten", "a", 1, "1")
		do("in the other month it is not", "a", 2, "1")
		c.remove()
		lines = append(lines, say("all rows deleted", nil, c.rows(eventLog)))
		do("its token is known", "a", 1, "1")
		return lines
	})
}

func TestModelRefusesWhatClickHouseRefuses(t *testing.T) {
	onBothClickHouses(t, func(_ *testing.T, c realOrModel, b *blocks) (lines []string) {
		c.constraint(true)
		err := b.insert("a", 1, "good", "poison", "good")
		lines = append(lines, say("poison in the middle", err, c.rows(eventLog)))
		err = b.insert("a", 1, "good", "good")
		lines = append(lines, say("the rest of it under the same token", err, c.rows(eventLog)))
		c.constraint(false)
		err = b.insert("a", 1, "good", "poison", "good")
		lines = append(lines, say("the whole under the same token, constraint gone", err, c.rows(eventLog)))
		err = b.try("b", 1, func(context.Context) error { return errors.New("not ours") }, "1", "2")
		lines = append(lines, fmt.Sprint("not proved: ", err, c.rows(eventLog)))
		var second error
		err = b.try("c", 1, func(context.Context) error {
			b.n-- // the id of the query that is waiting
			second = b.insert("d", 1, "1")
			return nil
		}, "1", "2")
		return append(lines, say("the id of a running query", second, 0), say("which goes on", err, c.rows(eventLog)))
	})
}

func TestModelPushesToViewsAsClickHouseDoes(t *testing.T) {
	onBothClickHouses(t, func(_ *testing.T, c realOrModel, b *blocks) (lines []string) {
		c.view()
		do := func(what, token string, contexts ...string) {
			err := b.insert(token, 1, contexts...)
			lines = append(lines, say(what, err, c.rows(eventLog))+fmt.Sprintf(", %d in the view", c.rows(viewTable)))
		}
		do("a block", "a", "1", "2")
		c.breakView(true)
		do("the view fails", "b", "poison", "2", "3")
		do("and again", "b", "poison", "2", "3")
		c.breakView(false)
		do("the view is fixed", "b", "poison", "2", "3")
		do("once more", "b", "poison", "2", "3")
		do("the first again", "a", "1", "2")
		return lines
	})
}
