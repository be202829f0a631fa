package doctor

import (
	"fmt"
	"io"
	"strings"
)

// marks show the level at the begin of a line.
var marks = [...]string{"ok", "WARN", "FAIL"}

// WriteText writes findings for people, and what to do, each in its place.
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
		row(marks[f.Level], f.Check, f.Is)
		if f.Level != OK {
			row("", "  should be", f.Should)
			row("", "  mend", f.Mend)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warnings, %d errors\n", counts[OK], counts[Warning], counts[Error])
	_, err := io.WriteString(w, b.String())
	return err
}
