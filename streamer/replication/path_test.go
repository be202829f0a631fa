package replication

import (
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/link"
	"diehard/shared/dev/testenv"
)

// The proof of a block and its intent are one round trip to PostgreSQL.
func TestAnIntentIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	l := link.New(t, link.Options{RTT: 20 * time.Millisecond})
	listener, err := l.Listen(link.Far)
	require.NoError(t, err)
	c, err := OpenControl(t.Context(), testenv.RelayPostgres(t, listener, env.PostgresURL), "tester", Origin{
		Slot: env.Slot, Publication: env.Publication, Dial: pgconn.DialFunc(l.Dialer(link.Near, new(net.Dialer).DialContext)),
	})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(t.Context()) })
	_, err = c.EnsureSlot(t.Context())
	require.NoError(t, err)
	holder := stream(t, env, "holder")
	owner := Owner{holder.PID(), "holder"}
	record, err := c.ClaimIntent(t.Context(), owner, "1", 1)
	require.NoError(t, err)
	write := func(n int) {
		record.Intent = &Intent{Version: IntentVersion, Through: Position{1, uint32(n)}}
		_, err := c.WriteIntent(t.Context(), owner, record)
		require.NoError(t, err)
	}
	write(0) // prepares the statement
	require.NoError(t, c.VerifyOwner(t.Context(), owner))
	for n := range 3 {
		before := l.RoundTrips()
		write(n)
		assert.Equal(t, before+1, l.RoundTrips())
		require.NoError(t, c.VerifyOwner(t.Context(), owner))
		assert.Equal(t, before+2, l.RoundTrips())
	}
}
