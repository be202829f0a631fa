package replay

import (
	"context"
	"crypto/sha256"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Kind of a Difference.
type Kind string

const (
	// Missing is in PostgreSQL and neither in event_log nor set aside.
	Missing Kind = "missing"
	// Extra is in event_log and was never committed, or is there once too often.
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
	SetAside                  int64 // are dead letters that wait for `deadletter retry`, or were dropped
	Missing, Extra, Different int64
	First                     []Difference // the first of them, up to a limit
	// Messages tells that the streamer reads messages, too, of which the outbox knows
	// nothing: extra events could not be told from them, and were not looked for.
	Messages bool
}

// Wrong tells that something differs.
func (v Verdict) Wrong() bool { return v.Missing+v.Extra+v.Different > 0 }

// verifier counts into a verdict.
type verifier struct {
	log     eventLog
	source  sink.Source
	others  sources // of rows that are there without their place
	limit   int
	verdict *Verdict
	subset  decode.Rows
}

func (s *session) verifier(limit int, v *Verdict) *verifier {
	log := eventLog{conn: s.ClickHouse, name: quote(s.Tables.EventLog), deadLetter: quote(s.Tables.DeadLetter)}
	return &verifier{log: log, source: s.source, others: s.elsewhere(), limit: limit, verdict: v}
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

// VerifyWAL compares every row committed in r with event_log, by its place.
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
	return verdict, w.each(ctx, v.piece)
}

// piece walks through both ends side by side.
func (v *verifier) piece(ctx context.Context, p piece) error {
	aside := make(map[decode.Position]bool)
	if err := v.log.setAside(ctx, v.source.String(), p, func(at decode.Position) { aside[at] = true }); err != nil {
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
	v.gather(p.rows, absent, aside)
	letters, err := v.letters(ctx, p.rows)
	if err != nil {
		return err
	}
	v.rejects(p, aside, retried, letters)
	return v.absent(ctx, letters)
}

// gather copies absent rows that are not set aside into the subset.
func (v *verifier) gather(rows *decode.Rows, absent []int, aside map[decode.Position]bool) {
	v.subset.Reset()
	for _, i := range absent {
		if aside[rows.Position(i)] {
			v.verdict.SetAside++
			continue
		}
		e := eventAt(rows, i)
		v.subset.Append(rows.Position(i), 0, &e)
	}
}

// letters are those events of the subset and of the rejects that are dead letters of others.
func (v *verifier) letters(ctx context.Context, rows *decode.Rows) (map[uuid.UUID]bool, error) {
	ids := idsOf(&v.subset, 0, v.subset.Len())
	for _, r := range rows.Rejects {
		ids = append(ids, r.ID)
	}
	aside := make(map[uuid.UUID]bool)
	if len(ids) == 0 {
		return aside, nil
	}
	return aside, v.log.lettersByID(ctx, v.others, ids, func(id uuid.UUID) { aside[id] = id != uuid.Nil })
}

func (v *verifier) rejects(p piece, aside, retried map[decode.Position]bool, letters map[uuid.UUID]bool) {
	for _, r := range p.rows.Rejects {
		switch {
		case retried[r.Position]:
			v.verdict.Equal++
		case aside[r.Position] || letters[r.ID]:
			v.verdict.SetAside++
		default:
			v.note(Difference{Kind: Missing, ID: r.ID, Position: r.Position})
		}
	}
}

// absent looks for the rows of the subset where they are without their place.
func (v *verifier) absent(ctx context.Context, letters map[uuid.UUID]bool) error {
	if v.subset.Len() == 0 {
		return nil
	}
	filled := make(map[uuid.UUID]logRow)
	err := v.log.byID(ctx, v.others, &v.subset, func(r logRow) { filled[r.ID] = r })
	if err != nil {
		return err
	}
	for i := range v.subset.Len() {
		id := v.subset.IDAt(i)
		switch r, ok := filled[id]; {
		case ok:
			v.same(&v.subset, i, r)
		case letters[id]:
			v.verdict.SetAside++
		default:
			v.note(Difference{Kind: Missing, ID: id, Position: v.subset.Position(i)})
		}
	}
	return nil
}

// same compares row i with its counterpart.
func (v *verifier) same(rows *decode.Rows, i int, r logRow) {
	var what []string
	differ := func(column string, different bool) {
		if different {
			what = append(what, column)
		}
	}
	differ("event_id", rows.IDAt(i) != r.ID)
	differ("event_type", rows.Type.Values[rows.Type.Keys[i]] != r.Type)
	differ("event_date_time", rows.DateTime[i] != r.DateTime)
	differ("environment", rows.Environment.Values[rows.Environment.Keys[i]] != r.Environment)
	differ("event_context", sha256.Sum256(rows.ContextAt(i)) != r.Digest)
	differ("metadata_version", rows.MetadataVersion[i] != r.Version)
	if what == nil {
		v.verdict.Equal++
		return
	}
	v.note(Difference{Kind: Different, ID: rows.IDAt(i), Position: r.Position, What: strings.Join(what, ", ")})
}
