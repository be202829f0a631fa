package pipeline

import (
	"fmt"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
	"diehard/streamer/replication"
)

// startAt returns where the stream must begin: at the commit that may have to be read
// once more, or at the operator's Config.StartLSN; 0 is the slot's confirmed position.
func (s *session) startAt(rec replication.IntentRecord, walEnd pglogrepl.LSN) (pglogrepl.LSN, error) {
	var in replication.Intent
	if rec.Intent != nil && s.sameHistory(rec) {
		in = *rec.Intent
	}
	again := in.After.LSN
	at := s.cfg.StartLSN
	if rec.UnprovedUntil != 0 { // all that the slot delivers again is to be looked for
		again = min(again, at)
	}
	if at == 0 {
		return again, nil
	}
	if err := s.checkStartLSN(in.After.LSN, walEnd); err != nil {
		return 0, err
	}
	if in.Through.LSN >= at { // it comes to the end of what it has begun first
		return again, nil
	}
	return at, nil
}

// firstPosition is the place before every row that the stream may bring: a range that
// begins there has no row of what is skipped, which a replay may write meanwhile.
func (s *session) firstPosition() decode.Position {
	return decode.Position{LSN: max(s.startedAt, s.slot.ConfirmedFlush)}
}

// later returns the position that lies behind the other.
func later(a, b decode.Position) decode.Position {
	if b.After(a) {
		return b
	}
	return a
}

// checkStartLSN is for the first session; those that follow go on from what was confirmed since.
func (s *session) checkStartLSN(known, walEnd pglogrepl.LSN) error {
	at, confirmed := s.cfg.StartLSN, s.slot.ConfirmedFlush
	switch {
	case s.p.startChecked && at <= walEnd: // the end may have gone back in a failover
		return nil
	case at < confirmed:
		return failure.Wrap(failure.Fatal, failure.Because(failure.Configuration, fmt.Errorf("--start-lsn %s lies before what the slot has confirmed, %s, and PostgreSQL does not go back: "+
			"start without it, and fill what is missing with `streamer replay --from-lsn %s` or `streamer replay --from-table`", at, confirmed, at)))
	case at > walEnd:
		return failure.Wrap(failure.Fatal, failure.Because(failure.Configuration, fmt.Errorf("--start-lsn %s lies beyond the end of the WAL, %s: events to come would be skipped", at, walEnd)))
	}
	if from := max(confirmed, known); at > from {
		s.log.Warn("skipping events: --start-lsn; `streamer replay --from-table` brings them back",
			"from_lsn", from.String(), "to_lsn", at.String(), "wal_bytes", uint64(at-from))
		s.skips = true
	}
	s.p.startChecked = true
	return nil
}
