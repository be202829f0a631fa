// Package doctor checks every precondition of the streamer in both databases, and
// warns of configurations that fail later. Each finding has the actual state, the
// expected one and the statement that fixes it. It is read-only.
package doctor

import (
	"context"
	"time"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/streamer/ops"
)

// Level of a Finding. The worst one is the exit code of `streamer doctor`.
type Level int

const (
	// OK needs nothing.
	OK Level = iota
	// Warning works now and can fail later.
	Warning
	// Error keeps the streamer from running, or puts rows at risk.
	Error
)

// String is the name used in JSON.
func (l Level) String() string { return [...]string{"ok", "warning", "error"}[l] }

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is the result of one check.
type Finding struct {
	Where    string `json:"where"` // postgresql, clickhouse or both
	Check    string `json:"check"`
	Level    Level  `json:"level"`
	Actual   string `json:"actual"`
	Expected string `json:"expected,omitempty"` // empty when OK
	Fix      string `json:"fix,omitempty"`      // a statement or a command
}

// Target is what Check examines. All fields are required.
type Target struct {
	Probe       *ops.Probe
	PostgresURL string
	ClickHouse  clickhouse.Config
	// InsertTimeout is CLICKHOUSE_INSERT_TIMEOUT.
	InsertTimeout time.Duration
}

// Check runs every check. Checks of a database that does not answer are
// replaced by one finding that says so.
func Check(ctx context.Context, p Target) []Finding {
	var all []Finding
	pg, err := readPostgres(ctx, p)
	if err != nil {
		all = append(all, unreachable(err))
	} else {
		all = append(all, run("postgresql", postgresChecks, pg)...)
		for _, w := range pg.warnings {
			all = append(all, Finding{"postgresql", w.Name, Warning, w.Problem, w.Expected, w.Fix})
		}
	}
	all = append(all, checkProfile(ctx, p)...)
	ch, err := readClickHouse(ctx, p, pg)
	if err != nil {
		all = append(all, Finding{"clickhouse", "connection", Error, clickhouse.Explain(p.ClickHouse, err).Error(), "an answer", "check CLICKHOUSE_HOST and the server"})
	} else {
		all = append(all, run("clickhouse", clickhouseChecks, ch)...)
	}
	if pg != nil && ch != nil {
		// Events are written meanwhile: only a WAL end read now is past all of them.
		if now, err := p.Probe.AskPostgres(ctx); err != nil {
			all = append(all, unreachable(err))
		} else {
			all = append(all, run("both", bothChecks, &both{pg, ch, now.WALEnd()})...)
		}
	}
	return all
}

func unreachable(err error) Finding {
	return Finding{"postgresql", "connection", Error, err.Error(), "an answer", "check DATABASE_URL and the server"}
}

// Worst is the highest level among findings.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Level)
	}
	return worst
}

// check evaluates one condition on facts of type T.
type check[T any] struct {
	name string
	eval func(facts *T) result
}

// result is a Finding without Where and Check.
type result struct {
	level         Level
	actual        string
	expected      string
	fix           string
	notApplicable bool
}

func ok(actual string) result { return result{actual: actual} }
func warn(actual, expected, fix string) result {
	return result{level: Warning, actual: actual, expected: expected, fix: fix}
}

func failed(actual, expected, fix string) result {
	return result{level: Error, actual: actual, expected: expected, fix: fix}
}
func notApplicable() result { return result{notApplicable: true} }

func run[T any](where string, checks []check[T], facts *T) []Finding {
	var list []Finding
	for _, c := range checks {
		v := c.eval(facts)
		if !v.notApplicable {
			list = append(list, Finding{where, c.name, v.level, v.actual, v.expected, v.fix})
		}
	}
	return list
}

// pending counts the migrations that were not run.
func pending(list []migrations.Status) int {
	n := 0
	for _, m := range list {
		if !m.Applied() {
			n++
		}
	}
	return n
}
