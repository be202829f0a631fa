// Package sentrytest is a Sentry server for tests: it receives the real
// envelopes of the SDK over HTTP.
package sentrytest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Item is one item of an envelope: its type ("event", "transaction", …) and
// its JSON, decoded.
type Item struct {
	Type string
	Body map[string]any
}

// Server collects what programs send to its DSN. Safe for concurrent use.
type Server struct {
	DSN string

	mu    sync.Mutex
	items []Item
	raw   bytes.Buffer
	errs  []error
}

// New starts a server that ends with the test. The test fails if an envelope
// could not be read.
func New(tb testing.TB) *Server {
	tb.Helper()
	server := &Server{}
	listener := httptest.NewServer(server)
	server.DSN = "http://public@" + strings.TrimPrefix(listener.URL, "http://") + "/1"
	tb.Cleanup(func() {
		listener.Close()
		for _, err := range server.errs {
			tb.Error(err)
		}
	})
	return server
}

// ServeHTTP receives one envelope.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	items, raw, err := readEnvelope(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("sentry envelope: %w", err))
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.items = append(s.items, items...)
	s.raw.Write(raw)
	_, _ = io.WriteString(w, "{}")
}

// Items returns what has arrived of the given type, in order of arrival.
func (s *Server) Items(kind string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bodies []map[string]any
	for _, item := range s.items {
		if item.Type == kind {
			bodies = append(bodies, item.Body)
		}
	}
	return slices.Clip(bodies)
}

// Raw returns every byte that has arrived, to look for what must not be there.
func (s *Server) Raw() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

// readEnvelope splits an envelope into its items.
// Source: Sentry developer documentation, "Envelopes", Serialization Format.
func readEnvelope(r *http.Request) ([]Item, []byte, error) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, nil, err
		}
		body = unzipped
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, nil, err
	}
	reader := bufio.NewReader(bytes.NewReader(raw))
	if _, err := reader.ReadBytes('\n'); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	var items []Item
	for {
		item, err := readItem(reader)
		if errors.Is(err, io.EOF) {
			return items, raw, nil
		}
		if err != nil {
			return nil, nil, err
		}
		items = append(items, item)
	}
}

func readItem(reader *bufio.Reader) (Item, error) {
	line, err := reader.ReadBytes('\n')
	if err != nil && len(bytes.TrimSpace(line)) == 0 {
		return Item{}, io.EOF
	}
	var header struct {
		Type   string `json:"type"`
		Length *int   `json:"length"`
	}
	if err := json.Unmarshal(line, &header); err != nil {
		return Item{}, fmt.Errorf("item header %q: %w", line, err)
	}
	payload, err := readPayload(reader, header.Length)
	if err != nil {
		return Item{}, fmt.Errorf("payload of %s: %w", header.Type, err)
	}
	item := Item{Type: header.Type}
	if err := json.Unmarshal(payload, &item.Body); err != nil {
		return Item{}, fmt.Errorf("payload of %s: %w", header.Type, err)
	}
	return item, nil
}

func readPayload(reader *bufio.Reader, length *int) ([]byte, error) {
	if length == nil {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return line, err
	}
	payload := make([]byte, *length)
	if _, err := io.ReadFull(reader, payload); err != nil {
		return nil, err
	}
	_, err := reader.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return payload, err
}
