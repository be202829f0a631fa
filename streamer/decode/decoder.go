// Package decode turns pgoutput messages into rows for ClickHouse. It does no I/O.
//
// Source: PostgreSQL docs, "Logical Replication Message Formats".
package decode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
)

// Kind says what a message was.
type Kind uint8

const (
	// Other is a message without consequence: Relation, Type, Origin, a Message with another prefix.
	Other Kind = iota
	// Begin opens a transaction.
	Begin
	// Row added a row or a reject.
	Row
	// Skipped is a row at or before the resume position: it is already written.
	Skipped
	// NonTransactional is an event in a message outside of any transaction: it has no position,
	// cannot be delivered exactly once, and is not delivered.
	NonTransactional
	// Commit ends a transaction; Decoder.CommitEnd is what may be acknowledged once its rows are durable.
	Commit
)

var (
	errOutsideTx = errors.New("row outside of a transaction")
	errNestedTx  = errors.New("transaction begins inside another")
	errFormat    = errors.New("column has an unknown format")
	errUnchanged = errors.New("is an unchanged TOAST value, which an insert never has")
	errBeyond    = errors.New("ends too far behind the beginning of a row that is too long")
)

// Decoder follows one replication stream; a new connection needs a new Decoder,
// because the server announces its relations again. Not safe for concurrent use.
type Decoder struct {
	relations map[uint32]*relation
	resume    Position
	identify  bool // as in IdentifySkipped
	// messagesFrom is as in AcceptMessagesFrom; messages is that of the open transaction.
	messagesFrom pglogrepl.LSN
	messages     bool
	expected     pglogrepl.LSN // as in ExpectCommit; 0 once it has come

	open       bool
	foreign    bool     // the transaction has an origin
	pos        Position // of the last row
	commitTime int64
	commitEnd  pglogrepl.LSN
	event      Event
}

// NewDecoder returns a Decoder that skips every row up to and including resume.
func NewDecoder(resume Position) *Decoder {
	return &Decoder{relations: make(map[uint32]*relation), resume: resume}
}

// IdentifySkipped makes the decoder read rows that it skips, for SkippedID.
func (d *Decoder) IdentifySkipped() { d.identify = true }

// SkippedID is the id of the event that was skipped last, zero when it cannot be read; not ok without IdentifySkipped.
func (d *Decoder) SkippedID() (id [16]byte, ok bool) { return d.event.ID, d.identify }

// ErrDivergedHistory means that the server does not have a transaction whose rows are in ClickHouse.
var ErrDivergedHistory = errors.New("this server does not have a transaction whose events are in ClickHouse")

// ExpectCommit makes the stream begin with the transaction that was committed at lsn:
// START_REPLICATION at the LSN of a commit sends this commit first. A server that
// begins with a later one has another history, in which the places up to lsn may
// belong to other events.
func (d *Decoder) ExpectCommit(lsn pglogrepl.LSN) { d.expected = lsn }

// Advance notes that the server has sent everything before lsn.
//
// Errors: ErrDivergedHistory when the expected transaction has not come by then.
func (d *Decoder) Advance(lsn pglogrepl.LSN) error {
	if d.expected == 0 || lsn <= d.expected {
		return nil
	}
	return fmt.Errorf("%w: it was committed at %s, and the server has nothing before %s", ErrDivergedHistory, d.expected, lsn)
}

// InTransaction reports that a Begin has been seen and its Commit has not.
func (d *Decoder) InTransaction() bool { return d.open }

// CommitEnd is the end LSN of the last transaction that was received completely.
func (d *Decoder) CommitEnd() pglogrepl.LSN { return d.commitEnd }

// CommitTime is when the transaction was committed that is read, or was read last; microseconds since
// 1970. It is by the server's clock, unless the transaction is Foreign.
func (d *Decoder) CommitTime() int64 { return d.commitTime }

// Foreign reports that this transaction has a replication origin: its commit time is what a session
// said that replays another server's transactions.
// Source: PostgreSQL, "Replication Progress Tracking", pg_replication_origin_xact_setup.
func (d *Decoder) Foreign() bool { return d.foreign }

// Last is the position of the last row seen, or of the transaction that has begun since.
func (d *Decoder) Last() Position { return d.pos }

// Decode is DecodeHead of a whole message.
func (d *Decoder) Decode(msg []byte, rows *Rows) (Kind, error) {
	return d.DecodeHead(msg, len(msg), rows)
}

// DecodeHead reads one pgoutput message and appends its row, if it has one, to rows.
// msg has the first bytes of the size that the message has; it is not retained. A row that is
// not complete in them becomes a Reject with its beginning.
//
// Errors: ErrDivergedHistory, see ExpectCommit; malformed messages are failure.Transient (a new
// connection gets the stream anew); what the publication or the table must not send is failure.Fatal.
// A row whose values cannot be represented is no error: it becomes a Reject.
func (d *Decoder) DecodeHead(msg []byte, size int, rows *Rows) (Kind, error) {
	if len(msg) == 0 {
		return Other, fmt.Errorf("decode: %w", errTruncated)
	}
	var kind Kind
	var err error
	switch msg[0] {
	case 'I':
		kind, err = d.insert(msg, size, rows)
	case 'B':
		kind, err = Begin, d.begin(msg[1:])
	case 'C':
		kind, err = Commit, d.commit(msg[1:])
	case 'R':
		err = d.relation(msg[1:])
	case 'M':
		kind, err = d.message(msg, size, rows)
	case 'O':
		d.foreign = true
	case 'Y':
	case 'U', 'D', 'T':
		err = failure.Wrap(failure.Fatal, errors.New(
			"the publication sends updates, deletes or truncates: ALTER PUBLICATION … SET (publish = 'insert')"))
	default:
		err = fmt.Errorf("unknown message %q", msg[0])
	}
	if err != nil && d.open {
		return Other, fmt.Errorf("decode: transaction committed at %s: %w", d.pos.LSN, err)
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
	if err := d.Advance(lsn); err != nil {
		return err
	}
	if lsn == d.expected {
		d.expected = 0
	}
	d.open, d.foreign, d.pos, d.commitTime = true, false, Position{LSN: lsn}, t+pgEpoch
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

func (d *Decoder) insert(msg []byte, size int, rows *Rows) (Kind, error) {
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
		if err := rel.resolve(); err != nil {
			return Other, err
		}
	}
	values, cut := msg[insertHeader-2:], size > len(msg)
	d.pos.Seq++
	if !d.pos.After(d.resume) {
		if d.identify {
			_, _ = d.tuple(values, rel, cut) // whatever is wrong with it is dealt with already
		}
		return Skipped, nil
	}
	bad, err := d.tuple(values, rel, cut)
	if err != nil {
		return Other, err
	}
	switch {
	case bad != "" && cut:
		rows.Reject(d.rejectHead(values, size, rel, bad))
	case bad != "":
		rows.Reject(d.reject(values, rel, bad))
	default:
		rows.Append(d.pos, d.commitTime, &d.event)
	}
	return Row, nil
}

// tuple reads the row into d.event. bad names the first value that cannot be
// represented; err is for a malformed message. cut says that more follows than b has.
func (d *Decoder) tuple(b []byte, rel *relation, cut bool) (bad string, err error) {
	d.event = withDefaults
	n := int(b[0])<<8 | int(b[1])
	if n != len(rel.fields) {
		return "", fmt.Errorf("insert: %d columns, relation %s has %d", n, rel.name, len(rel.fields))
	}
	var seen uint8
	for i, at := 0, 2; i < len(rel.fields); i++ {
		var format byte
		if at < len(b) {
			format = b[at]
			if format == formatNull {
				seen |= rel.fields[i].bit & nullable
				at++
				continue
			}
			if format != formatBinary && format != formatText {
				return "", columnError(rel, i, format)
			}
		}
		start := at + 5
		if at = start; start <= len(b) {
			at += int(binary.BigEndian.Uint32(b[start-4:]))
		}
		if at > len(b) {
			if !cut {
				return "", fmt.Errorf("insert: %w", errTruncated)
			}
			if bad == "" && rel.oursFrom(i) {
				bad = "column " + rel.columns[i].name + " " + errBeyond.Error()
			}
			break
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

// oursFrom reports that a column from number i on is one of event_log's.
func (r *relation) oursFrom(i int) bool {
	return slices.ContainsFunc(r.fields[i:], func(f field) bool { return f.set != nil })
}

func columnError(rel *relation, i int, format byte) error {
	err := errFormat
	if format == formatUnchanged {
		err = errUnchanged
	}
	return fmt.Errorf("insert: column %s: %w", rel.columns[i].name, err)
}
