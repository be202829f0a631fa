package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/failpoint"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// blockWriter writes the rows of a batch as sink.Write asks for it: as one block under the
// intent of its part, or as halves under intents of their own.
type blockWriter struct {
	w    *writer
	part *part
}

// writeRows writes the rows of p that are not refused.
func (w *writer) writeRows(ctx context.Context, p *part) error {
	return w.s.sink.Write(ctx, sink.Block{Rows: &p.b.Rows, Range: p.rangeOf()}, &blockWriter{w, p})
}

// Insert implements sink.Writer.
func (i *blockWriter) Insert(ctx context.Context, b sink.Block) error {
	if b.Range != i.part.rangeOf() {
		if err := i.beginHalf(ctx, b); err != nil {
			return err
		}
	}
	from, to := b.Bounds()
	err := i.w.insertRows(ctx, i.part, from, to, b.Refusal)
	if failure.Of(err) == failure.Poison {
		i.w.unknownCode = sink.Unknown(err) != 0
	}
	return err
}

// beginHalf goes on with a half of the part under an intent of its own.
func (i *blockWriter) beginHalf(ctx context.Context, b sink.Block) error {
	intent, err := i.w.newIntent(ctx, b.After, b.Through)
	if err != nil {
		return err
	}
	intent.IngestedAt = i.part.intent.IngestedAt
	half := &part{b: i.part.b, intent: intent}
	i.w.nameRefused(half)
	i.part = half
	return nil
}

// Refuse implements sink.Writer. The intent names the rows before their dead letters are sent.
func (i *blockWriter) Refuse(ctx context.Context, b sink.Block, refused []decode.Reject) error {
	failpoint.Hit("refused")
	if b.Len() == 1 && i.w.unknownCode {
		i.w.unknownRejects++
	}
	i.w.refused = slices.SortedFunc(slices.Values(append(i.w.refused, refused...)), byPosition)
	i.w.nameRefused(i.part)
	return i.w.writeRejects(ctx, i.part, i.part.refusedToken(), refused)
}

// Halve implements sink.Writer: the halves have other tokens.
func (i *blockWriter) Halve(ctx context.Context, b sink.Block, cause error) error {
	failpoint.Hit("bisecting")
	switch {
	case errors.Is(cause, sink.ErrTooMuch):
		i.w.tooMuch = true
		i.w.s.log.Warn("a batch exceeds a limit of ClickHouse: writing smaller ones", "rows", b.Len(), "error", cause)
	case cause != nil:
		i.w.s.log.Warn("writing a refused batch in halves, until each row that is refused stands alone", "rows", b.Len(), "error", cause)
	}
	return i.w.untilAttemptsAreOver(ctx, i.part)
}

// Ask implements sink.Writer.
func (i *blockWriter) Ask(ctx context.Context, query func(context.Context) error) error {
	return i.w.s.untilAnswered(ctx, "which rows are refused", query)
}

func byPosition(a, b decode.Reject) int { return a.Compare(b.Position) }

// refusedToken is the token of the dead letters of the rows that p's intent names, behind that of
// the intent. It differs when more of them are named.
func (p *part) refusedToken() string {
	n := 0
	for _, r := range p.intent.Tables[0].Rejected {
		n += r.Len()
	}
	return fmt.Sprintf("refused%d", n)
}

// nameRefused names the rows of p's range that ClickHouse refused in its intent.
func (w *writer) nameRefused(p *part) {
	r := p.rangeOf()
	var rejected []replication.Rejected
	for _, x := range w.refused {
		if !x.After(r.After) || x.After(r.Through) {
			continue
		}
		at := slices.IndexFunc(rejected, func(y replication.Rejected) bool { return y.Code == x.Code })
		if at < 0 {
			at = len(rejected)
			rejected = append(rejected, replication.Rejected{Code: x.Code})
		}
		rejected[at].Add(replication.Position(x.Position))
	}
	p.intent.Tables = []replication.IntentTable{{Name: w.s.cfg.Tables.EventLog, Rejected: rejected}}
}

// refuseAgain takes the rows that the intent of a predecessor names out of p's batch. What the
// batch lacks is before the confirmed position, and so durable.
func (w *writer) refuseAgain(p *part) {
	for _, table := range p.intent.Tables {
		for _, list := range table.Rejected {
			reason := "refused by ClickHouse with " + sink.Name(list.Code) + "; the streamer that knew the reason ended before it wrote this"
			for named := range list.Positions() {
				at := decode.Position(named)
				if i := p.b.Index(at) - 1; i >= 0 && p.b.Position(i) == at {
					w.refused = append(w.refused, p.b.RejectAt(i, reason, list.Code))
				}
			}
		}
	}
	slices.SortFunc(w.refused, byPosition)
	p.b.Refuse(w.refused)
}
