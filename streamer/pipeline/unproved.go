package pipeline

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/batch"
	"diehard/streamer/replication"
)

const (
	// unprovedMargin is how long before the record a transaction may have begun that was
	// committed behind it: the outbox knows when transactions began.
	unprovedMargin = time.Hour
	// backlogMargin is the same for the last commit before the record. It is short, because
	// that may be old, and what is older still may have been deleted.
	backlogMargin = time.Minute
	// maxUnproved bounds the events that are missing at one look. More of them are a
	// backlog: the next look comes when that is written.
	maxUnproved = 100_000
)

// unproved says that it is not known what the slot has delivered. One case is left by a failover: its
// slot stands beyond what the record and the tables show. The record of a confirmation is
// itself WAL behind the position, so a standby can have the slot's position and not the
// record; or something else read the slot. The other is a publication that was
// changed, and may not have sent what was committed meanwhile: nothing is confirmed then.
//
// So the outbox's events since then are compared with ClickHouse by id: those that
// are missing have to arrive before the stream reaches the WAL's end at the time of the look.
type unproved struct {
	since       time.Time
	publication bool
	upTo        pglogrepl.LSN // the next look comes when everything before it is durable
	missing     []uuid.UUID   // at the last look
	leftOut     map[uuid.UUID]bool
}

func (s *session) newUnproved() *unproved {
	if s.record.UnprovedSince == nil {
		return nil
	}
	return &unproved{since: *s.record.UnprovedSince, publication: s.control.PublicationChanged()}
}

// noteChangedPublication says since when a publication that was changed is to be compared.
func (s *session) noteChangedPublication() {
	if !s.control.PublicationChanged() {
		return
	}
	if since := s.record.WrittenAt.Add(-unprovedMargin); s.record.UnprovedSince == nil {
		s.record.UnprovedSince = &since
	}
	s.log.Warn("the publication is not the one that was recorded with the slot: comparing the events published since with ClickHouse before anything is confirmed",
		"publication", s.cfg.Origin.PublicationName(), "since", *s.record.UnprovedSince)
}

// leaveOut keeps rows out of the comparison: the slot delivers them, and they are reported.
func (u *unproved) leaveOut(rows []batch.Skipped) {
	if u == nil {
		return
	}
	if u.leftOut == nil {
		u.leftOut = make(map[uuid.UUID]bool)
	}
	for _, row := range rows {
		u.leftOut[row.ID] = true
	}
}

// confirms reports whether positions may be confirmed.
func (u *unproved) confirms() bool { return u == nil || !u.publication }

// checkUnproved looks once more, when it is time to, and ends the comparison when nothing is missing.
//
// Errors: failure.Fatal when events are missing that the stream does not bring.
func (w *writer) checkUnproved(ctx context.Context, durable pglogrepl.LSN) error {
	u := w.unproved
	if u == nil || durable < u.upTo {
		return nil
	}
	still, err := w.stillMissing(ctx, u.missing)
	if err != nil {
		return err
	}
	still = slices.DeleteFunc(still, func(id uuid.UUID) bool { return u.leftOut[id] })
	switch n := len(still); {
	case u.upTo != 0 && n > 0:
		return u.missed(w.s.cfg, still)
	case u.upTo != 0 && n == 0 && len(u.missing) < maxUnproved:
		return w.proved(ctx)
	}
	return w.findMissing(ctx)
}

// findMissing notes which events are missing now, and how far the stream must come to bring them.
func (w *writer) findMissing(ctx context.Context) error {
	u := w.unproved
	if u.publication {
		over, err := w.s.control.OlderTransactionsOver(ctx)
		if err != nil || !over { // they may have written what was not sent, which no look finds yet
			return err
		}
	}
	u.missing = nil
	// Each page has a time limit, and not the whole, which may be a large outbox.
	err := w.s.control.PublishedSince(ctx, replication.Published{Since: u.since, Open: u.publication}, func(ids []uuid.UUID) error {
		var missing []uuid.UUID
		err := w.s.within(ctx, func(ctx context.Context) (err error) {
			missing, err = w.s.sink.MissingEvents(ctx, ids)
			return err
		})
		u.missing = append(u.missing, missing...)
		if err == nil && len(u.missing) >= maxUnproved {
			return replication.ErrEnough
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(u.missing) == 0 {
		return w.proved(ctx)
	}
	if u.upTo, err = w.s.control.WALEnd(ctx); err != nil {
		return err
	}
	// An idle server's stream does not come to the end of its WAL without another record.
	rec := w.s.record
	rec.UnprovedSince = &u.since
	if err := w.replaceRecord(ctx, rec); err != nil {
		return err
	}
	w.s.log.Info("events of the outbox are not in ClickHouse yet; waiting for the stream to deliver them", "events", len(u.missing), "before_lsn", u.upTo.String())
	return nil
}

func (w *writer) stillMissing(ctx context.Context, ids []uuid.UUID) (missing []uuid.UUID, err error) {
	err = w.s.untilAnswered(ctx, "events by id", func(ctx context.Context) error {
		missing, err = w.s.sink.MissingEvents(ctx, ids)
		return err
	})
	return missing, err
}

// missed says which events the slot does not deliver, and how to go on.
func (u *unproved) missed(cfg Config, missing []uuid.UUID) error {
	cause, why := failure.SlotLost, "the slot stood beyond what was recorded after the failover, because another program read it or events were lost"
	if u.publication {
		cause, why = failure.Publication, fmt.Sprintf("publication %s was dropped, recreated or changed for a while and did not send them", cfg.Origin.PublicationName())
	}
	if cfg.Origin.LocalOnly {
		why += "; with REPLICATION_ORIGIN = none, events that a subscription wrote are among them until the other streamer has delivered them"
	}
	return failure.Wrap(failure.Fatal, failure.Because(cause, fmt.Errorf("events are missing in ClickHouse that slot %s does not deliver any more, at least %d, one of them %s: %s. "+
		"Run `streamer slot accept`, which lets the stream go on from here, and `streamer replay --from-table`, which delivers them", cfg.Origin.SlotName(), len(missing), missing[0], why)))
}

// proved ends the comparison. The record's proof comes last: it shows that the publication did
// not change again.
func (w *writer) proved(ctx context.Context) error {
	if w.unproved.publication {
		err := w.s.within(ctx, func(ctx context.Context) error { return w.s.control.AcceptPublication(ctx) })
		if err != nil {
			return err
		}
	}
	w.unproved = nil
	rec := w.s.record
	rec.UnprovedSince = nil
	if err := w.writeRecord(ctx, rec); err != nil {
		return err
	}
	w.s.log.Info("all events that were compared are in ClickHouse")
	return nil
}
