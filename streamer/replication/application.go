package replication

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
)

// applicationName is that of a streamer's sessions: unique, so that it proves which
// of them holds the slot.
var applicationName = regexp.MustCompile(`^diehard-streamer-[0-9a-f]{12}$`)

// NewApplicationName returns the application name of a streamer's session, and what is random in it.
func NewApplicationName() (name, nonce string) {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	nonce = hex.EncodeToString(b[:])
	return "diehard-streamer-" + nonce, nonce
}

// IsStreamer reports whether a session with this application name is a streamer's.
func IsStreamer(application string) bool { return applicationName.MatchString(application) }
