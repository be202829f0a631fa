package crash_test

import (
	"sort"
	"strings"
)

// checkSamples demands of every sample that all rows below the confirmed LSN,
// as they are known now, were already there. After a failover the same positions are
// used again; those rows are of a later timeline.
func (l *ledger) checkSamples(w *environment, rows []row, origins []origin, samples []sample, r *result) {
	places := make([][]uint64, len(origins))
	for _, x := range rows {
		if l[x.producer] != nil && int(x.number) < len(l[x.producer]) && l[x.producer][x.number]&fleeting != 0 {
			continue
		}
		places[x.origin] = append(places[x.origin], x.lsn)
	}
	for _, s := range samples {
		now := uint64(0)
		for i, o := range origins {
			if o.timeline <= s.timeline && strings.HasSuffix(o.source, "/"+s.slot) {
				now += uint64(sort.Search(len(places[i]), func(n int) bool { return places[i][n] >= uint64(s.confirmed) }))
			}
		}
		if now != s.written {
			r.early++
			w.detail(r.early, "at %s %s was confirmed to PostgreSQL for %s, and %d of %d rows before it were there",
				s.at.UTC().Format("15:04:05.000"), s.confirmed, s.slot, s.written, now)
		}
	}
}
