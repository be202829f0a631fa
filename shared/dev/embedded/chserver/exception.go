package chserver

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// exception is an error that the client receives as a server exception.
type exception struct {
	code proto.Error
	text string
}

func (e *exception) Error() string { return e.text }

func newException(code proto.Error, name, text string) *exception {
	return &exception{code: code, text: text + ". (" + name + ")"}
}

var engineCode = regexp.MustCompile(`^Code: (\d+)\. (?:DB::Exception: )?`)

// engineError reads the code out of an engine's message "Code: N. DB::Exception: … (NAME)".
func engineError(text string) error {
	m := engineCode.FindStringSubmatch(text)
	if m == nil {
		return &exception{code: proto.ErrUnknownException, text: text}
	}
	code, err := strconv.ParseInt(m[1], 10, 32)
	if err != nil {
		code = int64(proto.ErrUnknownException)
	}
	return &exception{code: proto.Error(code), text: strings.TrimSpace(text[len(m[0]):])}
}
