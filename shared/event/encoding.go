package event

import (
	"bytes"
	"encoding/json"
)

const jsonSpace = " \t\r\n"

// DoubleEncoded reports whether context is a JSON string that holds an object or array:
// the work of a program that encodes what its library encodes again. The outbox refuses
// such contexts where the setting diehard.refuse_double_encoding is on. It costs a look at
// the first bytes of anything else.
func DoubleEncoded(context []byte) bool {
	context = bytes.TrimLeft(context, jsonSpace)
	if len(context) == 0 || context[0] != '"' {
		return false
	}
	var text string
	if json.Unmarshal(context, &text) != nil {
		return false
	}
	inner := bytes.TrimLeft([]byte(text), jsonSpace)
	return len(inner) > 0 && (inner[0] == '{' || inner[0] == '[') && json.Valid(inner)
}
