// Package failure classifies errors: retry, write the row to the dead-letter table, or stop.
package failure

import "errors"

// Class decides the reaction to an error.
type Class uint8

const (
	// Transient errors go away: retry with back-off and jitter, without limit.
	Transient Class = iota
	// Poison errors are caused by the data of a row: isolate it and write it to the dead-letter table.
	Poison
	// Fatal errors need an operator (configuration, schema, wrong server): stop and say what to do.
	Fatal
)

// String returns the name used in logs and metric labels.
func (c Class) String() string {
	switch c {
	case Poison:
		return "poison"
	case Fatal:
		return "fatal"
	default:
		return "transient"
	}
}

type classified struct {
	class Class
	err   error
}

func (e *classified) Error() string { return e.err.Error() }
func (e *classified) Unwrap() error { return e.err }

// Wrap gives err a class. The outermost class wins. A nil err stays nil.
func Wrap(class Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{class: class, err: err}
}

// Of returns the class of err. Unclassified errors are Transient: retrying is
// the only reaction that neither loses data nor stops the pipeline.
func Of(err error) Class {
	if c, ok := errors.AsType[*classified](err); ok {
		return c.class
	}
	return Transient
}
