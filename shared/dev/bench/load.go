package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/textproto"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// load posts users over apiClients connections for apiTime and returns how many
// were created. Like pgbench it does as little as it can: it shares the cores with
// the api, and net/http's client costs as much as the api.
func load(ctx context.Context, addr string) (int, error) {
	g, ctx := errgroup.WithContext(ctx)
	until := time.Now().Add(apiTime)
	counts := make([]int, apiClients)
	for i := range apiClients {
		g.Go(func() (err error) {
			counts[i], err = poster{addr: addr, name: i, until: until}.run(ctx)
			return err
		})
	}
	err := g.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return n, err
}

// poster is one connection that is kept alive.
type poster struct {
	addr  string
	name  int
	until time.Time
}

func (p poster) run(ctx context.Context) (created int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	var out bytes.Buffer
	for time.Now().Before(p.until) && ctx.Err() == nil {
		body := fmt.Sprintf(`{"email":"u%d-%d@example.com","first_name":"Test","last_name":"User"}`, p.name, created)
		out.Reset()
		fmt.Fprintf(&out, "POST /users HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", p.addr, len(body), body)
		if _, err := conn.Write(out.Bytes()); err != nil {
			return created, err
		}
		if err := expectCreated(in); err != nil {
			return created, err
		}
		created++
	}
	return created, nil
}

var contentLength = []byte("Content-Length: ")

// expectCreated reads one answer, which must be 201 with a body of known length.
func expectCreated(in *bufio.Reader) error {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 201 ")) {
		return fmt.Errorf("POST /users: %s", textproto.TrimBytes(status))
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = textproto.TrimBytes(line)
		if len(line) == 0 {
			break
		}
		if digits, ok := bytes.CutPrefix(line, contentLength); ok {
			if length, err = strconv.Atoi(string(digits)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("POST /users: an answer without Content-Length")
	}
	_, err = in.Discard(length)
	return err
}
