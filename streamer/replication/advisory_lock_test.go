package replication_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/replication"
)

// A connection that answers is no proof of the lock.
func TestAnAdvisoryLockIsProvedByTheLock(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	open := func() *replication.AdvisoryLock {
		t.Helper()
		lock, err := replication.OpenAdvisoryLock(t.Context(), env.PostgresURL, "test")
		require.NoError(t, err)
		t.Cleanup(lock.Close)
		return lock
	}
	first, second := open(), open()
	ours, err := first.Lock(t.Context(), "$1", int64(42))
	require.NoError(t, err)
	require.True(t, ours)
	require.NoError(t, first.Verify(t.Context()))
	ours, err = second.Lock(t.Context(), "$1", int64(42))
	require.NoError(t, err)
	require.False(t, ours)
	require.ErrorIs(t, second.Verify(t.Context()), replication.ErrSession)

	// As when a pooler gives the session to another client, which resets it.
	_, err = first.Conn.Exec(t.Context(), "SELECT pg_advisory_unlock_all()")
	require.NoError(t, err)
	require.ErrorIs(t, first.Verify(t.Context()), replication.ErrSession)
}

func TestAnAdvisoryLockIsNotTakenThroughAPooler(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	server, err := url.Parse(env.PostgresURL)
	require.NoError(t, err)
	through := *server
	through.Host = poolerFor(t, server.Host)
	_, err = replication.OpenAdvisoryLock(t.Context(), through.String(), "test")
	assert.ErrorContains(t, err, "connection pooler")
}

// poolerFor forwards connections to server, and gives them a key of its own, as PgBouncer does.
func poolerFor(t *testing.T, server string) (address string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				upstream, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				defer upstream.Close()
				go func() { _, _ = io.Copy(upstream, client) }()
				forward(client, upstream)
			}()
		}
	}()
	return listener.Addr().String()
}

// forward copies the server's messages, and changes the process id in BackendKeyData.
func forward(client io.Writer, server io.Reader) {
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		if header[0] == 'K' {
			binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1)
		}
		if _, err := client.Write(append(append([]byte{}, header...), body...)); err != nil {
			return
		}
	}
}
