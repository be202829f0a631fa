package deployment

import (
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v2"
)

// foreign are metrics that others than the streamer give; diehard_slot_* come from slots.yml.
var foreign = map[string]bool{
	"up": true, "ALERTS": true, "process_start_time_seconds": true, "node_filesystem_avail_bytes": true,
	"http_request_duration_seconds_count": true, "http_request_duration_seconds_bucket": true, "diehard_api_events_total": true,
}

// alertContext is what the rules are checked against.
type alertContext struct {
	metrics map[string]bool // without _bucket, _sum and _count
	states  map[string]bool // of diehard_streamer_state
	runbook string
	url     string // of the runbook
	fires   map[string]bool
	silent  map[string]bool
}

func newAlertContext(t *testing.T) alertContext {
	t.Helper()
	c := alertContext{metrics: map[string]bool{}, states: map[string]bool{}, runbook: string(read(t, "docker/prometheus/runbook.md")), fires: map[string]bool{}, silent: map[string]bool{}}
	// A test of package ops keeps this list complete.
	for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(string(read(t, "streamer/README.md")), -1) {
		c.metrics["diehard_streamer_"+name[1]] = true
	}
	var queries map[string]struct {
		Metrics []map[string]struct{ Usage string }
	}
	require.NoError(t, yaml.Unmarshal(read(t, "docker/prometheus/slots.yml"), &queries))
	for query, q := range queries {
		for _, metric := range q.Metrics {
			for column := range metric {
				c.metrics[query+"_"+column] = true
			}
		}
	}
	names := regexp.MustCompile(`return \[\.\.\.\]string\{(.*)\}\[s\]`).FindSubmatch(read(t, "streamer/pipeline/progress.go"))
	require.NotNil(t, names, "the names of the streamer's states")
	for name := range strings.SplitSeq(string(names[1]), ", ") {
		c.states[strings.Trim(name, `"`)] = true
	}
	// A failed and a stuck stream are states of the monitor's.
	for _, name := range regexp.MustCompile(`(?m)^\t(?:Failed|Stuck) = "(\w+)"$`).FindAllSubmatch(read(t, "streamer/ops/trouble.go"), -1) {
		c.states[string(name[1])] = true
	}
	source := regexp.MustCompile(`(?m)^ARG SOURCE=(\S+)$`).FindSubmatch(read(t, "docker/Dockerfile"))
	require.NotNil(t, source, "docker/Dockerfile says where the sources are")
	c.url = string(source[1]) + "/blob/main/docker/prometheus/runbook.md#"
	for _, file := range readUnitTests(t) {
		for _, test := range file.Tests {
			alert, _, _ := strings.Cut(test.Name, ":")
			for _, e := range test.Exprs {
				assert.Contains(t, e.Expr, `alertname="`+alert+`"`, test.Name)
				c.fires[alert] = c.fires[alert] || len(e.Samples) > 0
				c.silent[alert] = c.silent[alert] || len(e.Samples) == 0 || len(test.InputSeries) > 1
			}
		}
	}
	return c
}

func (c alertContext) check(content []byte) problems {
	var p problems
	groups, errs := rulefmt.Parse(content, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		p.check(false, "%v", errs)
		return p
	}
	recorded, seen := map[string]bool{}, map[string]bool{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			recorded[rule.Record] = true
		}
	}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			c.checkExpression(&p, rule, recorded)
			if rule.Alert == "" {
				continue
			}
			p.check(!seen[rule.Alert], "%s twice", rule.Alert)
			seen[rule.Alert] = true
			c.checkAlert(&p, rule)
		}
	}
	for alert := range c.fires {
		p.check(seen[alert], "a test of %s, which is no alert", alert)
	}
	return p
}

func (c alertContext) checkAlert(p *problems, rule rulefmt.Rule) {
	p.check(rule.For > 0, "%s has no for", rule.Alert)
	p.check(slices.Contains([]string{"info", "warning", "critical"}, rule.Labels["severity"]), "%s: severity %q", rule.Alert, rule.Labels["severity"])
	for _, name := range []string{"summary", "description"} {
		p.check(rule.Annotations[name] != "", "%s has no %s", rule.Alert, name)
	}
	p.check(rule.Annotations["runbook_url"] == c.url+strings.ToLower(rule.Alert), "%s: runbook_url %s", rule.Alert, rule.Annotations["runbook_url"])
	p.check(strings.Contains(c.runbook, "\n### "+rule.Alert+"\n"), "the runbook has no entry for %s", rule.Alert)
	p.check(c.fires[rule.Alert], "no test in which %s fires", rule.Alert)
	p.check(c.silent[rule.Alert], "no test in which %s does not fire", rule.Alert)
}

// checkExpression: a metric or a state that does not exist never fires, and looks like calm.
func (c alertContext) checkExpression(p *problems, rule rulefmt.Rule, recorded map[string]bool) {
	expression, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
	if err != nil {
		p.check(false, "%s: %v", rule.Alert, err)
		return
	}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		family := selector.Name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			family = strings.TrimSuffix(family, suffix)
		}
		p.check(c.metrics[family] || foreign[selector.Name] || recorded[selector.Name], "%s%s: there is no metric %s", rule.Alert, rule.Record, selector.Name)
		for _, matcher := range selector.LabelMatchers {
			if selector.Name != "diehard_streamer_state" || matcher.Name != "state" {
				continue
			}
			p.check(matcher.Type == labels.MatchEqual || matcher.Type == labels.MatchRegexp, "%s: %s", rule.Alert, matcher)
			for state := range strings.SplitSeq(matcher.Value, "|") {
				p.check(c.states[state], "%s: there is no state %s", rule.Alert, state)
			}
		}
		return nil
	})
}

func TestAlertsAreComplete(t *testing.T) {
	assert.Empty(t, newAlertContext(t).check(read(t, "docker/prometheus/alerts.yml")))
}

func TestMistakesInAlertsAreSeen(t *testing.T) {
	c, content := newAlertContext(t), string(read(t, "docker/prometheus/alerts.yml"))
	for name, change := range map[string][2]string{
		"an expression that does not parse": {"absent(diehard_streamer_state)", "absent(diehard_streamer_state"},
		"a state that does not exist":       {`state=~"streaming|retrying"`, `state=~"running|retrying"`},
		"a metric that does not exist":      {"diehard_streamer_slot_lost)", "diehard_streamer_slot_gone)"},
		"a column that no query has":        {"diehard_slot_retained_bytes", "diehard_slot_kept_bytes"},
		"a rule that is not recorded":       {"diehard:api_slow:ratio_rate1h >", "diehard:api_slow:ratio_rate2h >"},
		"no for":                            {"        for: 5m\n", ""},
		"no severity":                       {"severity: critical", "level: critical"},
		"another runbook":                   {"runbook.md#diehardslotlost", "runbook.md#slotlost"},
		"an alert without a test":           {"DieHardSlotLost", "DieHardSlotGone"},
		"a misspelt field":                  {"annotations:", "annotation:"},
		"a template that does not parse":    {"{{ $labels.cause }}", "{{ $labels.cause }"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.ReplaceAll(content, change[0], change[1])
			require.NotEqual(t, content, changed, "the rules have no %q", change[0])
			assert.NotEmpty(t, c.check([]byte(changed)))
		})
	}
}
