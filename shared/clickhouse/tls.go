package clickhouse

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

func (c Config) checkTLS() error {
	if !c.Secure && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != "" || c.InsecureSkipVerify) {
		return errors.New("CLICKHOUSE_SECURE must be true for the other TLS settings of ClickHouse to have an effect")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("CLICKHOUSE_CERT_FILE and CLICKHOUSE_KEY_FILE go together: set both or none")
	}
	_, err := tlsConfig(c)
	return err
}

func tlsConfig(c Config) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.ServerName,
		InsecureSkipVerify: c.InsecureSkipVerify, //nolint:gosec // the operator's explicit choice
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CLICKHOUSE_CA_FILE: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CLICKHOUSE_CA_FILE: %s holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("CLICKHOUSE_CERT_FILE and CLICKHOUSE_KEY_FILE: %w", err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}
