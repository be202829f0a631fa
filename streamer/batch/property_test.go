package batch_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"diehard/streamer/batch"
	"diehard/streamer/decode"
)

// entry is a row or a reject, as it goes in and comes out.
type entry struct {
	at     decode.Position
	kind   string
	size   int
	reject bool
}

// stream is what a server sends: transactions in commit order and keepalives.
// Between begin and commit a keepalive carries at most the commit's position.
type stream struct {
	t     *rapid.T
	end   pglogrepl.LSN // of what was sent
	begin pglogrepl.LSN // of the transaction that is open, 0 if none is
	seq   uint32
}

// reader applies the rules of the pipeline's receiver and hands batches over,
// two of them in turn.
type reader struct {
	t       *rapid.T
	limits  batch.Limits
	batches [2]*batch.Batch
	handed  int // number of batches

	input, output []entry
	commits       []commit
	confirmed     pglogrepl.LSN
	marked        pglogrepl.LSN // highest position that something received would confirm
}

// commit is a transaction and how many rows there were up to its end.
type commit struct {
	lsn  pglogrepl.LSN
	rows int
}

func (r *reader) open() *batch.Batch { return r.batches[r.handed%2] }

func TestBatchesKeepTheirPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := batch.Limits{Rows: rapid.IntRange(1, 12).Draw(t, "rows"), Bytes: rapid.IntRange(1, 2000).Draw(t, "bytes")}
		r := &reader{t: t, limits: l, batches: [2]*batch.Batch{batch.New(l), batch.New(l)}}
		s := &stream{t: t, end: 1000}
		t.Repeat(map[string]func(*rapid.T){
			"begin":     func(*rapid.T) { s.beginTransaction(r) },
			"row":       func(*rapid.T) { s.row(r) },
			"rows":      func(*rapid.T) { s.row(r); s.row(r); s.row(r) },
			"commit":    func(*rapid.T) { s.commit(r) },
			"keepalive": func(*rapid.T) { s.keepalive(r) },
			"cut":       func(*rapid.T) { s.cut(r) },
			"due":       func(*rapid.T) { r.due() },
			"":          func(*rapid.T) { r.check() },
		})
		r.due()
		require.True(t, slices.Equal(r.input, r.output), "all batches together are the input")
		require.Equal(t, r.marked, r.confirmed, "what was received completely is confirmed at the end")
	})
}

func (s *stream) beginTransaction(r *reader) {
	if s.begin != 0 {
		s.t.Skip("a transaction is open")
	}
	s.begin = s.end + pglogrepl.LSN(rapid.IntRange(1, 50).Draw(s.t, "wal"))
	s.seq = 0
	r.commits = append(r.commits, commit{lsn: s.begin, rows: len(r.input)})
}

func (s *stream) row(r *reader) {
	if s.begin == 0 {
		s.t.Skip("no transaction is open")
	}
	s.seq++
	r.add(entry{
		at:     decode.Position{LSN: s.begin, Seq: s.seq},
		kind:   fmt.Sprint("type", rapid.IntRange(0, 3).Draw(s.t, "type")),
		size:   rapid.IntRange(0, 500).Draw(s.t, "size"),
		reject: rapid.IntRange(0, 9).Draw(s.t, "reject") == 0,
	})
	r.commits[len(r.commits)-1].rows = len(r.input)
}

func (s *stream) commit(r *reader) {
	if s.begin == 0 {
		s.t.Skip("no transaction is open")
	}
	s.end = s.begin + 48
	s.begin = 0
	r.open().Commit(s.end)
	r.marked = max(r.marked, s.end)
}

// cut ends the session in the middle of a transaction: what the open batch has of it goes.
func (s *stream) cut(r *reader) {
	if s.begin == 0 {
		s.t.Skip("no transaction is open")
	}
	r.open().Cut(s.begin)
	for n := len(r.input); n > len(r.output) && r.input[n-1].at.LSN == s.begin; n-- {
		r.input = r.input[:n-1]
	}
	r.commits = r.commits[:len(r.commits)-1]
	s.end, s.begin = s.begin, 0
}

func (s *stream) keepalive(r *reader) {
	if s.begin != 0 { // the receiver does not look at it
		return
	}
	var lsn pglogrepl.LSN
	if rapid.Bool().Draw(s.t, "late") { // the first of a session may lie anywhere behind
		lsn = pglogrepl.LSN(rapid.Uint64Range(0, uint64(s.end)).Draw(s.t, "walEnd"))
	} else {
		s.end += pglogrepl.LSN(rapid.IntRange(0, 1000).Draw(s.t, "other wal"))
		lsn = s.end
	}
	r.open().Keepalive(lsn)
	r.marked = max(r.marked, lsn)
}

func (r *reader) add(e entry) {
	b := r.open()
	require.False(r.t, b.Full(r.limits), "a full batch takes no row")
	if e.reject {
		b.Reject(decode.Reject{Position: e.at, Type: e.kind, Raw: string(make([]byte, e.size))})
	} else {
		add(b, e.at.LSN, e.at.Seq, event(e.kind, e.size))
	}
	r.input = append(r.input, e)
	if b.Full(r.limits) {
		r.handOver()
	}
}

// due hands over what is there, as the flush interval does.
func (r *reader) due() {
	if r.open().Pending() {
		r.handOver()
	}
}

// handOver is receiver and writer: the batch becomes durable and is confirmed.
func (r *reader) handOver() {
	b := r.open()
	require.LessOrEqual(r.t, b.Len()+len(b.Rejects), r.limits.Rows)
	entries := entriesOf(b)
	if n := len(entries); n > 0 {
		require.Equal(r.t, entries[0].at, b.First())
		require.Equal(r.t, entries[n-1].at, b.Last())
		last := entries[n-1].size + len(entries[n-1].kind) + len("Test") + 100 // with what a row takes besides
		require.Less(r.t, b.Bytes()-last, r.limits.Bytes, "the limit is exceeded by the last row only")
	}
	r.output = append(r.output, entries...)
	r.confirmed = max(r.confirmed, b.Confirm)
	b.Reset(r.limits)
	r.handed++
	fresh := batch.New(r.limits)
	require.Equal(r.t, fresh.Bytes(), b.Bytes())
	require.True(r.t, b.Empty() && !b.Pending() && !b.Full(r.limits))
	require.Equal(r.t, decode.Position{}, b.Last())
}

// check is the promise to PostgreSQL: what is confirmed is durable. A
// transaction is confirmed by any position behind its commit record's beginning.
func (r *reader) check() {
	for _, c := range r.commits {
		if r.confirmed > c.lsn {
			require.LessOrEqual(r.t, c.rows, len(r.output), "%s is confirmed, and rows of the transaction at %s are not durable", r.confirmed, c.lsn)
		}
	}
	require.LessOrEqual(r.t, r.confirmed, r.marked)
}

// entriesOf reads a batch in stream order.
func entriesOf(b *batch.Batch) []entry {
	var all []entry
	for i := range b.Len() {
		all = append(all, entry{at: b.Position(i), kind: b.Type.Values[b.Type.Keys[i]], size: len(b.ContextAt(i))})
	}
	for _, x := range b.Rejects {
		all = append(all, entry{at: x.Position, kind: x.Type, size: len(x.Raw), reject: true})
	}
	slices.SortFunc(all, func(a, b entry) int {
		if a.at.After(b.at) {
			return 1
		}
		return -1
	})
	return all
}
