package chserver

import (
	"regexp"
	"strconv"
	"strings"
)

// exception is an error that the client receives as a server exception.
type exception struct {
	code int32
	text string
}

func (e *exception) Error() string { return e.text }

// Codes of exceptions raised here rather than by the engine, as numbered by ClickHouse.
const (
	codeNoSuchColumn     = 16
	codeUnknownType      = 50
	codeNotImplemented   = 48
	codeUnknownSetting   = 115
	codeSameQueryRunning = 216
	codeQueryCancelled   = 394
	codeUnknown          = 1002
)

func newException(code int32, name, text string) *exception {
	return &exception{code: code, text: text + ". (" + name + ")"}
}

var engineCode = regexp.MustCompile(`^Code: (\d+)\. (?:DB::Exception: )?`)

// engineError reads the code out of an engine's message "Code: N. DB::Exception: … (NAME)".
func engineError(text string) error {
	m := engineCode.FindStringSubmatch(text)
	if m == nil {
		return &exception{code: codeUnknown, text: text}
	}
	code, err := strconv.ParseInt(m[1], 10, 32)
	if err != nil {
		code = codeUnknown
	}
	return &exception{code: int32(code), text: strings.TrimSpace(text[len(m[0]):])}
}
