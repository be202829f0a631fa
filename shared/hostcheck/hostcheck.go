// Package hostcheck protects a listener on a loopback address from DNS rebinding:
// a web page whose name resolves to 127.0.0.1 for a moment makes its visitor's
// browser talk to programs on the visitor's machine. The browser then sends the
// name of the page as Host, which such a program refuses.
package hostcheck

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Allowed reports whether a program on a loopback address may answer a request
// with this Host header: localhost and names under it, loopback addresses, and
// names, each with any port. An empty host is allowed: HTTP/1.0 has none, and
// browsers always send one.
//
// Source: RFC 6761, "Domain Name Reservation Considerations for localhost".
func Allowed(host string, names []string) bool {
	name := hostname(host)
	if host == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	if address, err := netip.ParseAddr(name); err == nil && address.Unmap().IsLoopback() {
		return true
	}
	return name != "" && slices.ContainsFunc(names, func(n string) bool { return hostname(n) == name })
}

// hostname returns host without port, brackets and final dot, in lower case.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Protect answers 421 Misdirected Request where the Host is not [Allowed].
func Protect(next http.Handler, names []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !Allowed(r.Host, names) {
			http.Error(w, "This Host is not allowed. Use localhost or 127.0.0.1.", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// IsLoopback reports whether addr, as of a [net.Listener], is a loopback address.
func IsLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
