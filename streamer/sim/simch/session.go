package simch

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// revision is what clients are offered; see chserver, whose clients are the same.
const revision = 54460

// session is one connection.
type session struct {
	node *Node
	conn net.Conn
	r    *proto.Reader
	out  proto.Buffer
}

// running is a query of a node.
type running struct {
	id       string
	insert   bool
	settings map[string]string
}

// Accept serves a connection until it ends.
func (n *Node) Accept(conn net.Conn) {
	n.cluster.wait.Add(1)
	defer n.cluster.wait.Done()
	defer conn.Close()

	s := &session{node: n, conn: conn, r: proto.NewReader(conn)}
	if s.hello() != nil {
		return
	}
	for {
		code, err := s.r.ReadByte()
		if err != nil {
			return
		}
		switch proto.ClientCode(code) {
		case proto.ClientCodePing:
			proto.ServerCodePong.Encode(&s.out)
			err = s.flush()
		case proto.ClientCodeQuery:
			err = s.query()
		case proto.ClientCodeCancel:
		default:
			err = fmt.Errorf("packet %d", code)
		}
		if err != nil {
			return
		}
	}
}

func (s *session) hello() error {
	code, err := s.r.ReadByte()
	if err != nil || proto.ClientCode(code) != proto.ClientCodeHello {
		return errors.Join(err, errors.New("no hello"))
	}
	var hello proto.ClientHello
	if err := hello.Decode(s.r); err != nil {
		return err
	}
	answer := proto.ServerHello{Name: "ClickHouse", DisplayName: "model", Timezone: "UTC", Major: 26, Minor: 7, Patch: 1, Revision: revision}
	answer.EncodeAware(&s.out, revision)
	if err := s.flush(); err != nil {
		return err
	}
	_, err = s.r.Str() // addendum: quota key
	return err
}

func (s *session) flush() error {
	_, err := s.conn.Write(s.out.Buf)
	s.out.Reset()
	return err
}

// query reads a query with the end of its external tables, and answers it.
func (s *session) query() error {
	var packet proto.Query
	if err := packet.DecodeAware(s.r, revision); err != nil {
		return err
	}
	external, err := s.external()
	if err != nil {
		return err
	}
	q := &running{id: packet.ID, settings: make(map[string]string)}
	for _, setting := range packet.Settings {
		q.settings[setting.Key] = setting.Value
	}
	body := flatten(packet.Body)
	q.insert = strings.HasPrefix(body, "INSERT INTO ")
	if err := s.node.register(q); err != nil {
		return s.exception(err)
	}
	defer s.node.end(q)
	if q.insert {
		return s.insert(q, body)
	}
	params := make(map[string]string)
	for _, p := range packet.Parameters {
		params[p.Key] = strings.ReplaceAll(strings.Trim(p.Value, "'"), `\\`, `\`)
	}
	columns, err := s.node.answer(q, body, params, external)
	if err != nil {
		return s.exception(err)
	}
	if len(columns) > 0 {
		if err := s.block(columns, true); err != nil {
			return err
		}
		if err := s.block(columns, false); err != nil {
			return err
		}
	}
	proto.ServerCodeEndOfStream.Encode(&s.out)
	return s.flush()
}

// external reads the rows that come with a query, of one table.
func (s *session) external() (rows []Row, err error) {
	for {
		results, err := s.data()
		if err != nil || results == nil {
			return rows, err
		}
		if rows, err = appendRows(rows, results); err != nil {
			return nil, err
		}
	}
}

func (n *Node) register(q *running) error {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if q.id == "" {
		return nil
	}
	if n.queries[q.id] != nil {
		return &exception{proto.ErrQueryWithSameIDIsAlreadyRunning, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", "Query with id = " + q.id + " is already running"}
	}
	n.queries[q.id] = q
	if m := attempt.FindStringSubmatch(q.id); m != nil && q.insert {
		n.cluster.registered[m[1]] = true
	}
	return nil
}

func (n *Node) end(q *running) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if n.queries[q.id] == q {
		delete(n.queries, q.id)
	}
	n.cluster.changed.Broadcast()
}

// exception reports err to the client. An error that is none breaks the connection.
func (s *session) exception(err error) error {
	e, ok := errors.AsType[*exception](err)
	if !ok {
		return err
	}
	proto.ServerCodeException.Encode(&s.out)
	packet := proto.Exception{Code: e.code, Name: "DB::Exception", Message: "DB::Exception: " + e.text + ". (" + e.name + ")"}
	packet.EncodeAware(&s.out, revision)
	return s.flush()
}

// block sends the columns, or their names and types alone.
func (s *session) block(columns proto.Input, header bool) error {
	proto.ServerCodeData.Encode(&s.out)
	s.out.PutString("")
	rows := columns[0].Data.Rows()
	if header {
		proto.Block{Columns: len(columns)}.EncodeAware(&s.out, revision)
		for _, c := range columns {
			c.EncodeStart(&s.out, revision)
		}
		return nil
	}
	return proto.Block{Columns: len(columns), Rows: rows}.EncodeBlock(&s.out, revision, columns)
}

// data reads a Data packet whose first byte was not read yet; nil for an empty one.
func (s *session) data() (proto.Results, error) {
	code, err := s.r.ReadByte()
	if err != nil {
		return nil, err
	}
	if proto.ClientCode(code) != proto.ClientCodeData {
		return nil, &exception{proto.ErrQueryWasCancelled, "QUERY_WAS_CANCELLED", "Query was cancelled"}
	}
	if _, err := s.r.Str(); err != nil {
		return nil, err
	}
	var block proto.Block
	var results proto.Results
	if err := block.DecodeBlock(s.r, revision, results.Auto()); err != nil {
		return nil, err
	}
	if block.End() {
		return nil, nil
	}
	return results, nil
}

// limit is a setting in seconds, or its default.
func (q *running) limit(name string, standard time.Duration) time.Duration {
	var seconds float64
	if _, err := fmt.Sscanf(q.settings[name], "%g", &seconds); err != nil {
		return standard
	}
	return time.Duration(seconds * float64(time.Second))
}
