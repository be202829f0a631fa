package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

const (
	dialTimeout = 5 * time.Second
	// failoverTimeout is how long one of several hosts may take to connect.
	failoverTimeout = 800 * time.Millisecond
)

// Addresses returns host:port of every host, in order.
func (c Config) Addresses() []string {
	var addresses []string
	for host := range strings.SplitSeq(c.Host, ",") {
		host = strings.TrimSpace(host)
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(c.Port)))
		}
		addresses = append(addresses, host)
	}
	return addresses
}

// Address is host:port, of several hosts a list.
func (c Config) Address() string { return strings.Join(c.Addresses(), ",") }

func (c Config) checkHosts() error {
	for _, address := range c.Addresses() {
		host, port, err := net.SplitHostPort(address)
		if number, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil || number == 0 || host == "" || strings.ContainsAny(host, " /") {
			return fmt.Errorf("CLICKHOUSE_HOST = %q is not HOST, HOST:PORT or a list of them separated by commas", c.Host)
		}
	}
	return nil
}

// isLocal reports whether every host is this machine.
func (c Config) isLocal() bool {
	for _, address := range c.Addresses() {
		host, _, _ := net.SplitHostPort(address)
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// dialFunc is clickhouse.Options.DialStrategy.
type dialFunc = func(ctx context.Context, connID int, options *clickhouse.Options, dial clickhouse.Dial) (clickhouse.DialResult, error)

// explained says what to do when dial fails, whenever a connection is needed.
func explained(c Config, dial dialFunc) dialFunc {
	return func(ctx context.Context, connID int, options *clickhouse.Options, one clickhouse.Dial) (clickhouse.DialResult, error) {
		result, err := dial(ctx, connID, options, one)
		if err != nil {
			err = withHint(c, err)
		}
		return result, err
	}
}

// failover connects to the host that connected last, at first to the first one, or
// else to the next one. Of several hosts, each gets failoverTimeout; if none answers
// in that time, each gets the whole dial timeout.
func failover() dialFunc {
	var preferred atomic.Int64
	return func(ctx context.Context, _ int, options *clickhouse.Options, dial clickhouse.Dial) (clickhouse.DialResult, error) {
		if len(options.Addr) == 1 {
			return dial(ctx, options.Addr[0], options)
		}
		quick := *options
		quick.DialTimeout = failoverTimeout
		first := int(preferred.Load())
		var errs []error
		for _, attempt := range []*clickhouse.Options{&quick, options} {
			for i := range options.Addr {
				host := (first + i) % len(options.Addr)
				result, err := within(ctx, attempt.DialTimeout, func(ctx context.Context) (clickhouse.DialResult, error) {
					return dial(ctx, options.Addr[host], attempt)
				})
				if err == nil {
					preferred.Store(int64(host))
					return result, nil
				}
				errs = append(errs, fmt.Errorf("%s: %w", options.Addr[host], err))
				if ctx.Err() != nil {
					return clickhouse.DialResult{}, errors.Join(errs...)
				}
			}
			if !anyTimeout(errs) {
				break
			}
		}
		return clickhouse.DialResult{}, errors.Join(errs...)
	}
}

// within gives dial a time of its own: ctx ends when a single host would have had the whole dial timeout.
func within(ctx context.Context, timeout time.Duration, dial func(context.Context) (clickhouse.DialResult, error)) (clickhouse.DialResult, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return dial(ctx)
}

func anyTimeout(errs []error) bool {
	for _, err := range errs {
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return true
		}
	}
	return false
}
