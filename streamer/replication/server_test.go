package replication

import (
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// server speaks just enough of PostgreSQL's protocol to begin a replication
// session, and lets a test decide how its bytes are cut into segments.
type server struct {
	t        *testing.T
	listener net.Listener
	startup  map[string]string // parameters of the last session
	query    string            // the last one
	greeting []byte            // sent instead of the welcome, if set
	answer   []byte            // to START_REPLICATION
	conns    chan net.Conn     // sessions that have begun
}

func newServer(t *testing.T) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{t: t, listener: listener, answer: copyBoth(), conns: make(chan net.Conn, 1)}
	t.Cleanup(func() { listener.Close() })
	go s.serve()
	return s
}

func (s *server) url() string {
	return "postgres://user:hunter2@" + s.listener.Addr().String() + "/database?sslmode=disable"
}

func (s *server) serve() {
	conn, err := s.listener.Accept()
	if err != nil {
		return
	}
	s.t.Cleanup(func() { conn.Close() })
	backend := pgproto3.NewBackend(conn, conn)
	startup, err := backend.ReceiveStartupMessage()
	if !assert.NoError(s.t, err) {
		return
	}
	s.startup = startup.(*pgproto3.StartupMessage).Parameters
	if s.greeting != nil {
		_, _ = conn.Write(s.greeting)
		conn.Close()
		return
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ParameterStatus{Name: "server_encoding", Value: "UTF8"})
	backend.Send(&pgproto3.BackendKeyData{ProcessID: 4711, SecretKey: []byte{1, 2, 3, 4}})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if !assert.NoError(s.t, backend.Flush()) {
		return
	}
	received, err := backend.Receive() // whether the session is direct
	if !assert.NoError(s.t, err) || !assert.IsType(s.t, &pgproto3.Query{}, received) {
		return
	}
	backend.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("direct")}}})
	backend.Send(&pgproto3.DataRow{Values: [][]byte{[]byte("t")}})
	backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if !assert.NoError(s.t, backend.Flush()) {
		return
	}
	if received, err = backend.Receive(); err != nil {
		return // the session was only opened
	}
	query, ok := received.(*pgproto3.Query)
	if !assert.True(s.t, ok, "%T", received) {
		return
	}
	s.query = query.String
	_, _ = conn.Write(s.answer)
	s.conns <- conn
}

func copyBoth() []byte { return message('W', []byte{0, 0, 0}) }

// serverErrorMessage is an ErrorResponse.
func serverErrorMessage(code, text string) []byte {
	b, err := (&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: text}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}
