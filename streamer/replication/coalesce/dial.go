package coalesce

import (
	"context"
	"net"
	"syscall"
	"time"
)

const (
	// smallWindow is about what crosses in small segments before the sender's kernel
	// coalesces changes. Newer kernels may raise the bound later, but a
	// connection that began with less than 64 KB has no window scaling, so that the
	// window cannot be larger. Within maxLowLatencyRTT that is as much as a walsender sends.
	smallWindow      = 64<<10 - 1
	maxLowLatencyRTT = 250 * time.Microsecond
)

// Dialer connects with a small receive window to a server whose round trip takes at
// most MaxLowLatencyRTT; 0 means 250 µs. To others the kernel chooses the window: there
// it decides how fast data can come.
type Dialer struct{ MaxLowLatencyRTT time.Duration }

// DialContext connects like net.Dialer.DialContext.
func (d Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	clamped := net.Dialer{Control: clampWindow}
	conn, err := clamped.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if !d.lowLatency(conn) {
		_ = conn.Close() // nothing was sent: the server logs it only with log_connections
		if conn, err = new(net.Dialer).DialContext(ctx, network, address); err != nil {
			return nil, err
		}
	}
	return coalesced(conn), nil
}

// lowLatency is also true of a connection without a window.
func (d Dialer) lowLatency(conn net.Conn) bool {
	raw := socketOf(conn)
	if raw == nil {
		return true
	}
	limit := d.MaxLowLatencyRTT
	if limit == 0 {
		limit = maxLowLatencyRTT
	}
	rtt, known := roundTrip(raw)
	return known && rtt <= limit
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
