package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
	"diehard/streamer/sink"
)

// beginning is where a session goes on.
type beginning struct {
	decoder     *decode.Decoder
	after       decode.Position     // rows up to here are written
	repeat      *replication.Intent // is written first, if it is not written yet; nil for none
	unproved    *unproved           // what must be found in ClickHouse; nil for nothing
	redelivered *redelivered        // the same, of what is skipped
}

// resume finds out where to go on, however long ClickHouse takes to answer.
func (s *session) resume(ctx context.Context) (*beginning, error) {
	at, err := s.findBeginning(ctx)
	return at, s.ifOurs(ctx, err)
}

// ifOurs keeps a refusal only when the slot is still ours after what was read for it: what a
// successor has done since looks like another history or a foreign reader.
func (s *session) ifOurs(ctx context.Context, refusal error) error {
	if failure.Of(refusal) != failure.Fatal {
		return refusal
	}
	err := s.within(ctx, func(ctx context.Context) error { return s.control.VerifyOwner(ctx, s.owner()) })
	if err == nil || failure.Of(err) == failure.Fatal {
		return refusal
	}
	return unproven(err)
}

func (s *session) findBeginning(ctx context.Context) (*beginning, error) {
	if s.slot.ConfirmedFlush > s.record.Confirm && s.sameHistory(s.record) {
		return nil, replication.RefuseForeignReader(s.slot, s.record)
	}
	if err := s.untilAnswered(ctx, "tables", func(ctx context.Context) error {
		if err := s.sink.CheckTables(ctx); err != nil {
			return err
		}
		if err := s.sink.CheckEngine(ctx, sink.InsertBound(s.insertTimeout())); err != nil {
			return err
		}
		return s.checkOverlap(ctx)
	}); err != nil {
		return nil, err
	}
	at, err := s.continueAfter(ctx)
	if err != nil {
		return nil, err
	}
	var messages pglogrepl.LSN
	err = s.within(ctx, func(ctx context.Context) (err error) {
		// Again, now that the slot is ours: of two that began together, one sees the other.
		if err = s.control.CheckResharding(ctx); err != nil {
			return err
		}
		if err = s.warnOfMissingShards(ctx); err != nil {
			return err
		}
		messages, err = s.control.NoteMessages(ctx, s.nextCommitLSN(at))
		return err
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("streaming", "slot", s.cfg.Origin.SlotName(), "publication", s.cfg.Origin.PublicationName(),
		"table", s.cfg.Tables.EventLog, "source", s.source.String(), "messages_from", messages.String(),
		"batch_rows", s.cfg.Limits.Rows, "batch_bytes", s.cfg.Limits.Bytes, "flush_interval", s.cfg.FlushInterval,
		"confirmed_lsn", s.slot.ConfirmedFlush.String(), "resume_after", replication.Position(at.after).String(), "unfinished", at.repeat != nil)
	at.decoder = decode.NewDecoder(at.after)
	if at.redelivered = s.newRedelivered(); at.redelivered != nil {
		at.decoder.IdentifySkipped()
	}
	at.decoder.AcceptMessagesFrom(messages)
	// The server begins with the commit of the last row that is written, if it does not begin behind it.
	if last := at.after; last.Seq > 0 && last.LSN > s.slot.ConfirmedFlush && last.LSN >= s.startedAt {
		at.decoder.ExpectCommit(at.after.LSN)
	}
	return at, nil
}

// nextCommitLSN is where the first transaction may be of which no row has a number yet.
func (s *session) nextCommitLSN(at *beginning) pglogrepl.LSN {
	last := at.after
	if at.repeat != nil {
		last = decode.Position(at.repeat.Through)
	}
	next := last.LSN
	if last.Seq > 0 { // it is a row's
		next++
	}
	return max(next, s.slot.ConfirmedFlush)
}

// continueAfter decides by the record that was claimed, or by the tables when the record is of another history.
func (s *session) continueAfter(ctx context.Context) (*beginning, error) {
	rec := s.record
	if rec.Intent == nil || !s.sameHistory(rec) {
		return s.continueByTables(ctx)
	}
	in := rec.Intent
	if in.Version != replication.IntentVersion {
		return nil, failure.Wrap(failure.Fatal, fmt.Errorf("the intent of slot %s has version %d and this streamer writes version %d: "+
			"start the version that wrote it once more, and stop it when it is idle", s.cfg.Origin.SlotName(), in.Version, replication.IntentVersion))
	}
	if in.LocalOnly != s.cfg.Origin.LocalOnly && s.slot.ConfirmedFlush <= in.Through.LSN {
		return nil, originChanged(in.LocalOnly)
	}
	if err := s.checkTablesEnd(ctx, *in); err != nil {
		return nil, err
	}
	switch {
	case in.Empty() || s.firstPosition().LSN > in.Through.LSN: // it is written, or skipped by --start-lsn
		return s.continueFrom(ctx, rec, later(decode.Position(in.Through), s.firstPosition()))
	case s.startedAt > in.After.LSN:
		return nil, errRecordChanged
	}
	return &beginning{after: decode.Position(in.After), repeat: in, unproved: s.newUnproved()}, nil
}

// originChanged refuses another REPLICATION_ORIGIN than that of a range which is not confirmed:
// the stream would have other rows there.
func originChanged(localOnly bool) error {
	was := "any"
	if localOnly {
		was = "none"
	}
	return failure.Wrap(failure.Fatal, failure.Because(failure.Configuration, fmt.Errorf("REPLICATION_ORIGIN was %s when the last events were written, and they are not confirmed yet: "+
		"start the streamer with %s once more, stop it when it is idle, and change the setting then", was, was)))
}

// continueFrom goes on behind after, and records that nothing before it is unfinished.
func (s *session) continueFrom(ctx context.Context, rec replication.IntentRecord, after decode.Position) (*beginning, error) {
	at := replication.Position(after)
	in := &replication.Intent{Version: replication.IntentVersion, After: at, Through: at, InsertTimeout: s.insertTimeout().Milliseconds(), LocalOnly: s.cfg.Origin.LocalOnly}
	if before := s.record.Intent; before != nil {
		in.Blocks, in.Unanswered = before.Blocks, before.Unanswered
	}
	rec.Intent = in
	if err := s.writeRecord(ctx, rec); err != nil {
		return nil, err
	}
	s.record = rec
	return &beginning{after: after, unproved: s.newUnproved()}, nil
}

// writeRecord makes rec durable, if the slot is still ours. The session's own record stays what it is.
func (s *session) writeRecord(ctx context.Context, rec replication.IntentRecord) error {
	return s.within(ctx, func(ctx context.Context) error {
		_, err := s.control.WriteIntent(ctx, s.owner(), rec)
		return err
	})
}

// errRecordChanged ends a session whose stream begins behind what has to be repeated.
var errRecordChanged = errors.New("the predecessor went on until its slot was taken; starting again")

// checkTablesEnd refuses tables with rows of another history, or with rows behind the intent.
func (s *session) checkTablesEnd(ctx context.Context, in replication.Intent) error {
	end, err := s.tablesEnd(ctx)
	if err != nil {
		return err
	}
	// Rows before the slot's position are its past: an insert for an earlier slot that was late.
	if end.After(decode.Position(in.Through)) && end.LSN >= s.slot.ConfirmedFlush {
		return replication.DivergedHistory(fmt.Errorf("ClickHouse holds events of slot %s up to %s, but PostgreSQL knows of none behind %s (diehard_intent)",
			s.cfg.Origin.SlotName(), replication.Position(end), in.Through))
	}
	return nil
}

// tablesEnd returns the last row of event_log, which must be in this server's history.
func (s *session) tablesEnd(ctx context.Context) (end decode.Position, err error) {
	var timeline uint32
	err = s.untilAnswered(ctx, "last position", func(ctx context.Context) (err error) {
		end, timeline, err = s.sink.Position(ctx)
		return err
	})
	if err != nil {
		return end, err
	}
	var walEnd pglogrepl.LSN
	err = s.within(ctx, func(ctx context.Context) (err error) {
		walEnd, err = s.control.WALEnd(ctx)
		return err
	})
	if err != nil {
		return end, err
	}
	return end, s.history.Check(replication.Written{LSN: end.LSN, Timeline: timeline}, walEnd)
}

// continueByTables goes on where the tables end: for a record of another timeline or
// server, which may be older than what ClickHouse has, or without one. Inserts of the old
// timeline are waited out, then the end of the tables is compared with this server's WAL.
func (s *session) continueByTables(ctx context.Context) (*beginning, error) {
	rec := s.record
	var err error
	switch {
	case !s.sameHistory(rec), rec.Intent == nil && (rec.UnprovedSince != nil || s.p.newTimeline.other):
		err = s.waitForOldInserts(ctx) // a new record may stand for one that a failover has lost
	case rec.Intent == nil:
		err = s.waitUntilNoneRuns(ctx, s.source.QueryPrefix())
	}
	if err != nil {
		return nil, err
	}
	end, err := s.tablesEnd(ctx)
	if err != nil {
		return nil, err
	}
	if end.LSN == 0 {
		if err := s.warnOfOtherServers(ctx); err != nil {
			return nil, err
		}
	}
	next := replication.IntentRecord{
		SystemID: s.source.SystemID, Timeline: s.history.Timeline, Epoch: rec.Epoch, Confirm: s.slot.ConfirmedFlush, UnprovedSince: rec.UnprovedSince,
	}
	if !s.sameHistory(rec) {
		if err := s.distrust(ctx, end, &next); err != nil {
			return nil, err
		}
	}
	return s.continueFrom(ctx, next, later(end, s.firstPosition()))
}

// distrust notes in next what has to be found in ClickHouse, because the record and the end of the tables
// prove nothing after a failover: something else may have read the slot, a streamer may have written
// behind that, and the failover may have lost every record of it.
func (s *session) distrust(ctx context.Context, end decode.Position, next *replication.IntentRecord) error {
	if end.After(s.firstPosition()) {
		next.UnprovedUntil = end.LSN
	}
	if s.record.SystemID == next.SystemID && next.Confirm <= s.record.Confirm {
		return nil
	}
	since, err := s.undeliveredSince(ctx, end)
	if err != nil {
		return err
	}
	if known := next.UnprovedSince; known == nil || since.Before(*known) {
		next.UnprovedSince = &since
	}
	return nil
}

// undeliveredSince is when the first event may have been published that is not delivered according to
// the record: shortly before that was written, or long before, if there was a backlog.
func (s *session) undeliveredSince(ctx context.Context, end decode.Position) (since time.Time, err error) {
	rec := s.record
	source := sink.Source{SystemID: rec.SystemID, Slot: s.cfg.Origin.SlotName()}
	if source == s.source && end.LSN == 0 {
		return time.Time{}, nil
	}
	var last time.Time
	err = s.untilAnswered(ctx, "time of the last commit", func(ctx context.Context) (err error) {
		last, err = s.sink.CommittedBefore(ctx, source, rec.Confirm)
		return err
	})
	if since = rec.WrittenAt.Add(-unprovedMargin); last.Add(-backlogMargin).Before(since) {
		since = last.Add(-backlogMargin)
	}
	return since, err
}

// warnOfOtherServers reports, before the first event of this server, events of the same
// slot on a server that this one does not descend from: its data may have been lost.
func (s *session) warnOfOtherServers(ctx context.Context) error {
	return s.untilAnswered(ctx, "other servers", func(ctx context.Context) error {
		sources, err := s.sink.OtherServers(ctx)
		predecessor := sink.Source{SystemID: s.record.SystemID, Slot: s.cfg.Origin.SlotName()}.String() // upgraded, or restored from a dump
		sources = slices.DeleteFunc(sources, func(source string) bool { return source == predecessor })
		if len(sources) > 0 {
			s.log.Error("event_log has events of this slot from another PostgreSQL server, which is not a predecessor of this one: was its data lost, or is DATABASE_URL wrong? "+
				"The streamer goes on with a source of its own", "slot", s.cfg.Origin.SlotName(), "known", s.source.String(), "unknown", sources,
				"fix", "if data was lost, restore PostgreSQL from a backup; if this server is the right one, nothing")
		}
		return err
	})
}

// untilAnswered repeats ask while ClickHouse does not answer it. Once it has, the state is what it was.
func (s *session) untilAnswered(ctx context.Context, what string, ask func(context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, maxWait
	state := s.progress.State()
	for attempt := 1; ; attempt++ {
		err := s.within(ctx, ask)
		switch {
		case err == nil:
			s.progress.setState(state)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case failure.Of(err) == failure.Fatal:
			return err
		}
		s.retrying(err)
		s.log.Warn("query of ClickHouse failed, retrying", "what", what, "attempt", attempt, "error", err)
		if err := s.pause(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// retrying notes an attempt that failed and will be repeated.
func (s *session) retrying(err error) {
	s.progress.setState(Retrying)
	s.progress.fail(err)
	s.observer.Retry(failure.Of(err), err)
}

// checkOverlap refuses a stream of what other slots have written, when the outbox was
// sharded differently. The server begins at what the slot has confirmed, or behind it.
func (s *session) checkOverlap(ctx context.Context) error {
	commits, err := s.sink.Commits(ctx)
	if err != nil {
		return err
	}
	begin := max(s.startedAt, s.slot.ConfirmedFlush)
	if s.record.Intent != nil && s.sameHistory(s.record) {
		begin = max(begin, s.record.Intent.Through.LSN)
	}
	return s.control.CheckOverlap(ctx, begin, commits)
}

func (s *session) warnOfMissingShards(ctx context.Context) error {
	missing, err := s.control.MissingShards(ctx)
	if err != nil || len(missing) == 0 {
		return err
	}
	s.log.Warn("other shards have no slot, so PostgreSQL keeps no WAL for them: run `streamer migrate up` or start their streamers, "+
		"then `streamer replay --from-table`", "slots", strings.Join(missing, ", "))
	return nil
}
