package decode

import (
	"bytes"
	"encoding/json"
	"fmt"

	"diehard/shared/event"
)

// header reads the first line of a message: a JSON object of texts and numbers.
// It does not allocate, unless a text is escaped.
type header struct {
	b    []byte
	at   int
	e    *Event
	seen uint8 // bits of the fields
}

// Bits of the fields that must be there.
const (
	bitVersion  = 1
	bitID       = 2
	bitType     = 4
	bitDateTime = 8
	bitsNeeded  = bitVersion | bitID | bitType | bitDateTime
)

// read takes the fields in any order. Those it does not know are for streamers to come.
func (h *header) read() error {
	if !h.next('{') {
		return errHeader
	}
	for first := true; !h.next('}'); first = false {
		if !first && !h.next(',') {
			return errHeader
		}
		key, ok := h.text()
		if !ok || !h.next(':') {
			return errHeader
		}
		if err := h.field(key); err != nil {
			return err
		}
	}
	if h.space(); h.at != len(h.b) {
		return errHeader
	}
	if missing := bitsNeeded &^ h.seen; missing != 0 {
		return fmt.Errorf("%s is missing", nameOfBit(missing))
	}
	return nil
}

func nameOfBit(missing uint8) string {
	switch {
	case missing&bitVersion != 0:
		return "v"
	case missing&bitID != 0:
		return "id"
	case missing&bitType != 0:
		return "event_type"
	default:
		return "event_date_time"
	}
}

var (
	setMessageType        = setMessageText(setType, event.MaxTypeBytes)
	setMessageEnvironment = setMessageText(setEnvironment, event.MaxEnvironmentBytes)
	setMessageTrace       = setMessageText(setTrace, event.MaxTypeBytes)
	setMessagePublishedBy = setMessageText(setPublishedBy, event.MaxPublishedByBytes)
)

// field reads the value of key.
func (h *header) field(key []byte) error {
	value, isText, ok := h.value()
	if !ok {
		return errHeader
	}
	var set setter
	wantsText := true
	switch string(key) {
	case "v":
		if string(value) != "1" || isText {
			return errForm
		}
		h.seen |= bitVersion
		return nil
	case "id":
		set, h.seen = setID, h.seen|bitID
	case "event_type":
		set, h.seen = setMessageType, h.seen|bitType
	case "event_date_time":
		set, h.seen = setMessageTime, h.seen|bitDateTime
	case "environment":
		set = setMessageEnvironment
	case "metadata_version":
		set, wantsText = setMetadataVersion, false
	case "trace_context":
		if string(value) == "null" && !isText {
			return nil
		}
		set = setMessageTrace
	case "published_by":
		set = setMessagePublishedBy
	default:
		return nil
	}
	err := errNotText
	if isText == wantsText {
		err = set(h.e, formatText, value)
	}
	if err != nil {
		return fmt.Errorf("%s %w", key, err)
	}
	return nil
}

// value reads a text, unquoted, or a number, a truth value or null as it is.
func (h *header) value() (v []byte, isText, ok bool) {
	h.space()
	if h.at < len(h.b) && h.b[h.at] == '"' {
		v, ok = h.text()
		return v, true, ok
	}
	start := h.at
	for h.at < len(h.b) && bytes.IndexByte([]byte(", \t\r}"), h.b[h.at]) < 0 {
		h.at++
	}
	v = h.b[start:h.at]
	return v, false, json.Valid(v) && v[0] != '[' && v[0] != '{'
}

// text reads a string.
func (h *header) text() ([]byte, bool) {
	if !h.next('"') {
		return nil, false
	}
	start, escaped := h.at, false
	for ; h.at < len(h.b); h.at++ {
		switch c := h.b[h.at]; {
		case c == '"':
			h.at++
			if escaped {
				return unescape(h.b[start-1 : h.at])
			}
			return h.b[start : h.at-1], true
		case c == '\\':
			escaped = true
			h.at++
		case c < ' ':
			return nil, false
		}
	}
	return nil, false
}

func unescape(quoted []byte) ([]byte, bool) {
	var s string
	err := json.Unmarshal(quoted, &s)
	return []byte(s), err == nil
}

// next reports whether c follows, and steps over it.
func (h *header) next(c byte) bool {
	h.space()
	if h.at == len(h.b) || h.b[h.at] != c {
		return false
	}
	h.at++
	return true
}

func (h *header) space() {
	for h.at < len(h.b) && (h.b[h.at] == ' ' || h.b[h.at] == '\t' || h.b[h.at] == '\r') {
		h.at++
	}
}
