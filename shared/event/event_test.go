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
	const (
		noControl = "event_type must not have control characters, or spaces at its ends"
		years     = "event_date_time must be between the years 1900 and 2299"
	)
	valid := event.Event{Type: "t", Context: json.RawMessage(`{}`)}
	require.NoError(t, valid.Validate())
	for name, c := range map[string]struct {
		change func(*event.Event)
		says   string
	}{
		"no type":                {func(e *event.Event) { e.Type = "" }, "event_type must have 1 to 255 bytes: use a named Go type or WithType"},
		"long type":              {func(e *event.Event) { e.Type = strings.Repeat("x", 256) }, "event_type must have 1 to 255 bytes"},
		"type not UTF-8":         {func(e *event.Event) { e.Type = "\xff" }, "event_type must be UTF-8"},
		"zero byte in type":      {func(e *event.Event) { e.Type = "a\x00" }, noControl},
		"space before type":      {func(e *event.Event) { e.Type = " t" }, noControl},
		"long environment":       {func(e *event.Event) { e.Environment = strings.Repeat("x", 256) }, "environment must have at most 255 bytes"},
		"environment not UTF-8":  {func(e *event.Event) { e.Environment = "\xff" }, "environment must be UTF-8"},
		"line in environment":    {func(e *event.Event) { e.Environment = "a\u0085b" }, "environment must not have control characters"},
		"long key":               {func(e *event.Event) { e.IdempotencyKey = strings.Repeat("x", 256) }, "idempotency_key must have 1 to 255 bytes"},
		"key not UTF-8":          {func(e *event.Event) { e.IdempotencyKey = "\xff" }, "idempotency_key must be UTF-8"},
		"tab in key":             {func(e *event.Event) { e.IdempotencyKey = "a\tb" }, "idempotency_key must not have control characters"},
		"no context":             {func(e *event.Event) { e.Context = nil }, "event_context is missing"},
		"context not JSON":       {func(e *event.Event) { e.Context = json.RawMessage(`{"a":}`) }, "event_context must be JSON"},
		"two values":             {func(e *event.Event) { e.Context = json.RawMessage(`{} {}`) }, "event_context must be JSON"},
		"context not UTF-8":      {func(e *event.Event) { e.Context = json.RawMessage("\"\xff\"") }, "event_context must be UTF-8"},
		"context too large":      {func(e *event.Event) { e.Context = text(event.MaxContextBytes + 1) }, "event_context must have at most 1048576 bytes"},
		"negative version":       {func(e *event.Event) { e.MetadataVersion = math.MinInt64 }, "metadata_version must be 1 or more"},
		"too long ago":           {func(e *event.Event) { e.DateTime = time.Date(1899, 12, 31, 0, 0, 0, 0, time.UTC) }, years},
		"too far away":           {func(e *event.Event) { e.DateTime = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }, years},
		"trace context nonsense": {func(e *event.Event) { e.TraceContext = "nonsense" }, "trace_context must be a W3C traceparent of version 00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := valid
			c.change(&e)
			err := e.Validate()
			require.ErrorIs(t, err, event.ErrInvalid)
			require.EqualError(t, err, "invalid event: "+c.says)

			const failed = "failed to publish event: invalid event: "
			require.EqualError(t, event.Publish(t.Context(), nil, e), failed+c.says, "before the database is asked")
			require.EqualError(t, event.Publish(t.Context(), nil, valid, e, e), failed+"events[1]."+c.says)
			require.EqualError(t, event.Queue(nil, valid, valid, e), failed+"events[2]."+c.says)
			require.EqualError(t, event.PublishMessages(t.Context(), nil, e, valid), failed+"events[0]."+c.says)
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
