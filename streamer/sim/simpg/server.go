package simpg

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// Version is what server_version_num says.
const Version = 180004

// Server is one cluster of servers through its failovers: the primary of the time.
type Server struct {
	// Confirmed is called when a session moves its slot, with what the slot's record allows.
	Confirmed func(slot string, lsn, recorded pglogrepl.LSN)
	// Created is called when a slot is made, which took since began; what was committed before is not in it.
	Created func(slot string, lsn pglogrepl.LSN, began time.Time)

	// Intended is called when a session has written its intent, with the name of its host. The
	// server's lock is held.
	Intended func(host string, intent any)

	// Delay is how long a statement takes between two of its effects.
	Delay func() time.Duration

	mu       sync.Mutex
	changed  *sync.Cond // anything below
	systemID string
	timeline int32
	newest   int32 // timeline that was ever begun
	history  []switchPoint
	// abandoned: a standby was promoted that had not come to a switch of timelines.
	abandoned bool
	base      pglogrepl.LSN
	end       pglogrepl.LSN
	xid       uint32
	wal       []record
	slots     map[string]*slot
	tables    tables
	locks     map[string]*session // of rows
	advisory  map[string]*session
	sessions  map[uint32]*session
	lastPID   uint32
	taken     int
	readOnly  bool
	unknown   error // the first statement that the model does not know
	types     *pgtype.Map
	wait      sync.WaitGroup
}

// switchPoint is where a timeline ended.
type switchPoint struct {
	timeline int32
	lsn      pglogrepl.LSN
}

// New returns a server whose outbox is empty.
func New(systemID string) *Server {
	s := &Server{
		systemID: systemID, timeline: 1, newest: 1, base: firstLSN, end: firstLSN, xid: 700,
		slots: make(map[string]*slot), locks: make(map[string]*session), advisory: make(map[string]*session), sessions: make(map[uint32]*session),
		types: pgtype.NewMap(),
	}
	s.tables = s.initial()
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *Server) initial() tables { return make(tables) }

// Err is what the model cannot do, once it was asked for it.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unknown
}

// SetReadOnly makes transactions read-only unless a session says otherwise.
func (s *Server) SetReadOnly(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readOnly = on
}

// Wait returns when all sessions have ended; their connections must be closed before.
func (s *Server) Wait() { s.wait.Wait() }

// Holder is the application name of the session that holds the slot, "" if none does.
func (s *Server) Holder(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot := s.slots[name]; slot != nil && slot.active != nil {
		return slot.active.application
	}
	return ""
}

// Terminate ends the session that holds the slot, as pg_terminate_backend does.
func (s *Server) Terminate(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.slots[name]
	if slot == nil || slot.active == nil {
		return false
	}
	slot.active.terminate()
	return true
}

// Lose ends the session that holds the slot, and the network swallows the news of it.
func (s *Server) Lose(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.slots[name]
	if slot == nil || slot.active == nil {
		return false
	}
	ses := slot.active
	ses.gone, slot.active = true, nil
	if conn, ok := ses.conn.(interface{ Vanish() }); ok {
		conn.Vanish()
	}
	s.changed.Broadcast()
	return true
}

// endSessions ends all sessions.
func (s *Server) endSessions() {
	for _, pid := range slices.Sorted(maps.Keys(s.sessions)) {
		s.sessions[pid].terminate()
	}
	s.changed.Broadcast()
}

// session is one backend.
type session struct {
	server      *Server
	conn        net.Conn
	backend     *pgproto3.Backend
	out         []byte // answers that wait for flush
	pid         uint32
	application string
	options     map[string]string
	prepared    map[string]*prepared
	portal      *portal
	failed      bool // skip until Sync
	gone        bool // terminated, or its connection lost
	done        chan struct{}
	tx          *transaction
	sender      *walsender
}

// transaction is one that BEGIN opened.
type transaction struct {
	changes []change
	failed  bool
}

// Accept serves a connection until it ends.
func (s *Server) Accept(conn net.Conn) {
	s.wait.Add(1)
	defer s.wait.Done()
	defer conn.Close()
	ses := &session{
		server: s, conn: conn, backend: pgproto3.NewBackend(conn, conn),
		prepared: make(map[string]*prepared), done: make(chan struct{}),
	}
	if !ses.startup() {
		return
	}
	defer ses.end()
	for {
		msg, err := ses.backend.Receive()
		if err != nil || !ses.handle(msg) {
			return
		}
	}
}

func (ses *session) startup() bool {
	msg, err := ses.backend.ReceiveStartupMessage()
	if err != nil {
		return false
	}
	start, ok := msg.(*pgproto3.StartupMessage)
	if !ok {
		return false // a request to cancel
	}
	ses.application = start.Parameters["application_name"]
	ses.options = parseOptions(start.Parameters)
	s := ses.server
	s.mu.Lock()
	s.lastPID++
	ses.pid = s.lastPID
	s.sessions[ses.pid] = ses
	s.mu.Unlock()
	ses.send(&pgproto3.AuthenticationOk{})
	for _, p := range [][2]string{
		{"server_version", "18.4"},
		{"client_encoding", "UTF8"},
		{"standard_conforming_strings", "on"},
		{"DateStyle", "ISO, MDY"},
		{"TimeZone", "UTC"},
		{"integer_datetimes", "on"},
		{"in_hot_standby", "off"},
	} {
		ses.send(&pgproto3.ParameterStatus{Name: p[0], Value: p[1]})
	}
	ses.send(&pgproto3.BackendKeyData{ProcessID: ses.pid, SecretKey: []byte{0, 0, 0, 1}})
	ses.ready()
	return ses.flush() == nil
}

// parseOptions reads the settings of a startup message, "options" included.
func parseOptions(parameters map[string]string) map[string]string {
	options := maps.Clone(parameters)
	for field := range strings.FieldsSeq(strings.ReplaceAll(parameters["options"], "-c ", "")) {
		if name, value, ok := strings.Cut(field, "="); ok {
			options[name] = value
		}
	}
	return options
}

// end frees what the session held.
func (ses *session) end() {
	s := ses.server
	s.mu.Lock()
	defer s.mu.Unlock()
	ses.gone = true
	close(ses.done)
	delete(s.sessions, ses.pid)
	ours := func(_ string, holder *session) bool { return holder == ses }
	maps.DeleteFunc(s.locks, ours)
	maps.DeleteFunc(s.advisory, ours)
	for _, slot := range s.slots {
		if slot.active == ses {
			slot.active = nil
		}
	}
	s.changed.Broadcast()
}

// terminate ends the session from outside. Its slot and its locks are free with it.
func (ses *session) terminate() {
	if ses.gone {
		return
	}
	ses.gone = true
	for _, slot := range ses.server.slots {
		if slot.active == ses {
			slot.active = nil
		}
	}
	ses.server.changed.Broadcast()
	go func() { // the lock of the server must not be held while the network waits
		_ = ses.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = ses.conn.Write(encode(nil, errorResponse("FATAL", pgerrcode.AdminShutdown, "terminating connection due to administrator command")))
		ses.conn.Close()
	}()
}

// send queues an answer. It belongs to the goroutine that reads.
func (ses *session) send(msg pgproto3.BackendMessage) { ses.out = encode(ses.out, msg) }

func encode(b []byte, msg pgproto3.BackendMessage) []byte {
	out, err := msg.Encode(b)
	if err != nil {
		return b // a message beyond PostgreSQL's limit: the model makes none
	}
	return out
}

func (ses *session) flush() error {
	_, err := ses.conn.Write(ses.out)
	ses.out = ses.out[:0]
	return err
}

func (ses *session) ready() {
	status := byte('I')
	if ses.tx != nil {
		status = 'T'
		if ses.tx.failed {
			status = 'E'
		}
	}
	ses.send(&pgproto3.ReadyForQuery{TxStatus: status})
}

// sqlError is an error of a statement.
type sqlError struct{ code, text string }

func (e *sqlError) Error() string { return fmt.Sprintf("%s (SQLSTATE %s)", e.text, e.code) }

func errorResponse(severity, code, text string) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: code, Message: text}
}
