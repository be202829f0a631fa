package clickhouse

import (
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
)

// silent is a library that ends an insert without a packet on the connection.
type silent struct{ driver.Batch }

func (silent) IsSent() bool { return false }
func (silent) Rows() int    { return 0 }
func (silent) Send() error  { return nil }

// An insert is not taken for written whose block did not go out, whatever the library does.
func TestABlockThatStaysBehindIsAnError(t *testing.T) {
	t.Parallel()
	i := &insert{Batch: silent{}, ctx: t.Context(), wire: new(wire)}
	require.ErrorIs(t, i.SendBlock([]proto.InputColumn{{Name: "n", Data: &proto.ColUInt64{1}}}), errNotSent)
	require.Nil(t, i.wire.block.Load(), "and does not go out later")
}
