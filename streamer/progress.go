package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// progress shows how far a long command is: a bar on a terminal, otherwise a
// log line now and then. Not safe for concurrent use.
type progress struct {
	what  string
	unit  func(uint64) string
	bar   io.Writer // nil without a terminal
	log   *slog.Logger
	began time.Time
	shown time.Time
	drawn bool
}

const (
	barEvery = 100 * time.Millisecond
	logEvery = 5 * time.Second
	barWidth = 30
)

func newProgress(what string, unit func(uint64) string, terminal io.Writer, log *slog.Logger) *progress {
	now := time.Now()
	p := &progress{what: what, unit: unit, log: log, began: now, shown: now}
	if onTerminal(terminal) {
		p.bar = terminal
	}
	return p
}

// report notes that done of total is done; total is 0 when unknown.
func (p *progress) report(done, total uint64) {
	now := time.Now()
	every := logEvery
	if p.bar != nil {
		every = barEvery
	}
	if now.Sub(p.shown) < every && (p.bar == nil || done < total) {
		return
	}
	p.shown = now
	elapsed := now.Sub(p.began)
	if p.bar == nil {
		p.log.Info("progress", "of", p.what, "done", p.unit(done), "total", p.unit(total), "left", left(done, total, elapsed))
		return
	}
	p.drawn = true
	_, _ = io.WriteString(p.bar, p.line(done, total, elapsed)) // without a bar the command still works
}

// line draws over the line before.
func (p *progress) line(done, total uint64, elapsed time.Duration) string {
	if total == 0 {
		return fmt.Sprintf("\r%s  %s\x1b[K", p.what, p.unit(done))
	}
	full := int(barWidth * min(done, total) / total) //nolint:gosec // at most barWidth
	return fmt.Sprintf("\r%s  [%s%s] %3d%%  %s of %s  %s left\x1b[K", p.what, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		100*min(done, total)/total, p.unit(done), p.unit(total), left(done, total, elapsed))
}

// left estimates the time to go.
func left(done, total uint64, elapsed time.Duration) string {
	if done == 0 || total == 0 {
		return "?"
	}
	d := time.Duration(float64(elapsed) * (float64(max(total, done)) - float64(done)) / float64(done))
	return d.Round(time.Second).String()
}

// end leaves the bar standing and goes on below it.
func (p *progress) end() {
	if p.drawn {
		_, _ = io.WriteString(p.bar, "\n")
	}
}

func eventCount(n uint64) string { return fmt.Sprintf("%d events", n) }
