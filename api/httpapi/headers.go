package httpapi

import (
	"net/http"

	"github.com/labstack/echo/v4"
)

// What browsers shall make of answers: nothing. The page at /docs says more.
// The values are shared by all answers; nobody appends to them.
var securityHeaders = map[string][]string{
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

// secured sets what every answer says to browsers. Over plain HTTP there is no
// HSTS: they would ignore it, and should.
func secured(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		setSecurity(c.Response().Header())
		if c.Scheme() == "https" { // ours, or that of a proxy in front
			c.Response().Header().Set(hstsName, hstsValue)
		}
		return next(c)
	}
}

func setSecurity(header http.Header) {
	for name, values := range securityHeaders {
		header[name] = values
	}
}
