package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"
)

// securityValues tell browsers to execute and store nothing. The page at /docs
// overrides two of them. All answers share the slices: do not append to them.
var securityValues = map[string][]string{
	"Cache-Control":           {"no-store"},
	"Content-Security-Policy": {"default-src 'none'; frame-ancestors 'none'"},
	"Referrer-Policy":         {"no-referrer"},
	"X-Content-Type-Options":  {"nosniff"},
	"X-Frame-Options":         {"DENY"},
}

const (
	hstsName  = "Strict-Transport-Security"
	hstsValue = "max-age=31536000"
)

// securityHeaders sets the headers for browsers. HSTS is sent with TLS only: over
// plain HTTP browsers ignore it.
func securityHeaders(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		setSecurity(c.Response().Header())
		if c.Scheme() == "https" { // ours, or a proxy's
			c.Response().Header().Set(hstsName, hstsValue)
		}
		return next(c)
	}
}

func setSecurity(header http.Header) {
	for name, values := range securityValues {
		header[name] = values
	}
}
