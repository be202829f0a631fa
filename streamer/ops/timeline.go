package ops

import (
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
)

// maxMarks bounds a timeline: more than an hour at one mark a second.
const maxMarks = 4096

// timeline maps positions of the WAL to times, by PostgreSQL's clock. It turns a
// distance in bytes into one in time. Not safe for concurrent use.
type timeline struct {
	marks []mark // ascending in both
}

type mark struct {
	lsn pglogrepl.LSN
	at  time.Time
}

// add notes that the WAL had reached lsn at the given time. What is not later
// than the last mark in both is of no use and ignored.
func (t *timeline) add(lsn pglogrepl.LSN, at time.Time) {
	if n := len(t.marks); n > 0 {
		last := &t.marks[n-1]
		if lsn < last.lsn || !at.After(last.at) {
			return
		}
		if lsn == last.lsn {
			// The WAL stood still. What comes next was written after this moment.
			if n > 1 && t.marks[n-2].lsn == lsn {
				last.at = at
				return
			}
		}
	}
	if len(t.marks) == maxMarks {
		t.marks = append(t.marks[:0], t.marks[maxMarks/4:]...)
	}
	t.marks = append(t.marks, mark{lsn, at})
}

// reached returns when the WAL grew beyond lsn. ok is false for an lsn before
// the first mark; for one at or behind the last it is that mark's time.
func (t *timeline) reached(lsn pglogrepl.LSN) (at time.Time, ok bool) {
	if len(t.marks) == 0 || lsn < t.marks[0].lsn {
		return time.Time{}, false
	}
	i, _ := slices.BinarySearchFunc(t.marks, lsn, func(m mark, lsn pglogrepl.LSN) int {
		if m.lsn <= lsn {
			return -1
		}
		return 1
	})
	before := t.marks[i-1] // the last mark at or before lsn
	if i == len(t.marks) {
		return before.at, true
	}
	after := t.marks[i]
	share := float64(lsn-before.lsn) / float64(after.lsn-before.lsn)
	return before.at.Add(time.Duration(share * float64(after.at.Sub(before.at)))), true
}
