package doctor

import (
	"fmt"
	"io"
	"strings"
)

// marks are the levels at the start of a line.
var marks = [...]string{"ok", "WARN", "FAIL"}

// WriteText writes findings as text, grouped by database.
func WriteText(w io.Writer, findings []Finding) error {
	var b strings.Builder
	where := ""
	counts := [3]int{}
	for _, f := range findings {
		if f.Where != where {
			where = f.Where
			fmt.Fprintf(&b, "%s\n", where)
		}
		counts[f.Level]++
		row := func(mark, label, text string) {
			fmt.Fprintf(&b, "  %-4s  %-30s%s\n", mark, label, strings.Join(strings.Fields(text), " "))
		}
		row(marks[f.Level], f.Check, f.Actual)
		if f.Level != OK {
			row("", "  expected", f.Expected)
			row("", "  fix", f.Fix)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warnings, %d errors\n", counts[OK], counts[Warning], counts[Error])
	_, err := io.WriteString(w, b.String())
	return err
}
