package sink

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"

	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// Block is the rows of a Range, which are to be written as one block.
type Block struct {
	Rows *decode.Rows // in stream order
	Range
	// Refusal is why ClickHouse refused this block before, when nothing shows a row that is to blame. It
	// may have been a materialized view's error, for rows that are written and were deleted since: the
	// block is sent once more as it is, so that it is dropped then, and without the views.
	Refusal error
}

// Bounds returns the block's rows as indexes: from, and up to and without to.
func (b Block) Bounds() (from, to int) { return b.Rows.Index(b.After), b.Rows.Index(b.Through) }

// Len is the number of rows.
func (b Block) Len() int {
	from, to := b.Bounds()
	return to - from
}

// TokenOf names the rows of b by their positions: it is the same for the same rows, and for no others.
// The replay and the retry of dead letters have no intent to take a token from.
func TokenOf(b Block) string {
	h := sha256.New()
	var position [12]byte
	for from, to := b.Bounds(); from < to; from++ {
		p := b.Rows.Position(from)
		binary.BigEndian.PutUint64(position[:], uint64(p.LSN))
		binary.BigEndian.PutUint32(position[8:], p.Seq)
		h.Write(position[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Writer is how a caller of Write inserts, and what it does with rows that ClickHouse refuses.
type Writer interface {
	// Insert writes b as one block. It returns failure.Poison when ClickHouse refuses the rows
	// and none of them is written, ErrTooMuch when it is to be halved, and retries what it wants to retry.
	Insert(ctx context.Context, b Block) error
	// Refuse is called with rows of b that ClickHouse refuses, in stream order, before they are
	// taken out of b. It returns when they are durable as dead letters, or reported.
	Refuse(ctx context.Context, b Block, refused []decode.Reject) error
	// Halve is called before the halves of b are written as blocks of their own. cause is ErrTooMuch, or
	// why refused rows could not be found without writing; nil when none was found.
	Halve(ctx context.Context, b Block, cause error) error
	// Ask runs a query that writes nothing. It bounds its time, and may repeat it after an error.
	Ask(ctx context.Context, query func(context.Context) error) error
}

// Write writes b. When ClickHouse refuses it, the rows that are to blame are found without
// writing anything, see findRefused; all of them become dead letters at once, and the others
// are one block. What that does not show may be an error of a view, see Block. Or the table checks
// more than its columns and constraints: then it is found by writing halves of the block, until each
// row that is refused stands alone.
func (s *Sink) Write(ctx context.Context, b Block, w Writer) error {
	return s.write(ctx, b, w, s.findRefused)
}

type findFunc func(ctx context.Context, b Block, w Writer) ([]decode.Reject, error)

func findNone(context.Context, Block, Writer) ([]decode.Reject, error) { return nil, nil }

func (s *Sink) write(ctx context.Context, b Block, w Writer, find findFunc) error {
	for b.Len() > 0 {
		refusal := w.Insert(ctx, b)
		switch {
		case errors.Is(refusal, ErrTooMuch) && b.Len() > 1:
			return s.writeHalves(ctx, b, w, find, refusal)
		case failure.Of(refusal) != failure.Poison:
			return refusal
		}
		refused, err := find(ctx, b, w)
		switch from, to := b.Bounds(); {
		case err != nil && !errors.Is(err, errCannotFind):
			return err
		case len(refused) > 0:
		case b.Refusal == nil:
			b.Refusal = refusal
			continue
		case to-from > 1:
			return s.writeHalves(ctx, b, w, findNone, err)
		default:
			refused = []decode.Reject{b.Rows.RejectAt(from, Reason(refusal), Code(refusal))}
		}
		if err := w.Refuse(ctx, b, refused); err != nil {
			return err
		}
		b.Rows.Refuse(refused)
		b.Refusal = nil
	}
	return nil
}

func (s *Sink) writeHalves(ctx context.Context, b Block, w Writer, find findFunc, cause error) error {
	if err := w.Halve(ctx, b, cause); err != nil {
		return err
	}
	b.Refusal = nil
	from, to := b.Bounds()
	middle := b.Rows.Position(from + (to-from)/2 - 1)
	left, right := b, b
	left.Through, right.After = middle, middle
	if err := s.write(ctx, left, w, find); err != nil {
		return err
	}
	return s.write(ctx, right, w, find)
}
