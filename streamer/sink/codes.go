package sink

import (
	_ "embed" // for codes.txt
	"fmt"
	"strings"
)

// codeClass is what an error code says of the rows of an insert; see codes.txt. A code that
// is not there is unknown.
type codeClass uint8

const (
	unknown codeClass = iota
	transient
	fatal
	poison
)

var codeClasses = map[string]codeClass{"unknown": unknown, "transient": transient, "fatal": fatal, "poison": poison}

// errorCode is a line of codes.txt.
type errorCode struct {
	name       string
	class      codeClass
	textIsSafe bool
}

//go:embed codes.txt
var codesText string

var codes = readCodes(codesText)

// readCodes leaves out what is not a line of three or four fields; a test compares the table with
// ClickHouse's own.
func readCodes(text string) map[int32]errorCode {
	all := map[int32]errorCode{}
	for line := range strings.Lines(text) {
		var number int32
		var name, class string
		if n, _ := fmt.Sscan(line, &number, &name, &class); n == 3 {
			all[number] = errorCode{name, codeClasses[class], strings.HasSuffix(strings.TrimSpace(line), " text")}
		}
	}
	return all
}
