package ops

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// WriteText writes s for people: one screen, at most 100 columns.
func (s Status) WriteText(w io.Writer) error {
	var b strings.Builder
	s.head(&b)
	s.lag(&b)
	s.work(&b)
	s.databases(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// line writes a labelled line.
func line(b *strings.Builder, label, format string, args ...any) {
	fmt.Fprintf(b, "%-14s%s\n", label, clip(fmt.Sprintf(format, args...)))
}

// clip keeps errors from breaking the screen. It cuts the middle out: an error
// begins with what was tried and ends with why it failed.
func clip(text string) string {
	const most, end = 84, 50
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-end-1]) + "…" + string(runes[len(runes)-end:])
	}
	return text
}

func (s Status) head(b *strings.Builder) {
	state := strings.ToUpper(s.State)
	if s.Cause != "" {
		state += " (" + string(s.Cause) + ")"
	}
	if s.Started != nil {
		state += ", up " + duration(s.Time.Sub(*s.Started).Seconds())
	}
	line(b, "streamer", "%s, slot %s, version %s", state, s.SlotName, s.Version)
	for _, reason := range s.Reasons {
		line(b, "not ready", "%s", reason)
	}
	for _, what := range s.Degraded {
		line(b, "degraded", "%s", what)
	}
}

func (s Status) lag(b *strings.Builder) {
	fmt.Fprintf(b, "\n%-14s%12s%12s   %s\n", "behind", "WAL", "time", "position")
	for _, stage := range s.Lag.stages() {
		if stage.LSN == "" {
			fmt.Fprintf(b, "%-14s%12s%12s   %s\n", stage.name, "-", "-", "-")
			continue
		}
		age := "-"
		if stage.Seconds != nil {
			age = duration(*stage.Seconds)
			if stage.AtLeast {
				age = ">" + age
			}
		}
		fmt.Fprintf(b, "%-14s%12s%12s   %s\n", stage.name, size(stage.Bytes), age, stage.LSN)
	}
	fmt.Fprintf(b, "%-14s%12s%12s   %s\n\n", "buffered", size(s.Lag.Buffered.Bytes), "", several(s.Lag.Buffered.Rows, "event", "events"))
}

func (s Status) work(b *strings.Builder) {
	if s.Started != nil {
		line(b, "throughput", "%s events/s, %s/s (last %d s)", count(int64(math.Round(s.Throughput.Rows))),
			size(int64(s.Throughput.Bytes)), s.Throughput.Seconds)
		last := "none yet"
		if s.LastFlush != nil {
			last = duration(s.Time.Sub(*s.LastFlush).Seconds()) + " ago"
		}
		line(b, "last flush", "%s; %s in %s since the start", last,
			several(s.Totals.Flushed, "event", "events"), several(s.Totals.Flushes, "flush", "flushes"))
		line(b, "last error", "%s", s.errorText())
		if n := s.Totals.DoubleEncoded; n > 0 {
			line(b, "encoded twice", "%s since the start: `streamer doctor` says of which type", several(n, "context", "contexts"))
		}
	}
	if c := s.ClickHouse.ClickHouse; c != nil {
		line(b, "dead letters", "%s", count(int64(c.DeadLetters.Open))) //nolint:gosec // rows
	}
}

func (s Status) errorText() string {
	if s.LastError == nil {
		return "none"
	}
	e := s.LastError
	return fmt.Sprintf("%s ago, %s× %s: %s", duration(s.Time.Sub(e.Last).Seconds()), count(int64(e.Count)), e.Kind, e.Text)
}

func (s Status) databases(b *strings.Builder) {
	line(b, "slot", "%s", s.slotText())
	if s.Slot != nil {
		line(b, "WAL headroom", "%s", s.WALHeadroom.text())
	}
	if p := s.Postgres.Postgres; p != nil {
		line(b, "publication", "%s", p.Publication)
		for _, other := range p.Slots {
			switch {
			case other.Bookmark != "":
				line(b, "bookmark", "%s", other.bookmarkText())
			case other.Name != s.SlotName:
				line(b, "other slot", "%s: %s, retains %s", other.Name, other.activity(s.Time), size(other.RetainedBytes))
			}
		}
	}
	line(b, "outbox", "%s", s.outboxText())
	line(b, "PostgreSQL", "%s", s.postgresText())
	line(b, "ClickHouse", "%s", s.clickhouseText())
}

func (s Status) slotText() string {
	switch {
	case s.Slot == nil && s.Postgres.Postgres == nil:
		return "unknown"
	case s.Slot == nil && s.Lag.Flushed.LSN != "":
		return "missing, so events may be missing in ClickHouse: run `streamer doctor`"
	case s.Slot == nil:
		return "does not exist yet; `streamer doctor` checks whether that is right"
	case s.Slot.Lost():
		return fmt.Sprintf("lost (%s %s): run `streamer doctor`", s.Slot.WALStatus, s.Slot.InvalidationReason)
	}
	return fmt.Sprintf("%s, WAL %s", s.Slot.activity(s.Time), s.Slot.WALStatus)
}

func (s Slot) bookmarkText() string {
	if s.Lost() {
		return s.Bookmark + " is lost: PostgreSQL has removed its WAL"
	}
	return fmt.Sprintf("%s at %s, retains %s", s.Bookmark, s.Confirmed, size(s.RetainedBytes))
}

func (s Slot) activity(now time.Time) string {
	switch {
	case s.Active && s.Holder != "":
		return "active (" + s.Holder + ")"
	case s.Active:
		return "active"
	case s.InactiveSince != nil:
		return "inactive for " + duration(now.Sub(*s.InactiveSince).Seconds())
	default:
		return "inactive"
	}
}

func (h WALHeadroom) text() string {
	switch {
	case !h.Limited:
		return "unlimited: max_slot_wal_keep_size is not set, the disk is the limit"
	case h.Bytes <= 0:
		return "none: the next checkpoint may invalidate the slot"
	case h.Seconds == nil:
		return size(h.Bytes) + " until max_slot_wal_keep_size; never at the present rate"
	default:
		return fmt.Sprintf("%s until max_slot_wal_keep_size, in %s at the present rate", size(h.Bytes), duration(*h.Seconds))
	}
}

func (s Status) outboxText() string {
	o := s.Outbox
	if o.Error != "" {
		return o.Error
	}
	retired := 0
	for _, p := range o.Partitions {
		if p.State != "attached" {
			retired++
		}
	}
	text := fmt.Sprintf("%s (%s), %s ahead", several(int64(len(o.Partitions)), "partition", "partitions"), size(o.Bytes),
		several(int64(o.Ahead), "day", "days"))
	if s.Started != nil {
		text += ", " + retentionText(o.Retention)
	}
	if retired > 0 {
		text += fmt.Sprintf(", %d being retired", retired)
	}
	if o.Default {
		text += "; diehard_outbox_default holds rows"
	}
	return text
}

func retentionText(seconds float64) string {
	if seconds == 0 {
		return "no retention"
	}
	return "retention " + duration(seconds)
}

func (s Status) postgresText() string {
	p := s.Postgres
	if !p.Up {
		return "unreachable: " + p.Error
	}
	return fmt.Sprintf("%s, WAL end %s, clock %+d ms from ours", p.Version, s.Lag.WALEnd, int64(p.Skew*1000))
}

func (s Status) clickhouseText() string {
	c := s.ClickHouse
	if !c.Up {
		return "unreachable: " + c.Error
	}
	return fmt.Sprintf("%s, %s (%s) in %s", c.Version, several(int64(c.Rows), "row", "rows"), //nolint:gosec // rows
		size(int64(c.Bytes)), several(int64(c.Parts), "part", "parts")) //nolint:gosec // bytes and parts
}

func size(bytes int64) string { return humanize.IBytes(uint64(max(0, bytes))) }

func count(n int64) string { return humanize.Comma(n) }

// several writes n of something: 1 part, 1,234 parts.
func several(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// duration writes seconds with the two largest units that matter.
func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return twoUnits(d.Round(time.Second), time.Minute, "m", time.Second, "s")
	case d < 48*time.Hour:
		return twoUnits(d.Round(time.Minute), time.Hour, "h", time.Minute, "m")
	default:
		return twoUnits(d.Round(time.Hour), 24*time.Hour, "d", time.Hour, "h")
	}
}

// twoUnits leaves the smaller unit out when it is 0: 8m20s, 2h, 2d9h.
func twoUnits(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d%s", d/large, largeName)
	if rest := d % large / small; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, smallName)
	}
	return text
}
