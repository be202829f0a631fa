package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// maxPassword is generous: an IAM token of AWS has about 1,800 bytes.
	maxPassword = 64 << 10
	// commandTimeout bounds DATABASE_PASSWORD_COMMAND.
	commandTimeout = 30 * time.Second
)

// Parameters of a connection string that name the source of the password.
const (
	fileParameter    = "password_file"
	commandParameter = "password_command"
)

// Address is the connection string with the source of the password in it, as the
// parameters password_file and password_command.
func (c Config) Address() string {
	address := c.URL
	for _, p := range []setting{{fileParameter, c.PasswordFile}, {commandParameter, c.PasswordCommand}} {
		switch {
		case p.value == "":
		case !strings.HasPrefix(address, "postgres://") && !strings.HasPrefix(address, "postgresql://"):
			address += " " + p.name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(p.value) + "'"
		case strings.Contains(address, "?"):
			address += "&" + p.name + "=" + url.PathEscape(p.value)
		default:
			address += "?" + p.name + "=" + url.PathEscape(p.value)
		}
	}
	return address
}

// withParameters takes the source of the password out of a parsed connection string.
func (c Config) withParameters(params map[string]string) Config {
	for name, into := range map[string]*string{fileParameter: &c.PasswordFile, commandParameter: &c.PasswordCommand} {
		if value, has := params[name]; has {
			*into = value
			delete(params, name)
		}
	}
	return c
}

// rotates reports that the password is read anew at each connection.
func (c Config) rotates() bool { return c.PasswordFile != "" || c.PasswordCommand != "" }

// password reads the password; fallback is that of the connection string. An error
// has nothing of the file or of the command's output.
func (c Config) password(ctx context.Context, fallback string) (string, error) {
	switch {
	case c.PasswordFile != "":
		file, err := os.Open(c.PasswordFile)
		if err != nil {
			return "", fmt.Errorf("DATABASE_PASSWORD_FILE: %w", err)
		}
		defer file.Close()
		return readPassword(file, "DATABASE_PASSWORD_FILE")
	case c.PasswordCommand != "":
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		output, err := exec.CommandContext(ctx, "/bin/sh", "-c", c.PasswordCommand).Output()
		if err != nil {
			return "", fmt.Errorf("DATABASE_PASSWORD_COMMAND: %w (run it by hand as the same user)", withoutOutput(err))
		}
		return readPassword(bytes.NewReader(output), "DATABASE_PASSWORD_COMMAND")
	}
	return fallback, nil
}

// readPassword reads one line.
func readPassword(r io.Reader, variable string) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxPassword+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", variable, err)
	case len(text) > maxPassword:
		return "", fmt.Errorf("%s: a password has at most %d bytes", variable, maxPassword)
	}
	text = bytes.TrimRight(text, "\r\n")
	switch {
	case len(text) == 0:
		return "", fmt.Errorf("%s: the password is empty", variable)
	case bytes.ContainsAny(text, "\n\x00"):
		return "", fmt.Errorf("%s: expected one line with the password", variable)
	}
	return string(text), nil
}

// withoutOutput is the exit status alone: what the command printed may be secret.
func withoutOutput(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return errors.New(exit.ProcessState.String())
	}
	return err
}
