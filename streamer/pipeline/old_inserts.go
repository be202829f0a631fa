package pipeline

import (
	"context"
	"fmt"
	"time"

	"diehard/streamer/sink"
)

// oldInsertsPoll is the time between two looks at the inserts of another timeline.
const oldInsertsPoll = 500 * time.Millisecond

// waitForOldInserts waits until every insert that was registered before this timeline
// began is over by its time limit, and until no node that can be asked runs one.
func (s *session) waitForOldInserts(ctx context.Context) error {
	if err := s.noteWait(ctx); err != nil {
		return err
	}
	over := s.p.newTimeline.since.Add(sink.InsertBound(s.insertTimeout()))
	s.log.Info("the record is new, or from another timeline or server: waiting until earlier inserts have passed their time limit",
		"record", fmt.Sprintf("%s/%d", s.record.SystemID, s.record.Timeline), "server", fmt.Sprintf("%s/%d", s.source.SystemID, s.history.Timeline),
		"wait", time.Until(over).Round(time.Second))
	prefix := sink.Source{SystemID: s.record.SystemID, Slot: s.cfg.Origin.SlotName()}.QueryPrefix()
	if err := s.pause(ctx, max(oldInsertsPoll, time.Until(over))); err != nil {
		return err
	}
	return s.waitUntilNoneRuns(ctx, prefix)
}

// noteWait has a successor wait, too, that has not seen the older timeline: a new record does not name
// it. The events since the record was made are its slot's.
func (s *session) noteWait(ctx context.Context) error {
	rec := s.record
	if !s.sameHistory(rec) || rec.UnprovedSince != nil {
		return nil
	}
	rec.UnprovedSince = &rec.WrittenAt
	return s.writeRecord(ctx, rec)
}

// insertTimeout is the longest time limit of inserts that may be under way: our own, or that
// of a predecessor with another setting.
func (s *session) insertTimeout() time.Duration {
	if d := s.predecessorTimeout; d > s.cfg.InsertTimeout && time.Now().Before(s.claimedAt.Add(sink.InsertBound(d))) {
		return d
	}
	return s.cfg.InsertTimeout
}

// waitUntilNoneRuns waits until no node that can be asked runs an insert whose id begins
// with prefix: a time limit does not end a commit that waits for its disk or Keeper.
func (s *session) waitUntilNoneRuns(ctx context.Context, prefix string) error {
	for said := false; ; said = true {
		var r sink.Running
		err := s.untilAnswered(ctx, "running inserts", func(ctx context.Context) (err error) {
			r, err = s.sink.Running(ctx, prefix)
			return err
		})
		if err != nil {
			return err
		}
		if r.Inserts == 0 {
			if r.Unknown != "" {
				s.log.Warn("some nodes of ClickHouse do not say what they run; their inserts count as over after the time limit", "unknown", r.Unknown)
			}
			return nil
		}
		if !said {
			s.log.Warn("inserts are beyond their time limit and still running (system.processes); waiting for them", "inserts", r.Inserts)
		}
		if err := s.pause(ctx, oldInsertsPoll); err != nil {
			return err
		}
	}
}
