package main_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/keys"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// raw sends bytes as they are and returns the status of the answer: 0 when the
// connection was cut without one.
func (p *program) raw(t *testing.T, sent string) (status int, header http.Header) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.address, "http://"))
	if !assert.NoError(t, err) { // not require: it is called from many goroutines
		return 0, nil
	}
	defer conn.Close()
	assert.NoError(t, conn.SetDeadline(time.Now().Add(await.Limit)))
	_, _ = io.WriteString(conn, sent) // it may be cut before the end
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the api neither answers nor hangs up: %.80q", sent)
		return 0, nil
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header
}

// send is an ordinary request.
func (p *program) send(t *testing.T, method, path string, body io.Reader, headers ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, p.address+path, body)
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: await.Limit}
	response, err := client.Do(request)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return 0, "" // the api did not want to hear the rest
	}
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(content)
}

// requireWell checks that the api still works, and how much it has stored.
func (p *program) requireWell(t *testing.T, env *testenv.Env, users, events int) {
	t.Helper()
	before := rows(t, env)
	assert.Equal(t, [2]int{users, events}, before)
	require.Equal(t, http.StatusCreated, <-p.createUser(t))
	assert.Equal(t, [2]int{before[0] + 1, before[1] + 1}, rows(t, env))
	assert.NotContains(t, p.log.String(), "panic")
}

func rows(t *testing.T, env *testenv.Env) (n [2]int) {
	t.Helper()
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM outbox)").Scan(&n[0], &n[1]))
	return n
}

var injections = []string{
	`'; DROP TABLE users; --`, `" OR 1=1 --`, `$1`, `\'; SELECT pg_sleep(60); --`, `'||(SELECT version())||'`, `%27%20OR%201=1`,
	`{{7*7}}`, `${jndi:ldap://x}`, "`id`", `<script>alert(1)</script>`,
}

func TestInjectionsAreStoredAsText(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env)
	quoted := func(text string) string {
		encoded, err := json.Marshal(text)
		require.NoError(t, err)
		return string(encoded)
	}
	for i, text := range injections {
		q := quoted(text)
		code, _ := p.send(t, "POST", "/users", strings.NewReader(fmt.Sprintf(`{"email":"u%d@example.com","first_name":%s,"last_name":%s}`, i, q, q)))
		assert.Equal(t, http.StatusCreated, code)
		code, _ = p.send(t, "POST", "/users", strings.NewReader(`{"email":`+q+`,"first_name":"A","last_name":"B"}`))
		assert.Equal(t, http.StatusUnprocessableEntity, code, text)
		code, _ = p.send(t, "POST", "/events", strings.NewReader(fmt.Sprintf(`{"event_type":%s,"environment":%s,"event_context":{%s:%s}}`, q, q, q, q)),
			"Traceparent", text, "X-Request-ID", text, "Authorization", text)
		assert.Equal(t, http.StatusAccepted, code)
		for _, field := range []string{"id", "event_date_time", "metadata_version"} {
			code, _ = p.send(t, "POST", "/events", strings.NewReader(fmt.Sprintf(`{"event_type":"t","event_context":1,%q:%s}`, field, q)))
			assert.Equal(t, http.StatusUnprocessableEntity, code, field)
		}
		code, _ = p.send(t, "POST", "/events", strings.NewReader(`{"event_type":"t","event_context":1}`), "Idempotency-Key", strings.NewReplacer(" ", "", `"`, "", `\`, "").Replace(text))
		assert.Equal(t, http.StatusAccepted, code)
		code, _ = p.raw(t, "GET /users/"+strings.ReplaceAll(text, " ", "+")+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
		assert.Contains(t, []int{http.StatusNotFound, http.StatusBadRequest}, code)
	}
	var kept []string
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT array_agg(event_type ORDER BY ctid) FROM outbox
		WHERE event_type NOT IN ('t', 'user_created') AND event_type = environment`).Scan(&kept))
	assert.Equal(t, injections, kept)
	p.requireWell(t, env, len(injections), 3*len(injections))
}

func TestBrokenHTTPIsRefused(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env, "API_HEADER_TIMEOUT=300ms", "API_BODY_TIMEOUT=300ms")
	const post = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	const event = `{"event_type":"t","event_context":1}`
	var all sync.WaitGroup
	for name, sent := range map[string]string{
		"no HTTP":                    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"binary":                     strings.Repeat("\x00\xff", 1000),
		"another protocol":           "SSH-2.0-OpenSSH_9.9\r\n",
		"odd version":                "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
		"no host":                    "GET /healthz HTTP/1.1\r\n\r\n",
		"two hosts":                  "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"space before colon":         "GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n",
		"NUL in a header":            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: \x00\r\n\r\n",
		"header that is large":       "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + strings.Repeat("a", 200<<10) + "\r\n\r\n",
		"headers that are many":      "GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X-A: aaaaaaaaaaaaaaaa\r\n", 10_000) + "\r\n",
		"address that is long":       "GET /" + strings.Repeat("a", 200<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"length that is no number":   post + "Content-Length: many\r\n\r\n" + event,
		"negative length":            post + "Content-Length: -1\r\n\r\n" + event,
		"two lengths":                post + "Content-Length: 36\r\nContent-Length: 1\r\n\r\n" + event,
		"length beyond 64 bits":      post + "Content-Length: 99999999999999999999\r\n\r\n" + event,
		"length that is a lie":       post + "Content-Length: 100000\r\n\r\n" + event,
		"huge length":                post + "Content-Length: 9000000000000000000\r\n\r\n" + event,
		"chunk size that is none":    post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + event + "\r\n0\r\n\r\n",
		"chunk size beyond 64 bits":  post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + event,
		"negative chunk size":        post + "Transfer-Encoding: chunked\r\n\r\n-24\r\n" + event + "\r\n0\r\n\r\n",
		"chunk longer than it says":  post + "Transfer-Encoding: chunked\r\n\r\n10\r\n" + event + "\r\n0\r\n\r\n",
		"chunk shorter than it says": post + "Transfer-Encoding: chunked\r\n\r\nffff\r\n" + event + "\r\n0\r\n\r\n",
		"chunks without an end":      post + "Transfer-Encoding: chunked\r\n\r\n24\r\n" + event + "\r\n",
		"chunked with extensions":    post + "Transfer-Encoding: chunked\r\n\r\n24;" + strings.Repeat("a", 100<<10) + "\r\n" + event + "\r\n0\r\n\r\n",
		"odd transfer encoding":      post + "Transfer-Encoding: gzip, chunked\r\n\r\n24\r\n" + event + "\r\n0\r\n\r\n",
		"two transfer encodings":     post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n24\r\n" + event + "\r\n0\r\n\r\n",
		"hidden transfer encoding":   post + "Transfer-Encoding : chunked\r\nContent-Length: 36\r\n\r\n" + event,
		"head that stops":            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Ty",
		"body that stops":            post + "Content-Length: 36\r\n\r\n" + event[:10],
		"line that stops":            strings.Replace(post, "application/json", "application/x-ndjson", 1) + "Content-Length: 1000\r\n\r\n" + event + "\n" + event[:10],
		"nothing at all":             "",
		"traversal":                  "GET /docs/../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"encoded traversal":          "GET /docs/..%2f..%2fgo.mod HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"NUL in the address":         "GET /users/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"method that does not exist": "BREW /users HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"proxy":                      "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
		"upgrade to HTTP 2":          "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		all.Go(func() {
			status, _ := p.raw(t, sent)
			refused := status >= 400 && status < 500 || status == http.StatusNotImplemented || status == http.StatusHTTPVersionNotSupported
			assert.True(t, status == 0 || refused, "%s: status %d", name, status)
		})
	}
	all.Wait()
	p.requireWell(t, env, 0, 0)
}

// What a client says may come back in an answer's headers, but only as a value.
func TestHeadersCannotBeInjected(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env)
	for _, line := range []string{
		"X-Request-ID: a%0d%0aInjected: 1", "X-Request-ID: a\rInjected: 1", "X-Request-ID: a\n Injected: 1", "X-Request-ID: a\r\n\tInjected: 1",
		"Idempotency-Key: a%0aInjected: 1", "Traceparent: 00-\tInjected: 1",
	} {
		for _, path := range []string{"/healthz", "/users/a%0d%0aInjected:%201", "/nothing%0aInjected:1"} {
			status, header := p.raw(t, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n"+line+"\r\n\r\n")
			require.NotZero(t, status)
			assert.Empty(t, header.Values("Injected"))
			for name, values := range header {
				assert.NotContains(t, strings.Join(values, ","), "Injected", name)
			}
		}
	}
	p.requireWell(t, env, 0, 0)
}

func TestHostileBodiesAreRefused(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	p := start(t, env)
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	_, err := io.Copy(zip, io.LimitReader(zeros{}, 64<<20))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
	const ndjson = "application/x-ndjson"
	for name, c := range map[string]struct {
		path, body string
		status     int
		headers    []string
	}{
		"bomb":                      {"/events", bomb.String(), 415, []string{"Content-Encoding", "gzip"}},
		"bomb for users":            {"/users", bomb.String(), 415, []string{"Content-Encoding", "gzip"}},
		"bomb of lines":             {"/events", bomb.String(), 415, []string{"Content-Encoding", "gzip", "Content-Type", ndjson}},
		"bomb without a word on it": {"/events", bomb.String(), 400, nil},
		"deep":                      {"/events", `{"event_type":"t","event_context":` + deep + `}`, 422, nil},
		"deep line":                 {"/events", `{"event_type":"t","event_context":` + deep + `}`, 422, []string{"Content-Type", ndjson}},
		"deeper than Go reads":      {"/events", strings.Repeat("[", 1<<20), 400, nil},
		"deep user":                 {"/users", `{"email":` + strings.Repeat("[", 60_000), 400, nil},
		"deep field":                {"/events", `{"event_type":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,"event_context":1}`, 422, nil},
		"field given twice":         {"/events", `{"event_type":"a","event_context":1,"event_context":2}`, 422, nil},
		"other spelling":            {"/events", `{"EVENT_TYPE":"a","event_type":"b","event_context":1}`, 422, nil},
		"not UTF-8":                 {"/events", "{\"event_type\":\"a\xff\",\"event_context\":1}", 400, nil},
		"user not UTF-8":            {"/users", "{\"email\":\"a@b.cc\",\"first_name\":\"\xc3\x28\",\"last_name\":\"B\"}", 400, nil},
		"overlong UTF-8":            {"/events", "{\"event_type\":\"\xc0\x80\",\"event_context\":1}", 400, nil},
		"UTF-16":                    {"/events", "\xff\xfe{\x00}\x00", 400, nil},
		"byte order mark":           {"/events", "\ufeff{}", 400, nil},
		"NUL":                       {"/events", "{\"event_type\":\"a\x00b\",\"event_context\":1}", 400, nil},
		"escaped NUL":               {"/events", `{"event_type":"a\u0000b","event_context":1}`, 422, nil},
		"escaped NUL in a user":     {"/users", `{"email":"a@b.cc","first_name":"\u0000","last_name":"B"}`, 422, nil},
		"long number":               {"/events", `{"event_type":"t","event_context":1,"metadata_version":` + strings.Repeat("9", 100_000) + `}`, 422, nil},
		"many unknown fields":       {"/events", `{` + strings.Repeat(`"x":1,`, 100_000) + `"y":1}`, 422, nil},
		"many fields of a user":     {"/users", `{` + strings.Repeat(`"x":1,`, 10_000) + `"y":1}`, 422, nil},
		"many bad events":           {"/events", `[` + strings.Repeat(`1,`, 500_000) + `1]`, 422, nil},
		"many empty lines":          {"/events", strings.Repeat("\n", 4<<20), 422, []string{"Content-Type", ndjson}},
		"large user":                {"/users", strings.Repeat(" ", 1<<20), 413, nil},
		"not JSON":                  {"/events", "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>", 400, nil},
	} {
		code, answer := p.send(t, "POST", c.path, strings.NewReader(c.body), c.headers...)
		if code != 0 { // cut off while still talking
			assert.Equal(t, c.status, code, "%s: %.300s", name, answer)
		}
		assert.Less(t, len(answer), 10_000, name)
	}
	p.requireWell(t, env, 0, 0)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Neither payloads nor secrets get into the log, at its most talkative.
func TestTheLogKeepsSecrets(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	secret, entry, err := keys.New("shop")
	require.NoError(t, err)
	p := start(t, env, "API_KEYS="+entry, "LOG_LEVEL=debug")
	_, err = env.Pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (event_type <> 'closed')")
	require.NoError(t, err)
	key := []string{"Authorization", "Bearer " + secret, "Idempotency-Key", "marker-key", "Cookie", "marker-cookie"}
	for body, want := range map[string]int{
		`{"event_type":"t","event_context":"marker-context"}`:                        202,
		`{"event_type":"closed","event_context":"marker-context"}`:                   500,
		`{"event_type":"t","environment":"marker\n","event_context":"marker"}`:       422,
		`{"event_type":"t","event_context":"marker-cut`:                              400,
		`{"event_type":"t","marker-name":"marker-value","event_context":"marker-x"}`: 422,
	} {
		key[3] = fmt.Sprintf("marker-key-%d", want)
		code, _ := p.send(t, "POST", "/events", strings.NewReader(body), key...)
		assert.Equal(t, want, code, body)
	}
	key[3] = "marker-key-user"
	code, _ := p.send(t, "POST", "/users", strings.NewReader(`{"email":"marker@example.com","first_name":"marker","last_name":"marker"}`), key...)
	assert.Equal(t, http.StatusCreated, code)
	code, _ = p.send(t, "GET", "/users/marker", nil, key...)
	assert.Equal(t, http.StatusNotFound, code)
	code, _ = p.send(t, "GET", "/users/marker", nil, "Authorization", "Bearer marker-wrong")
	assert.Equal(t, http.StatusUnauthorized, code)
	await.True(t, func() bool { return strings.Count(p.log.String(), `"msg":"request"`) == 8 }, "all requests are logged")
	assert.Contains(t, p.log.String(), "request failed")
	assert.NotContains(t, p.log.String(), "marker")
	assert.NotContains(t, p.log.String(), secret)
	assert.NotContains(t, p.log.String(), strings.TrimPrefix(entry, "shop:"))
}

// DNS rebinding: a page whose name resolves to 127.0.0.1 must not reach an api
// that is open because it listens on a loopback address.
func TestForeignHostsAreRefusedOnLoopback(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	_, entry, err := keys.New("shop")
	require.NoError(t, err)
	open, named, closed := start(t, env), start(t, env, "API_HOSTS=api.internal,other:8443"), start(t, env, "API_KEYS="+entry)
	const event = `{"event_type":"t","event_context":1}`
	for _, target := range []string{"GET /healthz", "GET /metrics", "GET /docs", "GET /nothing", "HEAD /healthz", "OPTIONS /events", "POST /events"} {
		for host, want := range map[string][2]bool{ // refused by open, by named
			"localhost": {}, "127.0.0.1:8080": {}, "[::1]:8080": {}, "api.localhost": {},
			"evil.example": {true, true}, "127.0.0.1.evil.example": {true, true}, "192.0.2.1:8080": {true, true}, "api.internal:8080": {true, false},
		} {
			sent := fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", target, host, len(event), event)
			for i, p := range []*program{open, named} {
				status, _ := p.raw(t, sent)
				assert.Equal(t, want[i], status == http.StatusMisdirectedRequest, "%s from %s: %d", target, host, status)
			}
			status, _ := closed.raw(t, sent)
			assert.NotEqual(t, http.StatusMisdirectedRequest, status, "a page has no key")
		}
	}
	assert.Equal(t, [2]int{0, 9}, rows(t, env), "4 and 5 times POST with a host that is allowed")
}
