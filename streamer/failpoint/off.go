//go:build !failpoints

// Package failpoint lets the crash tests kill or freeze the streamer at named places.
// In an ordinary build every Hit is nothing at all.
package failpoint

// Hit marks a place where a crash is worth testing.
func Hit(string) {}
