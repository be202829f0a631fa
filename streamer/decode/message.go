package decode

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/event"
)

// AcceptMessagesFrom makes the decoder take messages for events in transactions that were
// committed at from or later; 0, as at the beginning, is never. Which
// transactions these are must be the same at every start, because messages are
// counted like rows.
func (d *Decoder) AcceptMessagesFrom(from pglogrepl.LSN) { d.messagesFrom = from }

const (
	// messageHeader is what stands before the prefix: the type, the flags, and the message's LSN.
	messageHeader = 1 + 1 + 8
	transactional = 1 // flag
)

var messagePrefix = []byte(event.MessagePrefix + "\x00")

// message takes an event that was published without a table.
func (d *Decoder) message(msg []byte, size int, rows *Rows) (Kind, error) {
	if len(msg) < messageHeader || d.messagesFrom == 0 || !bytes.HasPrefix(msg[messageHeader:], messagePrefix) {
		return Other, nil // not an event
	}
	content := msg[messageHeader+len(messagePrefix):]
	beyond := size - len(msg) // bytes of the content that msg does not have
	if len(content) < 4 || int64(binary.BigEndian.Uint32(content)) != int64(len(content)-4+beyond) {
		return Other, fmt.Errorf("message: %w", errTruncated)
	}
	if msg[1]&transactional == 0 {
		return NonTransactional, nil
	}
	if !d.open {
		return Other, errOutsideTx
	}
	if !d.messages {
		return Other, nil
	}
	d.pos.Seq++
	content = content[4:]
	if !d.pos.After(d.resume) {
		if d.identify {
			_ = parseMessage(content, &d.event)
		}
		return Skipped, nil
	}
	err := parseMessage(content, &d.event)
	if err == nil && beyond > 0 {
		err = errLong
	}
	if err != nil {
		rows.Reject(d.rejectMessage(content, len(content)+beyond, err))
		return Row, nil
	}
	rows.Append(d.pos, d.commitTime, &d.event)
	return Row, nil
}

const (
	// maxHeader bounds the first line of a message: its four texts of up to 255
	// bytes may each be escaped to six times that.
	maxHeader = 8 << 10
	// maxRaw is how much is kept of a malformed message, and of a row that is too large
	// to be read whole. One that is longer was never an event.
	maxRaw = maxHeader + event.MaxContextBytes + 2
	// messageColumn is the name of the only column of a message's Tuple.
	messageColumn = "message"
)

// rejectMessage keeps the beginning of a message whose content has size bytes.
func (d *Decoder) rejectMessage(content []byte, size int, err error) Reject {
	reason, raw := "message "+err.Error(), Tuple{}
	if size > maxRaw {
		reason += keptOf(size)
		content, raw.BeginningOf = content[:min(len(content), maxRaw)], size
	}
	raw.Columns = []TupleColumn{{messageColumn, pgtype.ByteaOID, string(rune(formatBinary)), content}}
	return Reject{
		Position: d.pos, CommitTime: d.commitTime,
		ID: d.event.ID, Type: strings.ToValidUTF8(string(d.event.Type), "�"),
		Raw: raw.Encode(), Reason: reason,
	}
}

func keptOf(size int) string {
	return fmt.Sprintf(" (of its %d bytes the first %d are kept)", size, maxRaw)
}

// isMessage reports whether t was made by rejectMessage.
func (t Tuple) isMessage() bool {
	return len(t.Columns) == 1 && t.Columns[0].Name == messageColumn && t.Columns[0].OID == pgtype.ByteaOID
}

var (
	errNoHeader = errors.New("has no line of JSON before its context")
	errHeader   = errors.New("does not begin with a flat JSON object")
	errForm     = errors.New("has a version that this streamer does not know")
	errLong     = errors.New("is too long")
	errUTF8     = errors.New("is not UTF-8")
	errZero     = errors.New("contains a zero byte")
	errNotJSON  = errors.New("is not JSON")
	errNotText  = errors.New("has a value of the wrong type")
	errRFC3339  = errors.New("is not a time as in RFC 3339")
)

// parseMessage reads a message's content into e, as far as it can. What may stand
// there is described at event.MessagePrefix. Errors do not quote what they complain about.
func parseMessage(content []byte, e *Event) error {
	*e = withDefaults
	end := bytes.IndexByte(content[:min(len(content), maxHeader+1)], '\n')
	if end < 0 {
		return errNoHeader
	}
	if !utf8.Valid(content[:end]) {
		return errUTF8
	}
	h := header{b: content[:end], e: e}
	if err := h.read(); err != nil {
		return err
	}
	e.Context = content[end+1:]
	switch {
	case len(e.Context) > event.MaxContextBytes:
		return fmt.Errorf("event_context %w", errLong)
	case !utf8.Valid(e.Context):
		return fmt.Errorf("event_context %w", errUTF8)
	case !json.Valid(e.Context):
		return fmt.Errorf("event_context %w", errNotJSON)
	}
	return nil
}

func setMessageTime(e *Event, _ byte, v []byte) error {
	var t time.Time
	if err := t.UnmarshalText(v); err != nil {
		return errRFC3339 // the cause would quote the value
	}
	us := t.UnixMicro()
	if us < minDateTime || us > maxDateTime {
		return errRange
	}
	e.DateTime = us
	return nil
}

// setMessageText makes a setter that has the limits of the outbox's column.
func setMessageText(set setter, most int) setter {
	return func(e *Event, format byte, v []byte) error {
		switch {
		case len(v) > most:
			return errLong
		case bytes.IndexByte(v, 0) >= 0:
			return errZero
		}
		return set(e, format, v)
	}
}
