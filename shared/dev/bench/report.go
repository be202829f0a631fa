package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// report is a table of medians over the rounds: one line per contestant, one column
// per figure.
type report struct {
	name    string // of the benchmark
	title   string
	columns []string
	names   []string
	// control ends the names of those that others are compared with, one by one; empty: the
	// first name is compared with all.
	control     string
	logarithmic bool                   // the picture's scale, from 1
	samples     map[string][][]float64 // per contestant, per round
	notes       []string
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

// describe names the figures of one round.
func (r *report) describe(figures []float64) string {
	var parts []string
	for i, v := range figures {
		parts = append(parts, r.columns[i]+" "+figure(v))
	}
	return strings.Join(parts, ", ")
}

// median of one figure.
func (r *report) median(name string, i int) float64 {
	v := r.column(name, i)
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// write prints the table in Markdown. description names the
// machine and the versions.
func (r *report) write(w io.Writer, rounds int, description string) error {
	var b strings.Builder
	ratio, line := " vs first |", "---:|"
	if r.control != "" {
		ratio, line = "", ""
	}
	fmt.Fprintf(&b, "\n## %s\n\n| | %s |%s\n|---|%s%s\n", r.title, strings.Join(r.columns, " | "), ratio, strings.Repeat("---:|", len(r.columns)), line)
	for _, name := range r.names {
		fmt.Fprintf(&b, "| %s |", name)
		for i := range r.columns {
			v := r.column(name, i)
			fmt.Fprintf(&b, " %s (%s–%s) |", figure(r.median(name, i)), figure(v[0]), figure(v[len(v)-1]))
		}
		if r.control == "" {
			fmt.Fprintf(&b, " %.2f |", r.median(name, 0)/r.median(r.names[0], 0))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\nMedian (lowest–highest) of %d rounds; %s\n", rounds, description)
	for _, note := range r.notes {
		fmt.Fprintf(&b, "- %s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
