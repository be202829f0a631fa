package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// report is a table: a line a contestant, a column a figure, medians over the rounds.
type report struct {
	name    string // of the benchmark
	title   string
	columns []string
	names   []string
	samples map[string][][]float64 // per contestant, per round
}

func newReport(name, title string, columns ...string) *report {
	return &report{name: name, title: title, columns: columns, samples: make(map[string][][]float64)}
}

func (r *report) add(name string, figures ...float64) {
	if _, ok := r.samples[name]; !ok {
		r.names = append(r.names, name)
	}
	r.samples[name] = append(r.samples[name], figures)
}

// column returns the rounds of one figure, sorted.
func (r *report) column(name string, i int) []float64 {
	var v []float64
	for _, s := range r.samples[name] {
		v = append(v, s[i])
	}
	slices.Sort(v)
	return v
}

// median of one figure.
func (r *report) median(name string, i int) float64 {
	v := r.column(name, i)
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// write prints the table in Markdown, which reads well as it is. where names the
// machine and the versions.
func (r *report) write(w io.Writer, rounds int, where string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n| | %s | vs first |\n|---|%s---:|\n", r.title, strings.Join(r.columns, " | "), strings.Repeat("---:|", len(r.columns)))
	for _, name := range r.names {
		fmt.Fprintf(&b, "| %s |", name)
		for i := range r.columns {
			v := r.column(name, i)
			fmt.Fprintf(&b, " %s (%s–%s) |", figure(r.median(name, i)), figure(v[0]), figure(v[len(v)-1]))
		}
		fmt.Fprintf(&b, " %.2f |\n", r.median(name, 0)/r.median(r.names[0], 0))
	}
	fmt.Fprintf(&b, "\nMedian (lowest–highest) of %d rounds; %s\n", rounds, where)
	_, err := io.WriteString(w, b.String())
	return err
}

func figure(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
