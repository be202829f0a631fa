package replication

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
)

// Written is how far ClickHouse holds this slot's events; zero when it holds none.
type Written struct {
	LSN      pglogrepl.LSN
	Timeline uint32 // of its WAL
}

// newSlot is what to do about a server that lacks events which were written: its WAL
// uses their positions a second time, so that the rows to come need another source.
const newSlot = "Check what it lost; then run `streamer slot drop --forget`, set REPLICATION_SLOT to a new name, start the streamer " +
	"and run `streamer replay --from-table`"

// DivergedHistory says what to do when the stream shows that the server's history is
// not that of the rows which were written.
func DivergedHistory(err error) error {
	return historyRefused("%w: it was restored from a backup or is a standby that was behind at its promotion. %s", err, newSlot)
}

// History is a server's timeline, and where its WAL left those before.
type History struct {
	Timeline uint32
	forks    []fork // oldest first
}

// fork is where the WAL left a timeline.
type fork struct {
	timeline uint32
	at       pglogrepl.LSN
}

// TimelineAt returns the timeline that the WAL at lsn belongs to. Position and timeline
// together name a piece of WAL: servers that have it agree on both.
func (h History) TimelineAt(lsn pglogrepl.LSN) uint32 {
	for _, f := range h.forks {
		if lsn < f.at {
			return f.timeline
		}
	}
	return h.Timeline
}

// History reads the history of timeline, which Identify has returned. Call it before Start.
//
// It sends the command TIMELINE_HISTORY.
func (c *Conn) History(ctx context.Context, timeline int32) (History, error) {
	h := History{Timeline: uint32(timeline)} //nolint:gosec // timelines are 32 bits wide
	if timeline <= 1 {
		return h, nil // the first timeline has no history
	}
	file, err := pglogrepl.TimelineHistory(ctx, c.pg, timeline)
	if err != nil {
		return h, classify(fmt.Errorf("read timeline history: %w", err))
	}
	h.forks, err = parseHistory(string(file.Content))
	return h, err
}

// parseHistory reads a timeline history file: a timeline and where it was left, per line.
func parseHistory(content string) (forks []fork, err error) {
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		var timeline uint32
		if _, err := fmt.Sscan(f[0], &timeline); err != nil {
			return nil, fmt.Errorf("parse timeline history: %w", err)
		}
		lsn, err := pglogrepl.ParseLSN(f[1])
		if err != nil {
			return nil, fmt.Errorf("parse timeline history: %w", err)
		}
		forks = append(forks, fork{timeline, lsn})
	}
	return forks, nil
}

// Check refuses a server whose WAL does not contain what was written: one restored
// from a backup, or a standby that was promoted too early. walEnd is the end of its WAL,
// read after w.
//
// Errors: failure.Fatal with the fix.
func (h History) Check(w Written, walEnd pglogrepl.LSN) error {
	if w.LSN > walEnd {
		return historyRefused("ClickHouse holds events up to %s, but this server's WAL ends at %s: it was restored from a backup or is a standby "+
			"that was behind at its promotion. %s", w.LSN, walEnd, newSlot)
	}
	if here := h.TimelineAt(w.LSN); w.Timeline != 0 && w.Timeline != here {
		return historyRefused("ClickHouse holds events up to %s of timeline %d, but this server's WAL is of timeline %d there: they were lost in a failover. %s",
			w.LSN, w.Timeline, here, newSlot)
	}
	return nil
}

func historyRefused(format string, args ...any) error {
	return failure.Because(failure.History, refuse(format, args...))
}
