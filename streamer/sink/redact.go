package sink

import (
	"errors"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
)

// redacted is an exception whose text may quote a row. It has no Unwrap, so that
// nothing that prints a chain of errors finds the text; errors.As finds the exception.
type redacted struct{ ex *clickhouse.Exception }

func (m *redacted) Error() string { return Name(m.ex.Code) }

func (m *redacted) As(target any) bool {
	ex, ok := target.(**clickhouse.Exception)
	if ok {
		*ex = m.ex
	}
	return ok
}

// Name is what may be said of an error of ClickHouse anywhere.
func Name(code int32) string {
	if e := proto.Error(code); e.IsAError() {
		return fmt.Sprintf("code %d (%s)", code, e.String())
	}
	return fmt.Sprintf("code %d", code)
}

// Reason is all that ClickHouse says of err, for the dead-letter table and those who may read it.
func Reason(err error) string {
	if ex, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return ex.Error()
	}
	return err.Error()
}

// RedactedReason is the reason of a dead letter without what ClickHouse says of a row
// it refused: that quotes the row's values. `streamer deadletter list --full` shows all of it.
func RedactedReason(reason string, code int32) string {
	if code == 0 {
		return reason
	}
	return "ClickHouse refused it with " + Name(code)
}
