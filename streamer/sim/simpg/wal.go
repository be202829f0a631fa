// Package simpg is a model of PostgreSQL for the simulation: the WAL as a list of
// transactions, logical slots, sessions, timelines, and the real wire protocol in
// front of them. It knows the statements of the streamer and no others.
package simpg

import (
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
)

// Event is a row of the outbox.
type Event struct {
	ID      [16]byte
	Type    string
	Context string
	// WAL is how many bytes its change takes in the WAL: fewer than Context has, where
	// it is compressed.
	WAL int
	// LSN is the change's own position, which says nothing about the order of commits.
	LSN pglogrepl.LSN
}

// record is a committed transaction, or WAL without one.
type record struct {
	commit  pglogrepl.LSN // start of the commit record
	end     pglogrepl.LSN
	at      time.Time
	xid     uint32
	events  []Event
	changes []change
}

// change is what a transaction made of a row; row is nil when it deleted it.
type change struct {
	table, key string
	row        Row
}

// Row is a row of a table that the streamer keeps in PostgreSQL.
type Row map[string]any

// tables are the rows by table and key.
type tables map[string]map[string]Row

func (t tables) apply(changes []change) {
	for _, c := range changes {
		if t[c.table] == nil {
			t[c.table] = make(map[string]Row)
		}
		if c.row == nil {
			delete(t[c.table], c.key)
			continue
		}
		t[c.table][c.key] = c.row
	}
}

// slot is a logical replication slot.
type slot struct {
	name      string
	confirmed pglogrepl.LSN
	past      []pglogrepl.LSN // what it had confirmed before, oldest first
	active    *session
}

// keepPast is how many older positions of a slot a standby or a crash may bring back.
const keepPast = 8

func (s *slot) advance(to pglogrepl.LSN) {
	if to <= s.confirmed {
		return
	}
	s.past = append(s.past, s.confirmed)
	s.past = s.past[max(0, len(s.past)-keepPast):]
	s.confirmed = to
}

const (
	firstLSN = 0x1_0000_28
	// commitSize is a commit record's.
	commitSize = 0x30
)

// append adds a transaction with so many bytes of changes before its commit record.
func (s *Server) append(changes int, r record) record {
	s.xid++
	r.commit = s.end + pglogrepl.LSN(changes) //nolint:gosec // a size
	r.end = r.commit + commitSize
	r.at, r.xid = time.Now(), s.xid
	s.wal = append(s.wal, r)
	s.end = r.end
	s.tables.apply(r.changes)
	s.changed.Broadcast()
	return r
}

// Commit is where a transaction of the application was committed.
type Commit struct{ LSN, End pglogrepl.LSN }

// Publish commits events in one transaction. The changes of a concurrent one were
// written before the commit of the transaction before it, to which its own is adjacent.
func (s *Server) Publish(events []Event, concurrent bool) Commit {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.end
	changes := 0
	for i := range events {
		events[i].LSN = at + pglogrepl.LSN(changes)
		if concurrent {
			events[i].LSN = at - commitSize - pglogrepl.LSN(len(events)-i) //nolint:gosec // sizes
			continue
		}
		changes += events[i].WAL
	}
	r := s.append(changes, record{events: events})
	return Commit{r.commit, r.end}
}

// Other writes WAL that is of no interest to the streamer.
func (s *Server) Other(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.append(size, record{})
}

// End is the end of the WAL.
func (s *Server) End() pglogrepl.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}

// Since counts the records behind lsn.
func (s *Server) Since(lsn pglogrepl.LSN) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.wal {
		if r.commit >= lsn {
			n++
		}
	}
	return n
}

// Survives reports whether the commit at lsn is in the WAL of the present timeline.
func (s *Server) Survives(lsn pglogrepl.LSN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(lsn) >= 0
}

// find returns the index of the record whose commit is at lsn, -1 if there is none.
func (s *Server) find(lsn pglogrepl.LSN) int {
	i, found := slices.BinarySearchFunc(s.wal, lsn, func(r record, lsn pglogrepl.LSN) int {
		switch {
		case r.commit < lsn:
			return -1
		case r.commit > lsn:
			return 1
		}
		return 0
	})
	if !found {
		return -1
	}
	return i
}

// Failover promotes a standby that lacks the last so many records, with the slot as
// it was so many confirmations ago. It returns the events that are lost.
func (s *Server) Failover(lost, older int) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := max(0, len(s.wal)-lost)
	var gone []Event
	for _, r := range s.wal[keep:] {
		gone = append(gone, r.events...)
	}
	s.wal = s.wal[:keep]
	s.end = s.base
	if keep > 0 {
		s.end = s.wal[keep-1].end
	}
	s.rebuild()
	s.branch()
	s.retreat(older)
	s.endSessions()
	return gone
}

// branch begins a timeline at the end of the WAL. A standby that had not come to a
// switch of timelines yet was still on the one before it.
func (s *Server) branch() {
	from := s.timeline
	for i, h := range s.history {
		if h.lsn > s.end {
			from, s.history = h.timeline, s.history[:i]
			s.abandoned = true
			break
		}
	}
	s.history = append(s.history, switchPoint{from, s.end})
	s.newest++
	s.timeline = s.newest
}

// Abandoned reports whether the primary never was on a timeline that others have been on.
func (s *Server) Abandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}

// Crash restarts the server on its timeline: slots fall back to what was on disk.
func (s *Server) Crash(older int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retreat(older)
	s.endSessions()
}

// retreat sets the slots back; none may stand beyond the WAL.
func (s *Server) retreat(older int) {
	for name, slot := range s.slots {
		slot.active = nil // its session ends
		for range older {
			slot.back()
		}
		for slot.confirmed > s.end {
			if !slot.back() {
				delete(s.slots, name) // the standby never had it
				break
			}
		}
	}
}

func (s *slot) back() bool {
	if len(s.past) == 0 {
		return false
	}
	s.confirmed, s.past = s.past[len(s.past)-1], s.past[:len(s.past)-1]
	return true
}

func (s *Server) rebuild() {
	s.tables = s.initial()
	for _, r := range s.wal {
		s.tables.apply(r.changes)
	}
}

// ForeignReader moves the slot over so many transactions or to the end of the WAL, as another
// tool that reads it does, if no session holds it and a streamer has claimed it once. It
// reports whether anything was taken.
func (s *Server) ForeignReader(name string, transactions int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.slots[name]
	if slot == nil || slot.active != nil || slot.confirmed >= s.end || s.tables[tableIntent][name] == nil {
		return false
	}
	to := s.end
	for _, r := range s.wal {
		if r.end <= slot.confirmed || len(r.events) == 0 {
			continue
		}
		if transactions--; transactions == 0 {
			to = r.end
		}
	}
	slot.advance(to)
	return true
}
