package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"golang.org/x/time/rate"

	"diehard/api/keys"
	"diehard/shared/hostcheck"
)

const (
	headerAPIKey = "X-Api-Key" //nolint:gosec // the name of a header
	callerField  = "caller"    // of the echo context
	// rateExpiry is how long the rate of an inactive caller is kept.
	rateExpiry = 3 * time.Minute
)

// checkHost refuses requests to a loopback listener that carry a foreign Host: a
// browser sends them for a page whose name was rebound to 127.0.0.1.
func checkHost(loopbackOnly bool, names []string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		if !loopbackOnly {
			return next
		}
		return func(c echo.Context) error {
			if !hostcheck.Allowed(c.Request().Host, names) {
				return &Problem{
					Status: http.StatusMisdirectedRequest,
					Detail: "This Host is not allowed. Use localhost or 127.0.0.1, or add the name to API_HOSTS.",
				}
			}
			return next(c)
		}
	}
}

// requireKey refuses requests without a valid key. An empty set refuses none.
func requireKey(set keys.Set) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		if set.Empty() {
			return next
		}
		return func(c echo.Context) error {
			secret, given := presentedKey(c.Request())
			caller, ok := set.Caller(secret)
			if !ok {
				return unauthorized(c, given)
			}
			c.Set(callerField, caller)
			return next(c)
		}
	}
}

// callerOf returns the name of the request's caller, empty without keys.
func callerOf(c echo.Context) string {
	caller, _ := c.Get(callerField).(string)
	return caller
}

// presentedKey returns the key of a request. Two keys count as none: a proxy might
// check the other one.
func presentedKey(request *http.Request) (secret string, given bool) {
	bearer, plain := request.Header.Values(echo.HeaderAuthorization), request.Header.Values(headerAPIKey)
	switch {
	case len(bearer)+len(plain) != 1:
		return "", len(bearer)+len(plain) > 0
	case len(plain) == 1:
		return plain[0], true
	default:
		scheme, token, _ := strings.Cut(bearer[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", true
		}
		return strings.TrimSpace(token), true
	}
}

// Source: RFC 6750, "The WWW-Authenticate Response Header Field".
func unauthorized(c echo.Context, given bool) error {
	challenge, detail := `Bearer realm="diehard"`, "Send a key: Authorization: Bearer <key>."
	if given {
		challenge, detail = challenge+`, error="invalid_token"`, "This key is not valid. Send one key: Authorization: Bearer <key>."
	}
	c.Response().Header().Set(echo.HeaderWWWAuthenticate, challenge)
	return &Problem{Status: http.StatusUnauthorized, Detail: detail}
}

// localOrKey exempts requests from this machine from the key, unless a proxy
// forwarded them.
func localOrKey(set keys.Set) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		withKey := requireKey(set)(next)
		return func(c echo.Context) error {
			switch {
			case isLocal(c.Request()):
				return next(c)
			case set.Empty():
				return unauthorized(c, false)
			default:
				return withKey(c)
			}
		}
	}
}

func isLocal(request *http.Request) bool {
	for _, name := range []string{"Forwarded", echo.HeaderXForwardedFor, echo.HeaderXRealIP} {
		if len(request.Header.Values(name)) > 0 {
			return false
		}
	}
	address, err := netip.ParseAddrPort(request.RemoteAddr)
	return err == nil && address.Addr().Unmap().IsLoopback()
}

// limitRate bounds the requests per second of each caller; 0 is no limit. The
// burst is the requests of one second.
func limitRate(perSecond float64) echo.MiddlewareFunc {
	if perSecond <= 0 {
		return func(next echo.HandlerFunc) echo.HandlerFunc { return next }
	}
	store := middleware.NewRateLimiterMemoryStoreWithConfig(middleware.RateLimiterMemoryStoreConfig{
		Rate: rate.Limit(perSecond), Burst: max(1, int(perSecond)), ExpiresIn: rateExpiry,
	})
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if allowed, err := store.Allow(sharerOf(c)); err != nil || !allowed {
				return &Problem{Status: http.StatusTooManyRequests, Detail: "You sent too many requests in a short time. Try again."}
			}
			return next(c)
		}
	}
}

// addressOf returns the client's address; for IPv6 its /64, which belongs to one client.
func addressOf(request *http.Request) string {
	host, _, _ := net.SplitHostPort(request.RemoteAddr)
	address, err := netip.ParseAddr(host)
	if err != nil || address.Unmap().Is4() {
		return host
	}
	const network = 64
	prefix, err := address.WithZone("").Prefix(network)
	if err != nil {
		return host
	}
	return prefix.String()
}
