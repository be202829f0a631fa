package failure

import "errors"

// Cause is what an operator must act on, as a bounded word for metrics and status.
type Cause string

// Causes of a fatal error.
const (
	SlotLost      Cause = "slot_lost"     // the replication slot is missing, lost or not ours
	Publication   Cause = "publication"   // the publication is missing or changed
	History       Cause = "history"       // the servers do not belong to the same history
	Schema        Cause = "schema"        // a table or column is missing or of another type
	Credentials   Cause = "credentials"   // a password or user is wrong
	Privileges    Cause = "privileges"    // the user may not do what is needed
	Configuration Cause = "configuration" // a setting or flag is wrong: only a restart can change it
	Other         Cause = "other"
)

// Causes are all of them.
var Causes = []Cause{SlotLost, Publication, History, Schema, Credentials, Privileges, Configuration, Other}

type caused struct {
	cause Cause
	err   error
}

func (e *caused) Error() string { return e.err.Error() }
func (e *caused) Unwrap() error { return e.err }

// Because gives err a cause, unless it has one. A nil err stays nil.
func Because(cause Cause, err error) error {
	if _, has := CauseOf(err); err == nil || has {
		return err
	}
	return &caused{cause: cause, err: err}
}

// CauseOf returns the cause of err, and whether it has one.
func CauseOf(err error) (Cause, bool) {
	if c, ok := errors.AsType[*caused](err); ok {
		return c.cause, true
	}
	return Other, false
}
