// Package doctor checks everything that the streamer needs of both databases,
// and everything that operators regret to have left as it was. Each finding says
// what is, what should be, and the statement that mends it. It changes nothing.
package doctor

import (
	"context"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/streamer/ops"
)

// Level of a Finding. The worst one is the exit code of `streamer doctor`.
type Level int

const (
	// OK needs nothing.
	OK Level = iota
	// Warning works today and will hurt some day.
	Warning
	// Error keeps the streamer from running, or rows from being safe.
	Error
)

// String is the name used in JSON.
func (l Level) String() string { return [...]string{"ok", "warning", "error"}[l] }

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is the result of one check.
type Finding struct {
	Where  string `json:"where"` // postgresql, clickhouse or both
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Is     string `json:"is"`
	Should string `json:"should,omitempty"` // empty when OK
	Mend   string `json:"mend,omitempty"`   // a statement or a command
}

// Patient is what is examined. All fields are required.
type Patient struct {
	Probe       *ops.Probe
	PostgresURL string
	ClickHouse  clickhouse.Config
}

// Examine runs every check. Checks of a database that does not answer are
// replaced by one finding that says so.
func Examine(ctx context.Context, p Patient) []Finding {
	var all []Finding
	pg, err := askPostgres(ctx, p)
	if err != nil {
		all = append(all, unreachable(err))
	} else {
		all = append(all, run("postgresql", postgresChecks, pg)...)
	}
	ch, err := askClickHouse(ctx, p, pg)
	if err != nil {
		all = append(all, Finding{"clickhouse", "connection", Error, clickhouse.Explain(p.ClickHouse, err).Error(), "an answer", "check CLICKHOUSE_HOST and the server"})
	} else {
		all = append(all, run("clickhouse", clickhouseChecks, ch)...)
	}
	if pg != nil && ch != nil {
		// Events land while we ask: only an end of the WAL that is read now lies behind them all.
		if now, err := p.Probe.AskPostgres(ctx); err != nil {
			all = append(all, unreachable(err))
		} else {
			all = append(all, run("both", togetherChecks, &together{pg, ch, now.WALEnd()})...)
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

// check judges one thing by what is known of type T.
type check[T any] struct {
	name  string
	judge func(facts *T) verdict
}

// verdict is a Finding without its place.
type verdict struct {
	level    Level
	is       string
	should   string
	mend     string
	noMatter bool // the check does not apply
}

func ok(is string) verdict { return verdict{is: is} }
func warn(is, should, mend string) verdict {
	return verdict{level: Warning, is: is, should: should, mend: mend}
}

func broken(is, should, mend string) verdict {
	return verdict{level: Error, is: is, should: should, mend: mend}
}
func noMatter() verdict { return verdict{noMatter: true} }

func run[T any](where string, checks []check[T], facts *T) []Finding {
	var list []Finding
	for _, c := range checks {
		v := c.judge(facts)
		if !v.noMatter {
			list = append(list, Finding{where, c.name, v.level, v.is, v.should, v.mend})
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
