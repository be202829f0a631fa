package decode

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Whatever rows are refused, the others stay what they were, and where they were asked for.
func TestRefuse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var all, want Rows
		var refused []Reject
		seq := uint32(0)
		for range rapid.IntRange(0, 12).Draw(t, "rows") {
			seq++
			e := Event{
				ID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, seq)), Type: fmt.Append(nil, "type ", seq%3), DateTime: int64(seq),
				Environment: fmt.Append(nil, "environment ", seq%2), Context: []byte(rapid.StringN(0, 200, -1).Draw(t, "context")),
				MetadataVersion: uint64(seq), TraceID: uuid.NewSHA1(uuid.Max, fmt.Append(nil, seq)), PublishedBy: fmt.Append(nil, "by ", seq%5),
			}
			p := Position{LSN: pglogrepl.LSN(100 + seq/4), Seq: seq}
			switch rapid.IntRange(0, 3).Draw(t, "fate") {
			case 0:
				all.Append(p, int64(seq), &e)
				refused = append(refused, all.RejectAt(all.Len()-1, "reason", 469))
			case 1:
				all.Reject(Reject{Position: p})
			default:
				all.Append(p, int64(seq), &e)
				want.Append(p, int64(seq), &e)
			}
		}
		decoded := len(all.Rejects)
		all.Refuse(refused)
		require.Equal(t, want.Len(), all.Len())
		for i := range want.Len() {
			require.Equal(t, want.TupleAt(i), all.TupleAt(i))
			require.Equal(t, want.Position(i), all.Position(i))
			require.Equal(t, want.CommitTime[i], all.CommitTime[i])
			require.Equal(t, i+1, all.Index(all.Position(i)))
		}
		require.Len(t, all.Rejects, decoded+len(refused))
		for i, x := range all.Rejects[min(1, len(all.Rejects)):] {
			require.True(t, x.After(all.Rejects[i].Position))
		}
		require.Equal(t, want.Len(), all.Index(Position{LSN: 1000}))
		require.Zero(t, all.Index(Position{}))
		all.Append(Position{LSN: 2000, Seq: 1}, 1, &Event{Type: []byte("type 1"), Context: []byte("behind")})
		require.Equal(t, "behind", string(all.ContextAt(want.Len())))
	})
}
