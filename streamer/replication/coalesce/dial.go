package coalesce

import (
	"context"
	"net"
	"syscall"
)

// Dialer connects to PostgreSQL for a replication session.
type Dialer struct{}

// DialContext connects like net.Dialer.DialContext.
func (Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Control: limitSegment}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return coalesced(conn), nil
}

// socketOf returns the socket of a TCP connection, nil of others.
func socketOf(conn net.Conn) syscall.RawConn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // closed: the next use says so
	}
	return raw
}
