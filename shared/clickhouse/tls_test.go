package clickhouse_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
)

func TestTLSTrustsTheRightCertificateAlone(t *testing.T) {
	t.Parallel()
	plain := testenv.New(t).ClickHouseConfig
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	connect := func(shown testenv.Certificate, change func(*clickhouse.Config)) error {
		cfg := plain
		cfg.Host, cfg.Secure, cfg.CAFile = "127.0.0.1", true, authority.File
		cfg.Port = testenv.TerminateTLS(t, plain.Address(), &tls.Config{Certificates: []tls.Certificate{shown.Certificate}})
		change(&cfg)
		return use(t, cfg)
	}
	as := func(*clickhouse.Config) {}
	right, named := authority.Issue(t, "127.0.0.1", soon), authority.Issue(t, "clickhouse.example.com", soon)
	require.NoError(t, connect(right, as))
	require.NoError(t, connect(named, func(c *clickhouse.Config) { c.ServerName = "clickhouse.example.com" }))

	assert.ErrorContains(t, connect(named, as), "is for another name: connect to a name that is in it, or set CLICKHOUSE_SERVER_NAME")
	assert.ErrorContains(t, connect(right, func(c *clickhouse.Config) { c.CAFile = stranger.File }),
		"set CLICKHOUSE_CA_FILE to the PEM file of the right one")
	assert.ErrorContains(t, connect(right, func(c *clickhouse.Config) { c.CAFile = "" }), "is not trusted", "of the system's authorities")
	assert.ErrorContains(t, connect(authority.Issue(t, "127.0.0.1", past), as), "has expired")
	assert.ErrorContains(t, connect(right, func(c *clickhouse.Config) { c.Secure, c.CAFile = false, "" }), "CLICKHOUSE_SECURE is right")
}

// A server may want to know its clients, too.
func TestTLSShowsTheClientsCertificate(t *testing.T) {
	t.Parallel()
	cfg := testenv.New(t).ClickHouseConfig
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	soon := time.Now().Add(time.Hour)
	port := testenv.TerminateTLS(t, cfg.Address(), &tls.Config{
		Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1", soon).Certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: authority.Pool(),
	})
	cfg.Host, cfg.Port, cfg.Secure, cfg.CAFile = "127.0.0.1", port, true, authority.File
	assert.ErrorContains(t, use(t, cfg), "check CLICKHOUSE_CERT_FILE")
	cfg.CertFile, cfg.KeyFile = authority.Issue(t, "streamer", soon).Write(t)
	require.NoError(t, use(t, cfg))
	cfg.CertFile, cfg.KeyFile = stranger.Issue(t, "streamer", soon).Write(t)
	assert.ErrorContains(t, use(t, cfg), "check CLICKHOUSE_CERT_FILE")
}

// use connects and asks something.
func use(t *testing.T, cfg clickhouse.Config) error {
	t.Helper()
	conn, err := clickhouse.Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	var one uint8
	return conn.QueryRow(t.Context(), "SELECT 1").Scan(&one)
}
