package replication

import (
	"context"
	"net"
	"syscall"
	"time"
)

const (
	// smallWindow is about what crosses in small segments before changes gather on
	// the sender's side (coalesce.go). Newer kernels may raise the bound later, but a
	// connection that began with less than 64 KB has no window scaling, so that the
	// window cannot be larger. Within near that is as much as a walsender sends.
	smallWindow = 64<<10 - 1
	near        = 250 * time.Microsecond
	// smallBuffer is the memory for it: small segments take several times their size.
	smallBuffer = 208 << 10
)

// dialer connects with a small receive window to a server whose round trip is
// within near. To others the window is the kernel's to find: there it decides how
// fast data can come.
type dialer struct{ near time.Duration }

func (d dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	limited := net.Dialer{Control: limitWindow}
	conn, err := limited.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if !d.isNear(conn) {
		_ = conn.Close() // nothing has been sent: the server tells of it only with log_connections
		if conn, err = new(net.Dialer).DialContext(ctx, network, address); err != nil {
			return nil, err
		}
	}
	return coalesced(conn), nil
}

// isNear is also said of what has no window.
func (d dialer) isNear(conn net.Conn) bool {
	raw := socketOf(conn)
	if raw == nil {
		return true
	}
	rtt, known := roundTrip(raw)
	return known && rtt <= d.near
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
