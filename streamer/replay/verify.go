package replay

import (
	"context"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Kind of a Difference.
type Kind string

const (
	// Missing is in PostgreSQL and neither in event_log nor in the dead-letter table.
	Missing Kind = "missing"
	// Extra is in event_log and was never committed, or is in event_log once too often.
	Extra Kind = "extra"
	// Different is at both ends, with other content.
	Different Kind = "different"
)

// Difference is a row that is not the same at both ends.
type Difference struct {
	Kind Kind
	ID   uuid.UUID
	decode.Position
	What string // the columns that differ; empty if the whole row does
}

// Verdict is what a verification found, in rows. Nothing is wrong when Missing,
// Extra and Different are 0.
type Verdict struct {
	From, To                  pglogrepl.LSN // of a Range
	Read                      int64         // in PostgreSQL
	Equal                     int64
	DeadLetters               int64 // are dead letters that wait for `deadletter retry`, or were dropped
	Missing, Extra, Different int64
	First                     []Difference // the first of them, up to a limit
	// Messages means that the streamer reads messages, too, of which the outbox knows
	// nothing: extra events look the same, and were not looked for.
	Messages bool
}

// Wrong reports whether something differs.
func (v Verdict) Wrong() bool { return v.Missing+v.Extra+v.Different > 0 }

// verifier counts into a verdict.
type verifier struct {
	log     eventLog
	source  sink.Source
	others  sources // of rows that are there under another position
	limit   int
	verdict *Verdict
	subset  decode.Rows
	reused  map[uuid.UUID]bool // ids of several rows of the outbox
}

func (s *session) verifier(limit int, v *Verdict) *verifier {
	log := s.eventLog(sink.New(s.ClickHouse, s.Tables, s.source, nil), s.Tables)
	return &verifier{log: log, source: s.source, others: s.otherSources(), limit: limit, verdict: v}
}

func (v *verifier) note(d Difference) {
	switch d.Kind {
	case Missing:
		v.verdict.Missing++
	case Extra:
		v.verdict.Extra++
	case Different:
		v.verdict.Different++
	}
	if len(v.verdict.First) < v.limit {
		v.verdict.First = append(v.verdict.First, d)
	}
}

// VerifyWAL compares every row committed in r with event_log, by its position.
// limit is how many differences are kept.
func VerifyWAL(ctx context.Context, c Config, r Range, limit int) (Verdict, error) {
	var verdict Verdict
	s, err := c.open(ctx)
	if err != nil {
		return verdict, err
	}
	defer s.guard.Close()
	w, err := s.wal(ctx, r)
	if err != nil {
		return verdict, err
	}
	verdict.From, verdict.To = w.from, w.to
	if w.from == w.to {
		return verdict, nil
	}
	v := s.verifier(limit, &verdict)
	return verdict, w.each(ctx, v.compare)
}

// compare walks through both ends side by side.
func (v *verifier) compare(ctx context.Context, p chunk) error {
	deadLetters := make(map[decode.Position]bool)
	if err := v.log.deadLetters(ctx, v.source.String(), p, func(at decode.Position) { deadLetters[at] = true }); err != nil {
		return err
	}
	retried := make(map[decode.Position]bool) // rows that this program cannot decode, which are there all the same
	for _, r := range p.rows.Rejects {
		retried[r.Position] = false
	}
	i, n := 0, p.rows.Len()
	var absent []int
	err := v.log.contents(ctx, v.source.String(), p, func(r logRow) {
		for ; i < n && r.After(p.rows.Position(i)); i++ {
			absent = append(absent, i)
		}
		_, bad := retried[r.Position]
		switch {
		case i < n && p.rows.Position(i) == r.Position:
			v.same(p.rows, i, r)
			i++
		case bad && !retried[r.Position]:
			retried[r.Position] = true
		default:
			v.note(Difference{Kind: Extra, ID: r.ID, Position: r.Position})
		}
	})
	if err != nil {
		return err
	}
	for ; i < n; i++ {
		absent = append(absent, i)
	}
	v.verdict.Read += int64(n + len(p.rows.Rejects))
	v.gather(p.rows, absent, deadLetters)
	others, err := v.otherDeadLetters(ctx, p.rows)
	if err != nil {
		return err
	}
	v.rejects(p, deadLetters, retried, others)
	return v.absent(ctx, others)
}

// gather copies absent rows that are not in the dead-letter table into the subset.
func (v *verifier) gather(rows *decode.Rows, absent []int, deadLetters map[decode.Position]bool) {
	v.subset.Reset()
	for _, i := range absent {
		if deadLetters[rows.Position(i)] {
			v.verdict.DeadLetters++
			continue
		}
		e := eventAt(rows, i)
		v.subset.Append(rows.Position(i), 0, &e)
	}
}

// otherDeadLetters are those events of the subset and of the rejects that are dead letters of others.
func (v *verifier) otherDeadLetters(ctx context.Context, rows *decode.Rows) (map[uuid.UUID]bool, error) {
	ids := idsOf(&v.subset, 0, v.subset.Len())
	for _, r := range rows.Rejects {
		ids = append(ids, r.ID)
	}
	deadLetters := make(map[uuid.UUID]bool)
	if len(ids) == 0 {
		return deadLetters, nil
	}
	return deadLetters, v.log.deadLettersByID(ctx, v.others, ids, func(id uuid.UUID) { deadLetters[id] = id != uuid.Nil })
}

func (v *verifier) rejects(p chunk, deadLetters, retried map[decode.Position]bool, others map[uuid.UUID]bool) {
	for _, r := range p.rows.Rejects {
		switch {
		case retried[r.Position]:
			v.verdict.Equal++
		case deadLetters[r.Position] || others[r.ID]:
			v.verdict.DeadLetters++
		default:
			v.note(Difference{Kind: Missing, ID: r.ID, Position: r.Position})
		}
	}
}

// absent looks for the rows of the subset where they are under another position.
func (v *verifier) absent(ctx context.Context, others map[uuid.UUID]bool) error {
	if v.subset.Len() == 0 {
		return nil
	}
	filled := make(map[uuid.UUID][]logRow)
	err := v.log.byID(ctx, v.others, &v.subset, func(r logRow) { filled[r.ID] = append(filled[r.ID], r) })
	if err != nil {
		return err
	}
	for i := range v.subset.Len() {
		id := v.subset.IDAt(i)
		r, rest, ok := take(filled[id], contentAt(&v.subset, i), true)
		filled[id] = rest
		switch {
		case ok:
			v.same(&v.subset, i, r)
		case others[id]:
			v.verdict.DeadLetters++
		default:
			v.note(Difference{Kind: Missing, ID: id, Position: v.subset.Position(i)})
		}
	}
	return nil
}

// same compares row i with its counterpart.
func (v *verifier) same(rows *decode.Rows, i int, r logRow) {
	what := contentAt(rows, i).differences(r.content)
	if rows.IDAt(i) != r.ID {
		what = strings.TrimSuffix("event_id, "+what, ", ")
	}
	v.count(rows.IDAt(i), r, what)
}

// count notes a row that is equal, or differs in what.
func (v *verifier) count(id uuid.UUID, r logRow, what string) {
	if what == "" {
		v.verdict.Equal++
		return
	}
	v.note(Difference{Kind: Different, ID: id, Position: r.Position, What: what})
}
