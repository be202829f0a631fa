// Package decode turns pgoutput messages into rows for ClickHouse. It does no I/O.
//
// Source: PostgreSQL docs, "Logical Replication Message Formats".
package decode

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
)

// Kind says what a message was.
type Kind uint8

const (
	// Other is a message without consequence: Relation, Type, Origin, somebody else's Message.
	Other Kind = iota
	// Begin opens a transaction.
	Begin
	// Row added a row or a reject.
	Row
	// Skipped is a row at or before the resume position: it has landed already.
	Skipped
	// Stray is an event in a message outside of any transaction: it has no position,
	// cannot be delivered exactly once, and is not delivered.
	Stray
	// Commit ends a transaction; Decoder.CommitEnd is what may be acknowledged once its rows are durable.
	Commit
)

var (
	errOutsideTx = errors.New("row outside of a transaction")
	errNestedTx  = errors.New("transaction begins inside another")
	errFormat    = errors.New("column has an unknown format")
	errUnchanged = errors.New("is an unchanged TOAST value, which an insert never has")
)

// Decoder follows one replication stream; a new connection needs a new Decoder,
// because the server announces its relations again. Not safe for concurrent use.
type Decoder struct {
	relations map[uint32]*relation
	resume    Position
	// messagesFrom is as in Messages; messages tells that of the open transaction.
	messagesFrom pglogrepl.LSN
	messages     bool
	expected     pglogrepl.LSN // as in Expect; 0 once it has come

	open       bool
	pos        Position // of the last row
	commitTime int64
	commitEnd  pglogrepl.LSN
	event      Event
}

// NewDecoder returns a Decoder that skips every row up to and including resume.
func NewDecoder(resume Position) *Decoder {
	return &Decoder{relations: make(map[uint32]*relation), resume: resume}
}

// ErrHistory means that the server does not have a transaction whose rows have landed.
var ErrHistory = errors.New("this server does not know a transaction whose events have landed")

// Expect makes the stream begin with the transaction that was committed at lsn:
// START_REPLICATION at the LSN of a commit sends this commit first. A server that
// begins with a later one has another history, in which the places up to lsn may
// belong to other events.
func (d *Decoder) Expect(lsn pglogrepl.LSN) { d.expected = lsn }

// Passed tells that the server has sent everything before lsn.
//
// Errors: ErrHistory when the expected transaction has not come by then.
func (d *Decoder) Passed(lsn pglogrepl.LSN) error {
	if d.expected == 0 || lsn <= d.expected {
		return nil
	}
	return fmt.Errorf("%w: it was committed at %s, and the server has nothing before %s", ErrHistory, d.expected, lsn)
}

// InTransaction reports that a Begin has been seen and its Commit has not.
func (d *Decoder) InTransaction() bool { return d.open }

// CommitEnd is the end LSN of the last transaction that was received completely.
func (d *Decoder) CommitEnd() pglogrepl.LSN { return d.commitEnd }

// Last is the position of the last row seen, or of the transaction that has begun since.
func (d *Decoder) Last() Position { return d.pos }

// Decode reads one pgoutput message and appends its row, if it has one, to rows.
// msg is not retained.
//
// Errors: ErrHistory, see Expect; malformed messages are failure.Transient (a new
// connection gets the stream anew); what the publication or the table must not send is failure.Fatal.
// A row whose values cannot be represented is no error: it becomes a Reject.
func (d *Decoder) Decode(msg []byte, rows *Rows) (Kind, error) {
	if len(msg) == 0 {
		return Other, fmt.Errorf("decode: %w", errTruncated)
	}
	var kind Kind
	var err error
	switch msg[0] {
	case 'I':
		kind, err = d.insert(msg, rows)
	case 'B':
		kind, err = Begin, d.begin(msg[1:])
	case 'C':
		kind, err = Commit, d.commit(msg[1:])
	case 'R':
		err = d.relation(msg[1:])
	case 'M':
		kind, err = d.message(msg, rows)
	case 'Y', 'O':
	case 'U', 'D', 'T':
		err = failure.Wrap(failure.Fatal, errors.New(
			"the publication sends updates, deletes or truncates: ALTER PUBLICATION … SET (publish = 'insert')"))
	default:
		err = fmt.Errorf("unknown message %q", msg[0])
	}
	if err != nil {
		return Other, fmt.Errorf("decode: %w", err)
	}
	return kind, nil
}

func (d *Decoder) begin(b []byte) error {
	if d.open {
		return errNestedTx
	}
	c := cursor{b: b}
	lsn, t := pglogrepl.LSN(c.u64()), int64(c.u64()) //nolint:gosec // two's complement on the wire
	c.u32()                                          // xid
	if c.err != nil {
		return fmt.Errorf("begin: %w", c.err)
	}
	if err := d.Passed(lsn); err != nil {
		return err
	}
	if lsn == d.expected {
		d.expected = 0
	}
	d.open, d.pos, d.commitTime = true, Position{LSN: lsn}, t+pgEpoch
	d.messages = d.messagesFrom != 0 && lsn >= d.messagesFrom
	return nil
}

func (d *Decoder) commit(b []byte) error {
	c := cursor{b: b}
	c.u8()  // flags, unused
	c.u64() // LSN of the commit record, the same as Begin's
	end := pglogrepl.LSN(c.u64())
	c.u64() // commit time, the same as Begin's
	if c.err != nil {
		return fmt.Errorf("commit: %w", c.err)
	}
	if !d.open {
		return errors.New("commit outside of a transaction")
	}
	d.open, d.commitEnd = false, end
	return nil
}

func (d *Decoder) relation(b []byte) error {
	oid, rel, err := readRelation(b)
	if err != nil {
		return err
	}
	d.relations[oid] = rel
	return nil
}

// insertHeader is the message type, the relation's oid and the tuple's marker.
const insertHeader = 1 + 4 + 1 + 2

func (d *Decoder) insert(msg []byte, rows *Rows) (Kind, error) {
	if len(msg) < insertHeader || msg[5] != 'N' {
		return Other, fmt.Errorf("insert: %w", errTruncated)
	}
	if !d.open {
		return Other, errOutsideTx
	}
	oid := uint32(msg[1])<<24 | uint32(msg[2])<<16 | uint32(msg[3])<<8 | uint32(msg[4])
	rel := d.relations[oid]
	if rel == nil {
		return Other, fmt.Errorf("insert: relation %d was not announced", oid)
	}
	if rel.fields == nil {
		if err := rel.bind(); err != nil {
			return Other, err
		}
	}
	d.pos.Seq++
	if !d.pos.After(d.resume) {
		return Skipped, nil
	}
	bad, err := d.tuple(msg[insertHeader-2:], rel)
	if err != nil {
		return Other, err
	}
	if bad != "" {
		rows.Reject(d.reject(msg[insertHeader-2:], rel, bad))
		return Row, nil
	}
	rows.Append(d.pos, d.commitTime, &d.event)
	return Row, nil
}

// tuple reads the row into d.event. bad names the first value that cannot be
// represented; err is for a malformed message.
func (d *Decoder) tuple(b []byte, rel *relation) (bad string, err error) {
	n := int(b[0])<<8 | int(b[1])
	if n != len(rel.fields) {
		return "", fmt.Errorf("insert: %d columns, relation %s has %d", n, rel.name, len(rel.fields))
	}
	d.event = Event{}
	var seen uint8
	for i, at := 0, 2; i < len(rel.fields); i++ {
		if at >= len(b) {
			return "", fmt.Errorf("insert: %w", errTruncated)
		}
		format := b[at]
		if format == formatNull {
			at++
			continue
		}
		if format != formatBinary && format != formatText {
			return "", columnError(rel, i, format)
		}
		if len(b)-at < 5 {
			return "", fmt.Errorf("insert: %w", errTruncated)
		}
		start := at + 5
		at = start + int(binary.BigEndian.Uint32(b[at+1:]))
		if at > len(b) {
			return "", fmt.Errorf("insert: %w", errTruncated)
		}
		f := &rel.fields[i]
		if f.set == nil {
			continue
		}
		seen |= f.bit
		if err := f.set(&d.event, format, b[start:at]); err != nil && bad == "" {
			bad = "column " + rel.columns[i].name + " " + err.Error()
		}
	}
	if seen != allRequired && bad == "" {
		bad = "column " + missing(seen) + " is NULL"
	}
	return bad, nil
}

func columnError(rel *relation, i int, format byte) error {
	err := errFormat
	if format == formatUnchanged {
		err = errUnchanged
	}
	return fmt.Errorf("insert: column %s: %w", rel.columns[i].name, err)
}
