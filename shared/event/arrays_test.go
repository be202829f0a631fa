package event_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
)

// That an array has no fields but those it reads publish_events concludes from lengths. So here
// are arrays of all forms, some with a field too many that has the length of what is missing
// elsewhere: each is taken as it is, or refused with the name of the first field that is wrong.
func TestPublishEventsSeesEveryField(t *testing.T) {
	t.Parallel()
	env := listening(t)
	const seed = 21
	random := rand.New(rand.NewPCG(seed, seed))
	taken, refused := 0, 0
	for range 600 {
		array, want, wrong := randomArray(random)
		_, err := env.Pool.Exec(t.Context(), "SELECT publish_events($1)", array)
		if wrong != "" {
			refused++
			require.ErrorContains(t, err, wrong, array)
			continue
		}
		taken++
		require.NoError(t, err, array)
		got := stored(t, env.Pool)
		require.Len(t, got, len(want), array)
		for i, e := range got {
			if key := want[i].Key; key != "" {
				assert.Equal(t, event.KeyByte(key), e.ID[15], array)
			}
			read := event.Event{Type: e.Type, Environment: e.Environment, Context: e.Context, MetadataVersion: e.MetadataVersion, Key: want[i].Key}
			assert.Equal(t, want[i], read, array)
		}
		_, err = env.Pool.Exec(t.Context(), "TRUNCATE outbox")
		require.NoError(t, err)
	}
	assert.Greater(t, taken, 100)
	assert.Greater(t, refused, 100)
}

// randomArray returns an array for publish_events, its events, and the beginning of the
// message of what is wrong with the first one that is, or "".
func randomArray(random *rand.Rand) (array string, events []event.Event, wrong string) {
	form := forms[random.IntN(len(forms))]
	faults := random.IntN(2) == 0
	var objects []string
	for n := range 1 + random.IntN(4) {
		e, fields := randomEvent(random)
		if faults && random.IntN(3) == 0 {
			var name string
			fields, name = spoil(random, fields)
			if wrong == "" {
				wrong = fmt.Sprintf("events[%d].%s", n, name)
			}
		}
		random.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
		for i := range fields {
			fields[i] = strings.Replace(fields[i], ":", form.colon, 1)
		}
		objects = append(objects, "{"+strings.Join(fields, form.comma)+"}")
		events = append(events, e)
	}
	return "[" + strings.Join(objects, form.between) + "]", events, wrong
}

// forms are those of JSON.stringify, jsonb, json_agg, json_build_object and pretty printers.
var forms = []struct{ colon, comma, between string }{
	{":", ",", ","}, {": ", ", ", ", "}, {":", ",", ", \n "}, {" : ", ", ", ", "}, {":\t", ",\r\n\t", "\n,\n"},
}

// randomEvent returns an event and its fields, "name":value.
func randomEvent(random *rand.Rand) (event.Event, []string) {
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	context := pick(`{}`, `{"a": 1}`, `[1,2]`, `7`, `null`, `true`, `"a b"`, `"\u001F"`, `"caf\u00e9 \/"`, `{"event_type":"x","b":[{"c":"d, \"e\":null"}]}`)
	e := event.Event{Type: pick("t", "order paid", "é"), Context: json.RawMessage(context), MetadataVersion: 1}
	fields := []string{`"event_type":"` + e.Type + `"`, `"event_context":` + context}
	if random.IntN(2) == 0 {
		e.Environment = pick("", "a b", `"`, "Bench")
		text, _ := json.Marshal(e.Environment) //nolint:errchkjson // a string
		fields = append(fields, `"environment":`+string(text))
	}
	if random.IntN(4) == 0 {
		e.MetadataVersion = 12
		fields = append(fields, `"metadata_version":12`)
	}
	if random.IntN(4) == 0 {
		e.Key = "order 42"
		fields = append(fields, `"event_key":"order 42"`)
	}
	if random.IntN(16) == 0 {
		context = `"` + strings.Repeat("x", 5000) + `"`
		e.Context, fields[1] = json.RawMessage(context), `"event_context":`+context
	}
	for _, name := range []string{"trace_context", "idempotency_key", "event_id", "event_date_time"} {
		if random.IntN(8) == 0 {
			fields = append(fields, `"`+name+`":null`)
		}
	}
	return e, fields
}

// spoil makes one field wrong, and returns its name. A value of another type has two bytes
// less than is expected of it, which others may fill.
func spoil(random *rand.Rand, fields []string) ([]string, string) {
	fields = slices.Clone(fields)
	switch random.IntN(10) {
	case 0:
		return append(fields, `"":`+strings.Repeat("1", 1+random.IntN(20))), `"" is not a field of an event`
	case 1:
		name := "x" + strings.Repeat("y", random.IntN(12))
		return append(fields, `"`+name+`":null`), name + " is not a field of an event"
	case 2:
		return append(fields, `"event_type":"t"`), "event_type is given twice"
	case 3:
		fields[0] = `"event_type":` + []string{"7", "true", "[]", `{"event_type":"t"}`}[random.IntN(4)]
		return fields, "event_type must be a string"
	case 4:
		return append(fields[:2], `"event_key":7`), "event_key must be a string"
	case 5:
		return append(fields[:2], `"event_date_time":20260101`), "event_date_time must be a string"
	case 6:
		return append(fields[:2], `"idempotency_key":7`), "idempotency_key must be a string"
	case 7:
		return append(fields[:2], `"trace_context":7`), "trace_context must be a string"
	case 8:
		return append(fields[:2], `"event_id":11111111111111111111111111111111`), "event_id must be a string"
	default:
		return append(fields[:2], `"metadata_version":"1"`), "metadata_version must be a number"
	}
}
