package main

import (
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
)

// lsnFlag is a position in the WAL on the command line; 0 when not given.
type lsnFlag struct{ pglogrepl.LSN }

// Set implements pflag.Value.
func (f *lsnFlag) Set(text string) error {
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil || lsn == 0 {
		return fmt.Errorf("%q is not an LSN such as 0/16B3748", text)
	}
	f.LSN = lsn
	return nil
}

// String implements pflag.Value.
func (f *lsnFlag) String() string {
	if f.LSN == 0 {
		return ""
	}
	return f.LSN.String()
}

// Type implements pflag.Value.
func (f *lsnFlag) Type() string { return "LSN" }

// timeFlag is a time on the command line; zero when not given.
type timeFlag struct{ time.Time }

// Set implements pflag.Value.
func (f *timeFlag) Set(text string) error {
	if ago, err := time.ParseDuration(text); err == nil {
		f.Time = time.Now().Add(-ago)
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			f.Time = t
			return nil
		}
	}
	return fmt.Errorf("%q is neither a time such as 2026-01-31, 2026-01-31 12:00:00 (UTC) or 2026-01-31T12:00:00+01:00, nor how long ago, such as 36h", text)
}

// String implements pflag.Value.
func (f *timeFlag) String() string {
	if f.IsZero() {
		return ""
	}
	return f.Format(time.RFC3339)
}

// Type implements pflag.Value.
func (f *timeFlag) Type() string { return "TIME" }
