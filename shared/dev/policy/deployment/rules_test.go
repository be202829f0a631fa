package deployment

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v2"
)

// unitTests is the part of promtool's format that the files in docker/prometheus/tests
// use: promtool test rules docker/prometheus/tests/*.yml runs them as well.
type unitTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []unitTest     `yaml:"tests"`
}

type unitTest struct {
	Name        string         `yaml:"name"`
	Interval    model.Duration `yaml:"interval"`
	InputSeries []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	Exprs []struct {
		Expr    string         `yaml:"expr"`
		At      model.Duration `yaml:"eval_time"`
		Samples []struct {
			Labels string  `yaml:"labels"`
			Value  float64 `yaml:"value"`
		} `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

func readUnitTests(t *testing.T) []unitTests {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "docker/prometheus/tests/*.yml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := make([]unitTests, len(files))
	for i, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, yaml.UnmarshalStrict(content, &all[i]), file)
		for n, rule := range all[i].RuleFiles {
			all[i].RuleFiles[n] = filepath.Join(filepath.Dir(file), rule)
		}
	}
	return all
}

func TestAlertsFireAndDoNotFire(t *testing.T) {
	for _, file := range readUnitTests(t) {
		for _, test := range file.Tests {
			t.Run(test.Name, func(t *testing.T) { test.run(t, file) })
		}
	}
}

func (u unitTest) run(t *testing.T, file unitTests) {
	t.Helper()
	var load strings.Builder
	fmt.Fprintf(&load, "load %s\n", u.Interval)
	for _, s := range u.InputSeries {
		fmt.Fprintf(&load, "  %s %s\n", s.Series, s.Values)
	}
	options := promqltest.LazyLoaderOpts{Parser: parser.NewParser(parser.Options{})}
	suite, err := promqltest.NewLazyLoader(load.String(), options)
	require.NoError(t, err)
	defer suite.Close()
	suite.SubqueryInterval = time.Duration(file.EvaluationInterval)

	manager := rules.NewManager(&rules.ManagerOptions{
		QueryFunc:    rules.EngineQueryFunc(suite.QueryEngine(), suite.Storage()),
		AppendableV2: suite.Storage(),
		Context:      t.Context(),
		NotifyFunc:   func(context.Context, string, ...*rules.Alert) {},
		Logger:       slog.New(slog.DiscardHandler),
		Parser:       options.Parser,
	})
	loaded, errs := manager.LoadGroups(time.Duration(u.Interval), labels.EmptyLabels(), "", nil, false, file.RuleFiles...)
	require.Empty(t, errs)
	groups := inOrder(loaded)
	for _, g := range groups {
		for _, r := range g.Rules() {
			if alert, ok := r.(*rules.AlertingRule); ok {
				alert.SetRestored(true) // without it there is no series ALERTS
			}
		}
	}
	last := model.Duration(0)
	for _, e := range u.Exprs {
		last = max(last, e.At)
	}
	for at := time.Unix(0, 0); !at.After(time.Unix(0, 0).Add(time.Duration(last))); at = at.Add(time.Duration(file.EvaluationInterval)) {
		suite.WithSamplesTill(at, func(err error) {
			require.NoError(t, err)
			for _, g := range groups {
				g.Eval(suite.Context(), at)
				for _, r := range g.Rules() {
					require.NoError(t, r.LastError(), r.Name())
				}
			}
		})
	}
	for _, e := range u.Exprs {
		query, err := suite.QueryEngine().NewInstantQuery(suite.Context(), suite.Queryable(), nil, e.Expr, time.Unix(0, 0).Add(time.Duration(e.At)))
		require.NoError(t, err, e.Expr)
		result := query.Exec(suite.Context())
		require.NoError(t, result.Err, e.Expr)
		got := []string{}
		vector, ok := result.Value.(promql.Vector)
		require.True(t, ok, "%s is no vector", e.Expr)
		for _, s := range vector {
			got = append(got, fmt.Sprintf("%s %g", s.Metric, s.F))
		}
		want := []string{}
		for _, s := range e.Samples {
			metric, err := options.Parser.ParseMetric(s.Labels)
			require.NoError(t, err)
			want = append(want, fmt.Sprintf("%s %g", metric, s.Value))
		}
		assert.ElementsMatch(t, want, got, "%s at %s", e.Expr, e.At)
	}
}

// inOrder returns the groups as the file has them: alerts read what recording rules wrote.
func inOrder(groups map[string]*rules.Group) []*rules.Group {
	names := make([]string, 0, len(groups))
	for name := range groups {
		names = append(names, name)
	}
	sort.Strings(names)
	sorted := make([]*rules.Group, len(names))
	for i, name := range names {
		sorted[i] = groups[name]
	}
	return sorted
}
