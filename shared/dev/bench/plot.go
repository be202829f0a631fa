package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Sizes of a plot, in pixels.
const (
	plotWidth  = 860
	nameWidth  = 230
	barWidth   = 480 // of the largest value
	barHeight  = 16
	lineHeight = 24
	headHeight = 34
	plotMargin = 16
)

// plotted are the columns in the picture; the table has all.
var plotted = map[string][]int{
	"drain":    {0, 1, 4},
	"latency":  {0, 1, 4},
	"producer": {0, 1},
	"api":      {0},
	"growth":   {0, 4},

	"path-postgres":   {1},
	"path-clickhouse": {0},

	"questions": {0},
	"indexes":   {0, 1},

	"peers-drain":   {0, 1, 2, 4},
	"peers-latency": {0, 1, 3},
	"peers-exact":   {1, 2, 3},
}

// plot draws the medians as bars, with a line from the lowest to the highest
// round, and returns the path of the picture.
func (r *report) plot(dir string) (string, error) {
	path := filepath.Join(dir, r.name+".svg")
	return path, os.WriteFile(path, []byte(r.svg()), 0o644) //nolint:gosec // not secret
}

func (r *report) svg() string {
	columns := plotted[r.name]
	height := 2*plotMargin + headHeight + len(columns)*(headHeight+len(r.names)*lineHeight)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="system-ui, sans-serif" font-size="13">
<style>
  .back { fill: #ffffff } text { fill: #1f2328 } .quiet { fill: #59636e } .bar { fill: #8c959f } .ours { fill: #0a7d4f } .range { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) { .back { fill: #0d1117 } text { fill: #f0f6fc } .quiet { fill: #9198a1 } .bar { fill: #656c76 } .ours { fill: #2fbf85 } .range { stroke: #f0f6fc } }
</style>
<rect class="back" width="%[1]d" height="%[2]d" rx="6"/>
`, plotWidth, height)
	y := plotMargin + headHeight/2
	fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="15" font-weight="600">%s</text>`+"\n", plotMargin, y, html.EscapeString(r.title))
	for _, column := range columns {
		y += headHeight
		fmt.Fprintf(&b, `<text class="quiet" x="%d" y="%d">%s</text>`+"\n", plotMargin, y, html.EscapeString(r.columns[column]))
		y = r.bars(&b, column, y)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// bars draws one column below y and returns its lower end.
func (r *report) bars(b *strings.Builder, column, y int) int {
	most := 0.0
	for _, name := range r.names {
		v := r.column(name, column)
		if last := v[len(v)-1]; !math.IsNaN(last) {
			most = max(most, last)
		}
	}
	x := func(v float64) float64 { return nameWidth + barWidth*v/max(most, 1e-9) }
	if r.logarithmic {
		x = func(v float64) float64 { return nameWidth + barWidth*math.Log10(max(v, 1))/math.Log10(max(most, 10)) }
	}
	for _, name := range r.names {
		v, median := r.column(name, column), r.median(name, column)
		value := figure(median)
		if math.IsNaN(median) { // not known: no bar
			v, median = []float64{0}, 0
		}
		class := "bar"
		if r.control == "" && strings.HasPrefix(name, r.names[0]) || r.control != "" && !strings.HasSuffix(name, r.control) {
			class = "ours"
		}
		middle := float64(y) + lineHeight - barHeight/2
		fmt.Fprintf(b, `<text x="%d" y="%.1f">%s</text>`, plotMargin, middle+4, html.EscapeString(name))
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%.1f" width="%.1f" height="%d" rx="2"/>`, class, nameWidth, middle-barHeight/2, x(median)-nameWidth, barHeight)
		fmt.Fprintf(b, `<line class="range" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1[3]f"/>`, x(v[0]), x(v[len(v)-1]), middle)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", x(v[len(v)-1])+8, middle+4, value)
		y += lineHeight
	}
	return y
}
