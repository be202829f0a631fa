package event_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/event"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

type (
	UserCreated            struct{ Name string }
	HTTPRequestDone        struct{}
	OrderID                struct{}
	User2FAEnabled         struct{}
	Deleted[T any]         struct{ Was T }
	lowerCased             struct{}
	snake_cased            struct{} //nolint:revive // a name as it may be
	selfNamed              struct{}
	Ünïcode                struct{}
	X                      struct{}
	unmarshalable          struct{ C chan int }
	namedMap               map[string]int
	deepPointerTypeUnnamed = **UserCreated
)

func (selfNamed) EventType() string { return "billing.invoice_sent" }

func TestTypeIsTheSnakeCaseNameOfTheGoType(t *testing.T) {
	t.Parallel()
	var pointer deepPointerTypeUnnamed
	for want, payload := range map[string]any{
		"user_created":         UserCreated{},
		"http_request_done":    &HTTPRequestDone{},
		"order_id":             OrderID{},
		"user2_fa_enabled":     User2FAEnabled{},
		"deleted":              Deleted[UserCreated]{},
		"lower_cased":          lowerCased{},
		"snake_cased":          snake_cased{},
		"ünïcode":              Ünïcode{},
		"x":                    X{},
		"named_map":            namedMap{"a": 1},
		"billing.invoice_sent": selfNamed{},
	} {
		e, err := event.New(payload)
		require.NoError(t, err)
		assert.Equal(t, want, e.Type)
	}
	e, err := event.New(pointer)
	require.NoError(t, err)
	assert.Equal(t, "user_created", e.Type)
}

func TestNewFillsInWhatIsNotGiven(t *testing.T) {
	t.Parallel()
	before := time.Now()
	e, err := event.New(UserCreated{Name: "A & B"})
	require.NoError(t, err)
	assert.Equal(t, uuid.Version(7), e.ID.Version())
	assert.WithinRange(t, e.DateTime, before, time.Now())
	assert.Equal(t, int64(1), e.MetadataVersion)
	assert.Empty(t, e.Environment)
	assert.Empty(t, e.TraceContext)
	assert.JSONEq(t, `{"Name":"A & B"}`, string(e.Context))
}

func TestOptionsReplaceTheDefaults(t *testing.T) {
	t.Parallel()
	id, at := uuid.New(), time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	e, err := event.New(json.RawMessage(` {"a" : 1}`), event.WithType("x"), event.WithID(id), event.WithTime(at),
		event.WithEnvironment("Staging"), event.WithMetadataVersion(7), event.WithTraceContext(traceparent))
	require.NoError(t, err)
	assert.Equal(t, event.Event{
		ID: id, Type: "x", DateTime: at, Environment: "Staging",
		Context: json.RawMessage(` {"a" : 1}`), MetadataVersion: 7, TraceContext: traceparent,
	}, e)
}

func TestInvalidEventsAreRefused(t *testing.T) {
	t.Parallel()
	valid := event.Event{Type: "t", Context: json.RawMessage(`{}`)}
	require.NoError(t, valid.Validate())
	for name, c := range map[string]struct {
		change func(*event.Event)
		says   string
	}{
		"no type":                {func(e *event.Event) { e.Type = "" }, "the type is empty"},
		"long type":              {func(e *event.Event) { e.Type = strings.Repeat("x", 256) }, "the type has 256 bytes, more than 255"},
		"type not UTF-8":         {func(e *event.Event) { e.Type = "\xff" }, "the type is not UTF-8"},
		"zero byte in type":      {func(e *event.Event) { e.Type = "a\x00" }, "the type contains a control character"},
		"long environment":       {func(e *event.Event) { e.Environment = strings.Repeat("x", 256) }, "the environment has 256 bytes"},
		"environment not UTF-8":  {func(e *event.Event) { e.Environment = "\xff" }, "the environment is not UTF-8"},
		"no context":             {func(e *event.Event) { e.Context = nil }, "the context of t is not JSON"},
		"context not JSON":       {func(e *event.Event) { e.Context = json.RawMessage(`{"a":}`) }, "the context of t is not JSON"},
		"two values":             {func(e *event.Event) { e.Context = json.RawMessage(`{} {}`) }, "the context of t is not JSON"},
		"context not UTF-8":      {func(e *event.Event) { e.Context = json.RawMessage("\"\xff\"") }, "the context of t is not UTF-8"},
		"context too large":      {func(e *event.Event) { e.Context = text(event.MaxContextBytes + 1) }, "has 1048577 bytes, more than 1048576"},
		"negative version":       {func(e *event.Event) { e.MetadataVersion = math.MinInt64 }, "is negative"},
		"too long ago":           {func(e *event.Event) { e.DateTime = time.Date(1899, 12, 31, 0, 0, 0, 0, time.UTC) }, "between the years 1900 and 2299"},
		"too far away":           {func(e *event.Event) { e.DateTime = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }, "between the years 1900 and 2299"},
		"trace context nonsense": {func(e *event.Event) { e.TraceContext = "nonsense" }, "the trace context is not a W3C traceparent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := valid
			c.change(&e)
			err := e.Validate()
			require.ErrorIs(t, err, event.ErrInvalid)
			assert.ErrorContains(t, err, c.says)
			assert.Less(t, len(err.Error()), 200, "the context is not in the message")
		})
	}
}

func TestLargestEventIsValid(t *testing.T) {
	t.Parallel()
	e := event.Event{Type: strings.Repeat("x", event.MaxTypeBytes), Context: text(event.MaxContextBytes)}
	assert.NoError(t, e.Validate())
}

func TestNewRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	for name, payload := range map[string]any{
		"nothing": nil, "a type without a name": struct{ A int }{}, "a kind": 42, "a map": map[string]int{},
		"raw JSON without a type": json.RawMessage(`{}`), "a channel": unmarshalable{C: make(chan int)},
	} {
		_, err := event.New(payload)
		assert.ErrorIs(t, err, event.ErrInvalid, name)
	}
}

func TestValidTraceContext(t *testing.T) {
	t.Parallel()
	assert.True(t, event.ValidTraceContext(traceparent))
	for _, s := range []string{
		"", "00", traceparent + "0", strings.ToUpper(traceparent), "01" + traceparent[2:],
		strings.ReplaceAll(traceparent, "-", "_"),
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
	} {
		assert.False(t, event.ValidTraceContext(s), s)
	}
}

// text is a JSON string of n bytes.
func text(n int) json.RawMessage {
	return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`)
}
