package sink

import "diehard/shared/failure"

// Unknown returns the code of an error of the server whose class is unknown, else 0.
func Unknown(err error) int32 {
	code := Code(err)
	if codes[code].class != unknown {
		return 0
	}
	return code
}

// UnknownErrors watches the tries at the same rows, until an unknown code must be
// taken for a judgement on the rows.
type UnknownErrors struct {
	Limit int // how many tries in a row must meet the code

	code  int32
	tries int
}

// Classify returns err, as poison if it is the last of Limit tries that met the same unknown code.
func (d *UnknownErrors) Classify(err error) error {
	code := Unknown(err)
	if code != d.code {
		d.code, d.tries = code, 0
	}
	if code == 0 {
		return err
	}
	d.tries++
	if d.tries < d.Limit {
		return err
	}
	return failure.Wrap(failure.Poison, err)
}
