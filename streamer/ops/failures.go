package ops

import (
	"sync"
	"time"

	"diehard/shared/failure"
	"diehard/shared/telemetry"
)

// maxFailures is how many different errors are remembered.
const maxFailures = 20

// Failure is an error that was retried, or a row of the dead-letter table.
type Failure struct {
	Kind  string    `json:"kind"` // clickhouse, session, dead letter or materialized view
	Class string    `json:"class"`
	Text  string    `json:"text"` // without secrets and payloads
	Count int       `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// failures remembers the last errors; the same one again is counted. Safe for
// concurrent use.
type failures struct {
	mu   sync.Mutex
	list []Failure // the latest last
}

func (f *failures) note(kind string, class failure.Class, err error) {
	text, now := telemetry.Redact(err.Error()), time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	found := Failure{Kind: kind, Class: class.String(), Text: text, First: now}
	for i, known := range f.list {
		if known.Kind == kind && known.Text == text {
			found = known
			f.list = append(f.list[:i], f.list[i+1:]...)
			break
		}
	}
	found.Last = now
	found.Count++
	if len(f.list) == maxFailures {
		f.list = append(f.list[:0], f.list[1:]...)
	}
	f.list = append(f.list, found)
}

// latest returns what is remembered, the latest first.
func (f *failures) latest() []Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Failure, 0, len(f.list))
	for i := len(f.list) - 1; i >= 0; i-- {
		list = append(list, f.list[i])
	}
	return list
}
