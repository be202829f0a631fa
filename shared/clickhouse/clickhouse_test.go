package clickhouse_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/shared/dev/testenv"
	"diehard/shared/settings"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{"CLICKHOUSE_HOST": "ch"})
	require.NoError(t, err)
	assert.Equal(t, clickhouse.Config{
		Host: "ch", Port: 9000, User: "default", Database: "default", EventLogTable: "event_log", DeadLetterTable: "event_dead_letter",
		Compression: "auto",
	}, cfg)
	assert.Equal(t, "ch:9000", cfg.Address())
	options, err := clickhouse.Options(cfg)
	require.NoError(t, err)
	assert.Equal(t, driver.CompressionLZ4, options.Compression.Method)
	assert.Equal(t, driver.Native, options.Protocol)
	assert.Nil(t, options.TLS)
}

func TestCompressionIsForTheNetwork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host, compression string
		want              driver.CompressionMethod
	}{
		{"127.0.0.1", "auto", driver.CompressionNone},
		{"::1", "auto", driver.CompressionNone},
		{"localhost", "auto", driver.CompressionNone},
		{"10.1.2.3", "auto", driver.CompressionLZ4},
		{"clickhouse", "auto", driver.CompressionLZ4},
		{"clickhouse", "none", driver.CompressionNone},
		{"127.0.0.1", "lz4", driver.CompressionLZ4},
	} {
		cfg, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{
			"CLICKHOUSE_HOST": c.host, "CLICKHOUSE_COMPRESSION": c.compression,
		})
		require.NoError(t, err)
		options, err := clickhouse.Options(cfg)
		require.NoError(t, err)
		assert.Equal(t, c.want, options.Compression.Method, "%s, %s", c.host, c.compression)
	}
	_, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{"CLICKHOUSE_HOST": "ch", "CLICKHOUSE_COMPRESSION": "zip"})
	require.ErrorContains(t, err, "CLICKHOUSE_COMPRESSION")
}

func TestMistakesAreAllNamed(t *testing.T) {
	t.Parallel()
	_, err := settings.ParseFrom[clickhouse.Config]("test", map[string]string{
		"CLICKHOUSE_HOST": "ch", "CLICKHOUSE_SCHEMA": "a.b", "CLICKHOUSE_EVENT_LOG_TABLE_NAME": "x`y",
		"CLICKHOUSE_DEAD_LETTER_TABLE_NAME": "ü", "CLICKHOUSE_CLUSTER": "a b", "CLICKHOUSE_CERT_FILE": "cert.pem",
	})
	for _, variable := range []string{
		"CLICKHOUSE_SCHEMA", "CLICKHOUSE_EVENT_LOG_TABLE_NAME", "CLICKHOUSE_DEAD_LETTER_TABLE_NAME", "CLICKHOUSE_CLUSTER", "CLICKHOUSE_SECURE",
	} {
		assert.ErrorContains(t, err, variable)
	}
}

func TestQuoteIdentifier(t *testing.T) {
	t.Parallel()
	quoted, err := clickhouse.QuoteIdentifier("event-log_2")
	require.NoError(t, err)
	assert.Equal(t, "`event-log_2`", quoted)
	for _, name := range []string{"", "-x", "a`b", "a b", "a.b", `a\`, "a'b", "a\x00"} {
		_, err := clickhouse.QuoteIdentifier(name)
		assert.Error(t, err, name)
	}
}

func TestOpenConnects(t *testing.T) {
	t.Parallel()
	conn, err := clickhouse.Open(t.Context(), testenv.New(t).ClickHouseConfig)
	require.NoError(t, err)
	defer conn.Close()
	var one uint8
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT 1").Scan(&one))
	assert.Equal(t, uint8(1), one)
}

func TestOpenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	cfg := testenv.New(t).ClickHouseConfig
	unknown, away, wrong, secure := cfg, cfg, cfg, cfg
	unknown.Database = "missing"
	away.Port = 1
	wrong.Host, wrong.Port = listenAndHangUp(t)
	secure.Secure = true
	for says, c := range map[string]clickhouse.Config{
		"run the migrations or correct CLICKHOUSE_SCHEMA":          unknown,
		"is the server running? check CLICKHOUSE_HOST":             away,
		"check that CLICKHOUSE_PORT is the native protocol's port": wrong,
		"CLICKHOUSE_CA_FILE": secure,
	} {
		_, err := clickhouse.Open(t.Context(), c)
		require.ErrorContains(t, err, "connect to ClickHouse at "+c.Address())
		assert.Equal(t, 1, strings.Count(err.Error(), says), err)
	}
	options, err := clickhouse.Options(wrong)
	require.NoError(t, err)
	later, err := driver.Open(options) // a program that runs and connects again
	require.NoError(t, err)
	defer later.Close()
	require.ErrorContains(t, later.Exec(t.Context(), "SELECT 1"), "check that CLICKHOUSE_PORT is the native protocol's port")
	_, err = clickhouse.Open(t.Context(), unknown)
	assert.True(t, clickhouse.IsUnknownDatabase(err))

	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = clickhouse.Open(late, cfg)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

// listenAndHangUp is a server that speaks another protocol.
func listenAndHangUp(t *testing.T) (host string, port uint16) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	host, text, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	number, err := strconv.ParseUint(text, 10, 16)
	require.NoError(t, err)
	return host, uint16(number)
}

func TestTLSFilesAreRead(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	cfg := clickhouse.Config{Host: "ch", Port: 9440, Secure: true, CAFile: cert, CertFile: cert, KeyFile: key, ServerName: "ch.example.com"}
	options, err := clickhouse.Options(cfg)
	require.NoError(t, err)
	assert.Equal(t, "ch.example.com", options.TLS.ServerName)
	assert.NotNil(t, options.TLS.RootCAs)
	assert.Len(t, options.TLS.Certificates, 1)
	assert.False(t, options.TLS.InsecureSkipVerify)

	for variable, broken := range map[string]clickhouse.Config{
		"CLICKHOUSE_CA_FILE: open":              {Secure: true, CAFile: "missing.pem"},
		"holds no PEM certificate":              {Secure: true, CAFile: key},
		"CLICKHOUSE_CERT_FILE and CLICKHOUSE_K": {Secure: true, CertFile: cert, KeyFile: cert},
	} {
		_, err := clickhouse.Options(broken)
		assert.ErrorContains(t, err, variable)
	}
}

// selfSigned writes a certificate and its key.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	require.NoError(t, err)
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	return writePEM(t, dir, "CERTIFICATE", cert), writePEM(t, dir, "PRIVATE KEY", keyBytes)
}

func writePEM(t *testing.T, dir, kind string, content []byte) string {
	t.Helper()
	file := filepath.Join(dir, kind+".pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600))
	return file
}
