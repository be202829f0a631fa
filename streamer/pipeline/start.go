package pipeline

import (
	"fmt"

	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
)

// startAt returns where the stream shall begin: behind what has landed, or at the
// operator's Config.StartLSN. The latter is judged once; the sessions that follow
// go on from there, or from what was confirmed since.
func (s *session) startAt(landed, walEnd pglogrepl.LSN) (pglogrepl.LSN, error) {
	at, confirmed := s.cfg.StartLSN, s.slot.ConfirmedFlush
	if at == 0 || s.startJudged {
		return max(landed, at), nil
	}
	switch {
	case at < confirmed:
		return 0, failure.Wrap(failure.Fatal, fmt.Errorf("--start-lsn %s lies before what the slot has confirmed, %s, and PostgreSQL does not go back: "+
			"start without it, and fill what is missing with `streamer replay --from-lsn %s` or `streamer replay --from-table`", at, confirmed, at))
	case at > walEnd:
		return 0, failure.Wrap(failure.Fatal, fmt.Errorf("--start-lsn %s lies beyond the end of the WAL, %s: events to come would be skipped", at, walEnd))
	}
	s.startJudged = true
	if from := max(confirmed, landed); at > from {
		s.log.Warn("skipping events on the operator's word; `streamer replay --from-table` brings them back",
			"from_lsn", from.String(), "to_lsn", at.String(), "wal_bytes", uint64(at-from))
	}
	return max(landed, at), nil
}
