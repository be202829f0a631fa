package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/clickhouse"
	"diehard/streamer/sink"
)

// limits are settings of a profile that make batches smaller, or end them.
var limits = []string{
	"max_memory_usage", "max_result_rows", "max_result_bytes", "max_rows_to_read", "max_bytes_to_read",
	"max_columns_to_read", "max_partitions_per_insert_block", "max_temporary_columns",
}

// setting is one of a user's, as system.settings has it.
type setting struct {
	name, value, byDefault, least, most string
	constant                            bool
}

// allows reports that a query may send a value.
func (s setting) allows(value string) bool {
	if s.value == value {
		return true
	}
	n, err := strconv.ParseFloat(value, 64)
	within := func(bound string, outside func(float64) bool) bool {
		b, unbound := strconv.ParseFloat(bound, 64)
		return err != nil || unbound != nil || !outside(b)
	}
	return !s.constant && within(s.least, func(b float64) bool { return n < b }) && within(s.most, func(b float64) bool { return n > b })
}

// checkProfile looks for what the user's profile forbids that the streamer sends, and for its limits. It
// asks without the streamer's settings: otherwise nothing would be answered. Nil when ClickHouse does not answer.
func checkProfile(ctx context.Context, p Target) []Finding {
	ctx, cancel := context.WithCancel(ctx) // with a deadline clickhouse-go would send max_execution_time
	defer cancel()
	defer time.AfterFunc(readTimeout, cancel).Stop()
	options, err := clickhouse.Options(p.ClickHouse)
	if err != nil {
		return nil
	}
	sent := options.Settings
	maps.Copy(sent, sink.InsertSettings())
	maps.Copy(sent, sink.NewerInsertSettings)
	sent["max_execution_time"] = int(p.InsertTimeout.Seconds()) + 5
	profiles, list, err := readProfile(ctx, options, slices.Concat(slices.Collect(maps.Keys(sent)), limits))
	if err != nil {
		return nil
	}
	return run("clickhouse", []check[[]setting]{{"profile", func(list *[]setting) result {
		var refused, limited []string
		for _, s := range *list {
			value, ours := sent[s.name]
			switch {
			case ours && !s.allows(fmt.Sprint(value)):
				refused = append(refused, fmt.Sprintf("%s = %v", s.name, value))
			case !ours && s.value != s.byDefault && s.value != "0":
				limited = append(limited, s.name+" = "+s.value)
			}
		}
		switch {
		case refused != nil:
			return failed("profile "+profiles+" does not allow "+strings.Join(refused, ", "), "what the streamer sends with its queries, so that no profile changes an answer",
				"remove the constraints on these settings from the profile, or give the streamer's user another one")
		case limited != nil:
			return ok("profile " + profiles + ", which limits " + strings.Join(limited, ", "))
		}
		return ok("profile " + profiles + " allows what the streamer sends, and sets no limit")
	}}}, &list)
}

func readProfile(ctx context.Context, options *ch.Options, names []string) (profiles string, list []setting, err error) {
	options.Settings = nil
	conn, err := ch.Open(options)
	if err != nil {
		return "", nil, err
	}
	defer conn.Close()
	if err := conn.QueryRow(ctx, "SELECT arrayStringConcat(currentProfiles(), ', ')").Scan(&profiles); err != nil {
		return "", nil, err
	}
	rows, err := conn.Query(ctx, `SELECT name, value, default, ifNull(toString(min), ''), ifNull(toString(max), ''), readonly = 1
		FROM system.settings WHERE has({names:Array(String)}, name) ORDER BY name`, ch.Named("names", names))
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s setting
		var constant uint8
		if err := rows.Scan(&s.name, &s.value, &s.byDefault, &s.least, &s.most, &constant); err != nil {
			return "", nil, err
		}
		s.constant = constant == 1
		list = append(list, s)
	}
	return profiles, list, rows.Err()
}
