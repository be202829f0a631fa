package ops

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"diehard/shared/settings"
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
	if s.Started != nil {
		state += ", up " + duration(s.Time.Sub(*s.Started).Seconds())
	}
	line(b, "streamer", "%s, slot %s, version %s", state, s.SlotName, s.Version)
	for _, reason := range s.Reasons {
		line(b, "not ready", "%s", reason)
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
		line(b, "runway", "%s", s.Runway.text())
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
		return "GONE, and events that it kept may be missing in ClickHouse: run `streamer doctor`"
	case s.Slot == nil:
		return "does not exist; `streamer doctor` says whether that is right"
	case s.Slot.Lost():
		return fmt.Sprintf("LOST (%s %s): run `streamer doctor`", s.Slot.WALStatus, s.Slot.InvalidationReason)
	}
	return fmt.Sprintf("%s, WAL %s", s.Slot.activity(s.Time), s.Slot.WALStatus)
}

func (s Slot) bookmarkText() string {
	if s.Lost() {
		return s.Bookmark + " is LOST: PostgreSQL has removed its WAL"
	}
	return fmt.Sprintf("%s at %s, retains %s", s.Bookmark, s.ConfirmedLSN, size(s.RetainedBytes))
}

func (s Slot) activity(now time.Time) string {
	switch {
	case s.Active && s.Holder != "":
		return "held by " + s.Holder
	case s.Active:
		return "held"
	case s.InactiveSince != nil:
		return "nobody reads it since " + duration(now.Sub(*s.InactiveSince).Seconds())
	default:
		return "nobody reads it"
	}
}

func (r Runway) text() string {
	switch {
	case !r.Limited:
		return "unlimited: max_slot_wal_keep_size is not set, the disk is the limit"
	case r.Bytes <= 0:
		return "USED UP: the next checkpoint may end the slot"
	case r.Seconds == nil:
		return size(r.Bytes) + " of WAL until max_slot_wal_keep_size; not at the present rate"
	default:
		return fmt.Sprintf("%s of WAL until max_slot_wal_keep_size, in %s at the present rate", size(r.Bytes), duration(*r.Seconds))
	}
}

func (s Status) outboxText() string {
	o := s.Outbox
	if o.Error != "" {
		return o.Error
	}
	leaving := 0
	for _, p := range o.Partitions {
		if p.State != "attached" {
			leaving++
		}
	}
	text := fmt.Sprintf("%s (%s), %s ahead", several(int64(len(o.Partitions)), "partition", "partitions"), size(o.Bytes),
		several(int64(o.Ahead), "day", "days"))
	if s.Started != nil {
		text += ", kept " + forHowLong(o.Retention)
	}
	if leaving > 0 {
		text += fmt.Sprintf(", %d on their way out", leaving)
	}
	if o.Default {
		text += "; outbox_default holds rows"
	}
	return text
}

func forHowLong(seconds float64) string {
	if seconds == 0 {
		return "for ever"
	}
	return duration(seconds)
}

func (s Status) postgresText() string {
	p := s.Postgres
	if !p.Up {
		return "DOES NOT ANSWER: " + p.Error
	}
	return fmt.Sprintf("%s, WAL end %s, clock %+d ms from ours", p.Version, s.Lag.WALEnd, int64(p.Skew*1000))
}

func (s Status) clickhouseText() string {
	c := s.ClickHouse
	if !c.Up {
		return "DOES NOT ANSWER: " + c.Error
	}
	return fmt.Sprintf("%s, %s (%s) in %s", c.Version, several(int64(c.Rows), "row", "rows"), //nolint:gosec // rows
		size(int64(c.Bytes)), several(int64(c.Parts), "part", "parts")) //nolint:gosec // bytes and parts
}

func size(bytes int64) string {
	text := settings.Bytes(bytes).String()
	i := strings.LastIndexAny(text, "0123456789") + 1
	return text[:i] + " " + text[i:]
}

// count writes 1234567 as 1,234,567.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

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
		return strings.TrimSuffix(d.Round(time.Second).String(), "0s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}
