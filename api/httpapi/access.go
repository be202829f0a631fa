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
)

const (
	headerAPIKey = "X-Api-Key" //nolint:gosec // the name of a header
	callerField  = "caller"    // of the echo context
	// forgetCaller is how long the rate of a silent caller is remembered.
	forgetCaller = 3 * time.Minute
)

// requireKey lets requests with one of the keys pass. Without keys everybody
// does: the configuration allows that for nobody but this machine.
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

// callerOf names whose key a request has, empty without keys.
func callerOf(c echo.Context) string {
	caller, _ := c.Get(callerField).(string)
	return caller
}

// presentedKey returns the key of a request. Two of them are none: they might
// be read differently elsewhere.
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

// localOrKey lets requests from this machine pass without a key, unless a proxy
// forwards them.
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

// rateLimited bounds the requests a second of each caller; 0 is no limit. A
// second's worth may come at once.
func rateLimited(perSecond float64) echo.MiddlewareFunc {
	if perSecond <= 0 {
		return func(next echo.HandlerFunc) echo.HandlerFunc { return next }
	}
	store := middleware.NewRateLimiterMemoryStoreWithConfig(middleware.RateLimiterMemoryStoreConfig{
		Rate: rate.Limit(perSecond), Burst: max(1, int(perSecond)), ExpiresIn: forgetCaller,
	})
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			who := callerOf(c)
			if who == "" {
				who = addressOf(c.Request())
			}
			if allowed, err := store.Allow(who); err != nil || !allowed {
				return &Problem{Status: http.StatusTooManyRequests, Detail: "Too many requests of yours in a short time. Try again."}
			}
			return next(c)
		}
	}
}

// addressOf is the client's address, of IPv6 its network: a client has all of it.
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

// admitted bounds the requests at a time. One too many is told so at once: a
// queue without an end answers nobody in time.
func admitted(most int) echo.MiddlewareFunc {
	places := make(chan struct{}, most)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			select {
			case places <- struct{}{}:
				defer func() { <-places }()
				return next(c)
			default:
				return &Problem{Status: http.StatusServiceUnavailable, Detail: "Too many requests at the moment. Try again."}
			}
		}
	}
}
