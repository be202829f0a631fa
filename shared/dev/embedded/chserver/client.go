package chserver

import (
	"bufio"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// client is one connection of a client with its session in the engine. Packets
// are read by the goroutine of serve, and while a query runs by its watcher.
type client struct {
	server  *server
	replica *replica
	conn    net.Conn
	in      *bufio.Reader
	r       *proto.Reader // decodes from in
	out     packetWriter
	frames  frameReader
	blocks  blockReader
	spool   spool
	session *session

	user       string
	settings   map[string]string // what is set in the session, as SQL
	compressed bool              // the client's last query came and is answered with compressed blocks
}

// readBuffer is the size of the buffer between socket and decoder, in bytes.
// Frames larger than it are read without a copy.
const readBuffer = 256 << 10

func newClient(r *replica, conn net.Conn) *client {
	in := bufio.NewReaderSize(conn, readBuffer)
	c := &client{server: r.server, replica: r, conn: conn, in: in, r: proto.NewReader(in)}
	c.out = packetWriter{conn: conn, frame: *compress.NewWriter(compress.LevelZero, compress.LZ4)}
	c.frames = frameReader{in: in}
	c.blocks = blockReader{wire: true, types: make(map[string]*columnType)}
	return c
}

// serve answers packets until the client disconnects, which is no error.
func (c *client) serve() error {
	defer c.spool.close()
	if err := c.handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	defer func() { c.session.close() }()
	for {
		code, err := c.in.ReadByte()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read packet: %w", err)
		}
		if err := c.packet(proto.ClientCode(code)); err != nil {
			return err
		}
	}
}

func (c *client) packet(code proto.ClientCode) error {
	switch code {
	case proto.ClientCodePing:
		return c.out.pong()
	case proto.ClientCodeQuery:
		return c.handleQuery()
	case proto.ClientCodeCancel: // too late: the query has ended
		return nil
	case proto.ClientCodeData: // of an INSERT that was refused
		_, err := c.readData(c.compressed, nil)
		return err
	default:
		return fmt.Errorf("unexpected packet %d", code)
	}
}

// handshake checks the password, opens the session in the database that the client
// asks for, and sends the server's hello.
func (c *client) handshake() error {
	code, err := c.in.ReadByte()
	if err != nil {
		return err
	}
	if proto.ClientCode(code) != proto.ClientCodeHello {
		return fmt.Errorf("unexpected packet %d; is this a client of the native protocol?", code)
	}
	var hello proto.ClientHello
	if err := hello.Decode(c.r); err != nil {
		return err
	}
	if hello.ProtocolVersion < revision {
		return c.refuse(newException(proto.ErrNotImplemented, "NOT_IMPLEMENTED",
			fmt.Sprintf("the embedded server needs a client of protocol revision %d or newer", revision)))
	}
	password, known := c.server.users[hello.User]
	if !known || subtle.ConstantTimeCompare([]byte(hello.Password), []byte(password)) != 1 {
		return c.refuse(newException(proto.ErrAuthenticationFailed, "AUTHENTICATION_FAILED",
			"DB::Exception: "+hello.User+": Authentication failed: password is incorrect, or there is no user with such name"))
	}
	c.user = hello.User
	if err := c.openSession(hello.Database); err != nil {
		return c.refuse(err)
	}
	answer := c.server.hello
	answer.EncodeAware(&c.out.buf, revision)
	if err := c.out.flush(); err != nil {
		return err
	}
	if _, err := c.r.Str(); err != nil { // addendum: quota key
		return fmt.Errorf("addendum: %w", err)
	}
	return nil
}

// refuse sends reason to the client as an exception and returns it.
func (c *client) refuse(reason error) error {
	return errors.Join(reason, c.out.exception(asException(reason)))
}

func (c *client) openSession(database string) error {
	session, err := c.server.engine.open()
	if err != nil {
		return err
	}
	if database != "" {
		if err := session.exec("USE " + backquote(database)); err != nil {
			session.close()
			return err
		}
	}
	c.session, c.settings = session, nil
	return nil
}

// renewSession replaces the session by a fresh one in the same database, after
// its settings have become unknown.
func (c *client) renewSession() error {
	var database string
	err := c.session.query("SELECT currentDatabase()", nil, func(native []byte) error {
		table, err := stringTable(native)
		if err == nil {
			database = table[0][0]
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("renew session: %w", err)
	}
	old := c.session
	if err := c.openSession(database); err != nil {
		return fmt.Errorf("renew session: %w", err)
	}
	old.close()
	return nil
}

// watch calls gone if the client cancels or disconnects before stop is called.
func (c *client) watch(gone func()) (stop func()) {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		next, err := c.in.Peek(1)
		timeout, isNet := errors.AsType[net.Error](err)
		switch {
		case isNet && timeout.Timeout(): // stop was called
		case err != nil, proto.ClientCode(next[0]) == proto.ClientCodeCancel:
			gone()
		}
	}()
	return func() {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
		<-finished
		_ = c.conn.SetReadDeadline(time.Time{})
	}
}

func asException(err error) *exception {
	if e, ok := errors.AsType[*exception](err); ok {
		return e
	}
	return &exception{code: proto.ErrUnknownException, text: err.Error()}
}
