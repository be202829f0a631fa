package postgres

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"

	"diehard/shared/tlshint"
)

// hidden replaces a password.
const hidden = "xxxxx"

var (
	urlPassword = regexp.MustCompile(`(://[^/?#\s:@]*):[^\s]*@`)
	keyPassword = regexp.MustCompile(`(?i)\b((?:ssl)?password(?:_command)?\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)`)
)

// RedactURL returns a connection string, or any text with some in it, without
// the passwords.
func RedactURL(text string) string {
	if parsed, err := url.Parse(text); err == nil && parsed.User != nil {
		if _, has := parsed.User.Password(); has {
			parsed.User = url.UserPassword(parsed.User.Username(), hidden)
			text = parsed.String()
		}
	}
	text = urlPassword.ReplaceAllString(text, "${1}:"+hidden+"@")
	return keyPassword.ReplaceAllString(text, "${1}"+hidden)
}

// Redact returns err with passwords removed from its text. errors.Is and
// errors.As see the original. A nil err stays nil.
func Redact(err error) error {
	if err == nil {
		return nil
	}
	if stranger, ok := errors.AsType[*StrangerError](err); ok { // says all that is to be said
		return &redacted{text: stranger.Error(), err: err}
	}
	text := err.Error()
	clean := RedactURL(text)
	if clean == text {
		return err
	}
	return &redacted{text: clean, err: err}
}

// Explain is Redact for errors of connecting: it adds the fix where the server's
// certificate was rejected, and where a connection pooler answered (ErrPooler).
func Explain(err error) error {
	if refusedByPooler(err) {
		return fmt.Errorf("%w: %w", ErrPooler, Redact(err))
	}
	hint := tlshint.Hint(err, "sslrootcert in DATABASE_URL", "another host there")
	if hint == "" {
		return Redact(err)
	}
	return Redact(fmt.Errorf("%w (%s)", err, hint))
}

type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }
