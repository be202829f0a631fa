package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/link"
)

// postgresAtFarEnd returns env with a PostgreSQL of its own at the far end of a link. Its sockets are
// those of the far end's namespace: nothing but the link lies between them and a client.
func (env *environment) postgresAtFarEnd(ctx context.Context, l *link.Link) (*environment, error) {
	if env.postgres == nil {
		return nil, fmt.Errorf("%w: the server of DATABASE_URL cannot be put behind a link: unset it", errSkipped)
	}
	dir := filepath.Join(env.dir, "path-postgres-"+embedded.PostgresVersion())
	if left := embedded.FindPostgres(dir); left != nil { // its link has gone
		if err := left.Stop(ctx); err != nil {
			return nil, err
		}
	}
	far := *env
	err := l.Within(link.Far, func() (err error) {
		settings := postgresSettings()
		settings["listen_addresses"] = "*"
		far.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{DataDir: dir, Log: env.progress, Settings: settings})
		if err != nil {
			return err
		}
		if err := admitOverLink(ctx, far.postgres.URL("postgres"), l.Address(link.Far).String()); err != nil {
			return errors.Join(err, far.postgres.Stop(context.WithoutCancel(ctx)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	far.pgURL = func(database string) string {
		return atHost(far.postgres.URL(database), l.Address(link.Far).String())
	}
	if err := awaitTLS(ctx, withTLS(far.pgURL("postgres"))); err != nil {
		return nil, errors.Join(err, far.postgres.Stop(context.WithoutCancel(ctx)))
	}
	return &far, nil
}

func atHost(raw, host string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	u.Host = host + ":" + u.Port()
	return u.String()
}

func withTLS(raw string) string { return strings.Replace(raw, "sslmode=disable", "sslmode=require", 1) }

// hba admits clients that come over the link, and those of the far end itself.
const hba = "host all all all scram-sha-256\nhost replication all all scram-sha-256"

// admitOverLink makes a server admit clients from the link, with and without TLS.
func admitOverLink(ctx context.Context, url, host string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	certificate, key, err := selfSigned(host)
	if err != nil {
		return err
	}
	// The server writes its files itself: it runs as another user.
	for name, content := range map[string]string{"pg_hba.conf": hba, "server.crt": certificate, "server.key": key} {
		sql := fmt.Sprintf(`COPY (SELECT regexp_split_to_table('%s', '\n')) TO PROGRAM 'rm -f %[2]s; umask 077; cat >%[2]s'`, content, name)
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	for _, sql := range []string{"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// awaitTLS waits until a server has read its configuration again.
func awaitTLS(ctx context.Context, url string) error {
	for began := time.Now(); ; sleepFor(ctx, 50*time.Millisecond) {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			return conn.Close(ctx)
		}
		if time.Since(began) > 30*time.Second {
			return err
		}
	}
}

// selfSigned returns a certificate and its key in PEM.
func selfSigned(host string) (certificate, private string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: host}, SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 7),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", "", err
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	encode := func(kind string, raw []byte) string {
		return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw})))
	}
	return encode("CERTIFICATE", raw), encode("PRIVATE KEY", rawKey), nil
}
