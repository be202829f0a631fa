package simpg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
)

// walsender streams from a slot. One goroutine sends, the session's own reads.
type walsender struct {
	*session
	slot      *slot
	next      int           // index of the record to send
	from      pglogrepl.LSN // commits before it are not sent
	sent      pglogrepl.LSN
	flushed   pglogrepl.LSN // what the client says
	timeout   time.Duration
	heard     time.Time
	asked     bool // a reply was requested
	ping      bool // the client wants one
	replied   bool // something came since the last keepalive
	announced bool // the relation
}

var startReplication = regexp.MustCompile(`^START_REPLICATION SLOT "?(\w+)"? LOGICAL ([0-9A-F]+/[0-9A-F]+) `)

// startReplication streams until the connection ends, or CopyDone.
func (ses *session) startReplication(sql string) bool {
	w, err := ses.takeSlot(sql)
	if err != nil {
		ses.fail(err)
		ses.ready()
		return ses.flush() == nil
	}
	ses.out = append(ses.out, 'W', 0, 0, 0, 7, 0, 0, 0) // CopyBothResponse
	if ses.flush() != nil {
		return false
	}
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		w.stream()
	}()
	finished := w.replies()
	s := ses.server
	s.mu.Lock()
	w.stop()
	s.mu.Unlock()
	if !finished {
		ses.conn.Close()
		<-sending
		return false
	}
	<-sending
	ses.send(&pgproto3.CopyDone{})
	ses.send(&pgproto3.CommandComplete{CommandTag: []byte("COPY 0")})
	ses.ready()
	return ses.flush() == nil
}

// stop frees the slot and ends the sending.
func (w *walsender) stop() {
	if w.slot.active == w.session {
		w.slot.active = nil
	}
	w.sender = nil
	w.server.changed.Broadcast()
}

func (ses *session) takeSlot(sql string) (*walsender, error) {
	m := startReplication.FindStringSubmatch(sql)
	if m == nil {
		return nil, &sqlError{pgerrcode.SyntaxError, "the model does not know: " + sql}
	}
	at, err := pglogrepl.ParseLSN(m[2])
	if err != nil {
		return nil, &sqlError{pgerrcode.InvalidTextRepresentation, err.Error()}
	}
	s := ses.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses.gone {
		return nil, &sqlError{pgerrcode.AdminShutdown, "terminating connection due to administrator command"}
	}
	slot, err := s.slotOf(m[1])
	if err != nil {
		return nil, err
	}
	slot.active = ses
	s.taken++
	w := &walsender{session: ses, slot: slot, from: max(at, slot.confirmed), timeout: time.Minute, heard: time.Now()}
	w.sent = slot.confirmed
	if ms, err := strconv.Atoi(trimUnit(ses.options["wal_sender_timeout"])); err == nil {
		w.timeout = time.Duration(ms) * time.Millisecond
	}
	for w.next < len(s.wal) && s.wal[w.next].commit < w.from {
		w.next++
	}
	ses.sender = w
	return w, nil
}

func trimUnit(v string) string {
	for len(v) > 0 && v[len(v)-1] > '9' {
		v = v[:len(v)-1]
	}
	return v
}

// replies reads what the client sends; true after CopyDone.
func (w *walsender) replies() bool {
	for {
		msg, err := w.backend.Receive()
		if err != nil {
			return false
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			w.reply(m.Data)
		case *pgproto3.CopyDone:
			return true
		default:
			return false
		}
	}
}

// reply takes a standby status update. Only the flush position moves the slot, and
// nothing checks it, as in PostgreSQL.
func (w *walsender) reply(b []byte) {
	if len(b) < 34 || b[0] != 'r' {
		return
	}
	s := w.server
	s.mu.Lock()
	w.heard, w.asked, w.replied = time.Now(), false, true
	flush := pglogrepl.LSN(binary.BigEndian.Uint64(b[9:]))
	w.flushed = max(w.flushed, flush)
	moved := flush > w.slot.confirmed && w.slot.active == w.session
	if moved {
		w.slot.advance(flush)
	}
	w.ping = w.ping || b[33] != 0
	s.changed.Broadcast()
	report := s.Confirmed
	recorded, _ := s.tables[tableIntent][w.slot.name]["confirm_lsn"].(pglogrepl.LSN)
	s.mu.Unlock()
	if moved && report != nil {
		report(w.slot.name, flush, recorded)
	}
}

// stream sends transactions and keepalives until the session ends.
func (w *walsender) stream() {
	for {
		b, ok := w.step()
		if !ok {
			return
		}
		if !w.write(b) {
			w.server.mu.Lock()
			w.expire() // a walsender that cannot send ends
			w.server.mu.Unlock()
			return
		}
	}
}

// write waits for a client that does not read as long as it is heard of.
func (w *walsender) write(b []byte) bool {
	for len(b) > 0 {
		if w.timeout > 0 {
			_ = w.conn.SetWriteDeadline(time.Now().Add(w.timeout / 4))
		}
		n, err := w.conn.Write(b)
		b = b[n:]
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || w.expired()) {
			return false
		}
	}
	return true
}

// expired ends a session of which nothing was heard for too long.
func (w *walsender) expired() bool {
	s := w.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.gone || w.sender != w {
		return true
	}
	if w.timeout == 0 || time.Since(w.heard) < w.timeout {
		return false
	}
	w.expire()
	return true
}

// expire ends the session without a word, as PostgreSQL does.
func (w *walsender) expire() {
	w.stop()
	w.gone = true
	w.conn.Close()
}

// step waits until there is something to send.
func (w *walsender) step() ([]byte, bool) {
	s := w.server
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if w.gone || w.sender != w {
			return nil, false
		}
		silence := time.Since(w.heard)
		switch {
		case w.next < len(s.wal):
			return w.transaction(), true
		case w.timeout > 0 && silence >= w.timeout:
			w.expire()
			return nil, false
		case w.ping:
			w.ping = false
			return w.keepalive(false), true
		case w.timeout > 0 && silence >= w.timeout/2 && !w.asked:
			w.asked = true
			return w.keepalive(true), true
		case w.flushed < w.sent && w.replied:
			w.replied = false
			return w.keepalive(false), true
		}
		wake := w.timeout - silence
		if !w.asked {
			wake = w.timeout/2 - silence
		}
		if w.timeout == 0 {
			wake = time.Hour
		}
		timer := time.AfterFunc(wake, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		})
		s.changed.Wait()
		timer.Stop()
	}
}

// transaction sends the next record, and what is due besides in the middle of it.
func (w *walsender) transaction() []byte {
	r := w.server.wal[w.next]
	w.next++
	w.replied = true // the end of the WAL is worth a keepalive again
	defer func() { w.sent = r.end }()
	if len(r.events) == 0 {
		return nil
	}
	size := 400
	for _, e := range r.events {
		size += 300 + len(e.Context)
	}
	b := w.data(make([]byte, 0, size), r.commit, begin(r))
	for i, e := range r.events {
		if !w.announced {
			w.announced = true
			b = w.data(b, 0, relation())
		}
		if i == len(r.events)/2 && i > 0 { // in the middle of a transaction it reaches to the record before the commit
			b = copyData(b, keepaliveBody(max(w.sent, r.events[i].LSN), false))
		}
		b = w.data(b, e.LSN, insert(e, r.at))
	}
	return w.data(b, r.end, commit(r))
}

func (w *walsender) keepalive(reply bool) []byte {
	return copyData(nil, keepaliveBody(w.sent, reply))
}

func keepaliveBody(end pglogrepl.LSN, reply bool) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(end))
	b = binary.BigEndian.AppendUint64(b, micros(time.Now()))
	if reply {
		return append(b, 1)
	}
	return append(b, 0)
}

// data appends XLogData.
func (w *walsender) data(b []byte, at pglogrepl.LSN, msg []byte) []byte {
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, uint32(4+1+24+len(msg))) //nolint:gosec // far below the limit
	b = binary.BigEndian.AppendUint64(append(b, 'w'), uint64(at))
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint64(b, micros(time.Now()))
	return append(b, msg...)
}

func copyData(b, body []byte) []byte {
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)+4)) //nolint:gosec // far below the limit
	return append(b, body...)
}

func itoa(n int) string { return fmt.Sprint(n) }
