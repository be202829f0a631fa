// Package clickhouse connects to ClickHouse over its native protocol.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/tlshint"
)

const (
	readTimeout  = 5 * time.Minute
	maxOpenConns = 4
)

// Config says which server, database and tables to use.
type Config struct {
	Host     string `env:"CLICKHOUSE_HOST,required" example:"127.0.0.1" doc:"host of ClickHouse; several, separated by commas and with :PORT if it is another one, are tried in order"`
	Port     uint16 `env:"CLICKHOUSE_PORT" envDefault:"9000" min:"1" doc:"port of ClickHouse's native protocol (9440 is usual with TLS), not the HTTP port"`
	User     string `env:"CLICKHOUSE_USER" envDefault:"default" doc:"user in ClickHouse"`
	Password string `env:"CLICKHOUSE_PASSWORD" secret:"true" doc:"password of CLICKHOUSE_USER; empty for none"`
	Database string `env:"CLICKHOUSE_SCHEMA" envDefault:"default" doc:"database (schema) of the tables; migrations create it if it is missing"`

	EventLogTable   string `env:"CLICKHOUSE_EVENT_LOG_TABLE_NAME" envDefault:"event_log" doc:"table of the events"`
	DeadLetterTable string `env:"CLICKHOUSE_DEAD_LETTER_TABLE_NAME" envDefault:"event_dead_letter" doc:"table of the rows that ClickHouse refused"`
	Cluster         string `env:"CLICKHOUSE_CLUSTER" doc:"name of the cluster on which migrations create replicated tables; empty for one node"`
	TextIndex       bool   `env:"CLICKHOUSE_TEXT_INDEX" envDefault:"false" doc:"true lets migrate up add a text index of event_context's words, which merges build; it needs ClickHouse 26.2 or newer"`
	InsertQuorum    uint8  `env:"CLICKHOUSE_INSERT_QUORUM" envDefault:"0" doc:"number of replicas that must confirm an insert, 2 or more on a cluster; 0 for none"`

	Compression string `env:"CLICKHOUSE_COMPRESSION" envDefault:"auto" oneof:"auto lz4 none" doc:"compression of the data sent to ClickHouse; auto is none to a server on this machine, where it costs more than it saves, and lz4 to others"`

	Secure             bool   `env:"CLICKHOUSE_SECURE" envDefault:"false" doc:"true for TLS"`
	CAFile             string `env:"CLICKHOUSE_CA_FILE" doc:"PEM file of the trusted certificate authorities; empty for those of the system"`
	CertFile           string `env:"CLICKHOUSE_CERT_FILE" doc:"PEM file of the client's certificate; empty for none"`
	KeyFile            string `env:"CLICKHOUSE_KEY_FILE" doc:"PEM file of the key of CLICKHOUSE_CERT_FILE; empty without a certificate"`
	ServerName         string `env:"CLICKHOUSE_SERVER_NAME" doc:"expected name in the server's certificate; empty for the host"`
	InsecureSkipVerify bool   `env:"CLICKHOUSE_INSECURE_SKIP_VERIFY" envDefault:"false" doc:"true accepts any certificate; for tests only"`
}

// Validate refuses names that are no identifiers, and TLS settings without TLS.
func (c Config) Validate() error {
	return errors.Join(
		c.checkHosts(),
		checkIdentifier("CLICKHOUSE_SCHEMA", c.Database),
		checkIdentifier("CLICKHOUSE_EVENT_LOG_TABLE_NAME", c.EventLogTable),
		checkIdentifier("CLICKHOUSE_DEAD_LETTER_TABLE_NAME", c.DeadLetterTable),
		checkCluster(c.Cluster),
		c.checkTLS(),
	)
}

// method returns the compression of c.
func (c Config) method() clickhouse.CompressionMethod {
	if c.Compression == "none" || c.Compression == "auto" && c.isLocal() {
		return clickhouse.CompressionNone
	}
	return clickhouse.CompressionLZ4
}

// Options translates c for clickhouse-go: native protocol, compression, time limits.
// Every call returns a fresh value that the caller may change.
func Options(c Config) (*clickhouse.Options, error) {
	options := &clickhouse.Options{
		Protocol:     clickhouse.Native,
		Addr:         c.Addresses(),
		DialStrategy: explained(c, failover()),
		Settings:     settingsOf(c),
		Auth:         clickhouse.Auth{Database: c.Database, Username: c.User, Password: c.Password},
		Compression:  &clickhouse.Compression{Method: c.method()},
		DialTimeout:  dialTimeout,
		ReadTimeout:  readTimeout,
		MaxOpenConns: maxOpenConns,
		MaxIdleConns: maxOpenConns,
	}
	if !c.Secure {
		return options, nil
	}
	var err error
	options.TLS, err = tlsConfig(c)
	return options, err
}

// Open connects and pings. The error says what to do about it. The caller
// closes the connection.
func Open(ctx context.Context, c Config) (Conn, error) {
	options, err := Options(c)
	if err != nil {
		return nil, err
	}
	conn, err := OpenOptions(options)
	if err != nil {
		return nil, fmt.Errorf("connect to ClickHouse at %s: %w", c.Address(), err)
	}
	if err := conn.Ping(ctx); err != nil {
		_ = conn.Close()
		return nil, Explain(c, err)
	}
	return conn, nil
}

// Explain adds the address and what to do to an error of connecting.
func Explain(c Config, err error) error {
	return fmt.Errorf("connect to ClickHouse at %s: %w", c.Address(), withHint(c, err))
}

// hintedError says what to do about an error of connecting.
type hintedError struct {
	error
	hint string
}

func (h *hintedError) Error() string { return h.error.Error() + " (" + h.hint + ")" }
func (h *hintedError) Unwrap() error { return h.error }

// withHint adds what to do to err, once.
func withHint(c Config, err error) error {
	hint := hintFor(c, err)
	if _, ok := errors.AsType[*hintedError](err); ok || hint == "" {
		return err
	}
	return &hintedError{err, hint}
}

func hintFor(c Config, err error) string {
	if exception, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return hintForCode(c, exception.Code)
	}
	if hint := tlshint.Hint(err, "CLICKHOUSE_CA_FILE", "CLICKHOUSE_SERVER_NAME"); hint != "" {
		return hint
	}
	if c.Secure && strings.Contains(err.Error(), "remote error: tls") {
		return "the server refuses our certificate, or wants one: check CLICKHOUSE_CERT_FILE and CLICKHOUSE_KEY_FILE"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "check CLICKHOUSE_HOST"
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "is the server running? check CLICKHOUSE_HOST and CLICKHOUSE_PORT"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time; check CLICKHOUSE_HOST, CLICKHOUSE_PORT and the network"
	}
	if !c.Secure {
		return "check that CLICKHOUSE_PORT is the native protocol's port and CLICKHOUSE_SECURE is right"
	}
	return "check CLICKHOUSE_PORT, CLICKHOUSE_CA_FILE and CLICKHOUSE_SERVER_NAME"
}

func hintForCode(c Config, code int32) string {
	switch proto.Error(code) {
	case proto.ErrUnknownDatabase:
		return fmt.Sprintf("database %q is missing: run the migrations or correct CLICKHOUSE_SCHEMA", c.Database)
	case proto.ErrWrongPassword, proto.ErrRequiredPassword, proto.ErrAuthenticationFailed:
		return "check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD"
	default:
		return ""
	}
}

// IsUnknownDatabase reports whether err says that the database of the connection
// does not exist.
func IsUnknownDatabase(err error) bool {
	exception, ok := errors.AsType[*clickhouse.Exception](err)
	return ok && proto.Error(exception.Code) == proto.ErrUnknownDatabase
}
