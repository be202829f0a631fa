package httpapi

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/google/uuid"

	"diehard/api/events"
)

// eventFields parse the fields of an event. Each returns the problem, or "". null
// counts as absent, except as a context.
var eventFields = map[string]func(n *events.NewEvent, value json.RawMessage) string{
	"id": func(n *events.NewEvent, value json.RawMessage) string {
		const canonicalLength = 36
		text, problem := readString(value)
		if problem != "" || isNull(value) {
			return problem
		}
		id, err := uuid.Parse(text)
		if err != nil || len(text) != canonicalLength || id == uuid.Nil {
			return "must be a UUID"
		}
		n.ID = id
		return ""
	},
	"event_type": func(n *events.NewEvent, value json.RawMessage) (problem string) {
		n.Type, problem = readString(value)
		return problem
	},
	"event_date_time": func(n *events.NewEvent, value json.RawMessage) string {
		text, problem := readString(value)
		if problem != "" || isNull(value) {
			return problem
		}
		at, ok := parseTime(text)
		if !ok {
			return "must be a time such as 2026-11-24T20:15:00.123456Z"
		}
		n.DateTime = at
		return ""
	},
	"environment": func(n *events.NewEvent, value json.RawMessage) string {
		text, problem := readString(value)
		if problem == "" && !isNull(value) {
			n.Environment = &text
		}
		return problem
	},
	"event_key": func(n *events.NewEvent, value json.RawMessage) (problem string) {
		n.Key, problem = readString(value)
		return problem
	},
	"event_context": func(n *events.NewEvent, value json.RawMessage) string {
		n.Context = value
		return ""
	},
	"metadata_version": func(n *events.NewEvent, value json.RawMessage) string {
		if isNull(value) {
			return ""
		}
		if err := json.Unmarshal(value, &n.MetadataVersion); err != nil || n.MetadataVersion < 1 {
			return "must be a whole number, 1 or more"
		}
		return ""
	},
}

func isNull(value json.RawMessage) bool { return string(value) == "null" }

func readString(value json.RawMessage) (text, problem string) {
	if err := json.Unmarshal(value, &text); err != nil {
		return "", "must be a string"
	}
	return text, ""
}

// readEvent parses an event from text, which is valid JSON.
func readEvent(text []byte) events.NewEvent {
	var n events.NewEvent
	report := func(field, message string) {
		n.Unreadable = append(n.Unreadable, events.FieldError{Field: field, Message: message})
	}
	rest := bytes.TrimLeft(text, jsonSpace)
	if len(rest) == 0 || rest[0] != '{' {
		report("", "must be an object")
		return n
	}
	readFields(rest, "an event", func(name string, value json.RawMessage) (problem string, known bool) {
		read, known := eventFields[name]
		if !known {
			return "", false
		}
		return read(&n, value), true
	}, report)
	return n
}

// readFields calls read for each field of object; read returns the problem with the
// value and whether the name is known. Problems go to report, unknown and repeated
// names included, so that a misspelt field is not lost. noun says what object is.
func readFields(object []byte, noun string, read func(name string, value json.RawMessage) (problem string, known bool), report func(field, message string)) {
	seen := map[string]bool{}
	for rest := object[1:]; ; {
		var quoted, value json.RawMessage
		if quoted, rest = cutValue(rest); len(quoted) == 0 {
			return
		}
		value, rest = cutValue(rest)
		name, _ := readString(quoted)
		if seen[name] {
			report(truncate(name), "is given twice")
			continue
		}
		seen[name] = true
		switch problem, known := read(name, value); {
		case !known:
			report(truncate(name), "is not a field of "+noun)
		case problem != "":
			report(name, problem)
		}
	}
}

const (
	jsonSpace      = " \t\r\n"
	jsonSeparators = jsonSpace + ",:"
)

// cutValue cuts the next name or value off the inside of an object or array; value
// is empty at its end. text is valid JSON, so finding the end is enough, and several
// times as fast as a decoder.
func cutValue(text []byte) (value json.RawMessage, rest []byte) {
	text = bytes.TrimLeft(text, jsonSeparators)
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
			if !quoted && depth == 0 {
				return text[: i+1 : i+1], text[i+1:]
			}
		case quoted:
		case c == '{' || c == '[':
			depth++
		case depth == 0 && (c == '}' || c == ']' || strings.IndexByte(jsonSeparators, c) >= 0):
			return text[:i:i], text[i:]
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return text[: i+1 : i+1], text[i+1:]
			}
		}
	}
	return nil, nil
}

// truncate limits the length of a client's field name in an answer.
func truncate(name string) string {
	const limit = 40
	if runes := []rune(name); len(runes) > limit {
		return string(runes[:limit]) + "…"
	}
	return name
}
