//go:build !linux

package link

import "fmt"

// Open is for Linux, which has network namespaces.
func Open(Options) (*Link, error) {
	return nil, fmt.Errorf("%w: network namespaces are for Linux", ErrUnavailable)
}

// Within has no namespace to run f in.
func (l *Link) Within(End, func() error) error { return ErrUnavailable }

// Set has no link to change.
func (l *Link) Set(Options) error { return ErrUnavailable }
