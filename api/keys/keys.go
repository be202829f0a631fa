// Package keys authenticates the callers of the api. The configuration holds
// hashes of keys only, so a leaked configuration gives no access.
package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// prefix identifies a key for readers and for scanners of leaked secrets.
const prefix = "dh_"

// randomBytes per key: with 256 random bits one round of SHA-256 is enough.
const randomBytes = 32

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Set holds the accepted keys. The zero Set accepts none.
type Set struct{ keys []key }

type key struct {
	caller string
	hash   [sha256.Size]byte
}

// Parse reads keys, each "hash" or "name:hash", the hash in hexadecimal. Several
// keys may have one name: a key is replaced without a gap that way. The error
// does not contain the entry.
func Parse(entries []string) (Set, error) {
	var set Set
	for i, entry := range entries {
		name, hash, named := strings.Cut(strings.TrimSpace(entry), ":")
		if !named {
			name, hash = "", name
		}
		if named && !namePattern.MatchString(name) {
			return Set{}, fmt.Errorf("name %d is not 1 to 64 letters, digits, dots, hyphens or underscores", i+1)
		}
		k := key{caller: name}
		if n, err := hex.Decode(k.hash[:], []byte(truncate(hash))); err != nil || n != len(k.hash) || len(hash) != hex.EncodedLen(n) {
			return Set{}, fmt.Errorf("key %d is not a SHA-256 hash of 64 hexadecimal digits", i+1)
		}
		if !named {
			k.caller = "key-" + hex.EncodeToString(k.hash[:4])
		}
		set.keys = append(set.keys, k)
	}
	return set, nil
}

// truncate limits hash to the length that hex.Decode has room for.
func truncate(hash string) string {
	return hash[:min(len(hash), hex.EncodedLen(sha256.Size))]
}

// Empty reports whether the set has no keys.
func (s Set) Empty() bool { return len(s.keys) == 0 }

// Caller returns the name of the caller with this key. It compares in constant time.
func (s Set) Caller(secret string) (caller string, ok bool) {
	given := sha256.Sum256([]byte(secret))
	found := -1
	for i := range s.keys {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(given[:], s.keys[i].hash[:]), i, found)
	}
	if found < 0 {
		return "", false
	}
	return s.keys[found].caller, true
}

// New makes a random key and the entry for [Parse]; name may be empty.
func New(name string) (secret, entry string, err error) {
	if name != "" && !namePattern.MatchString(name) {
		return "", "", errors.New("a name has 1 to 64 letters, digits, dots, hyphens or underscores")
	}
	var random [randomBytes]byte
	_, _ = rand.Read(random[:]) // never fails
	secret = prefix + base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(secret))
	entry = hex.EncodeToString(hash[:])
	if name != "" {
		entry = name + ":" + entry
	}
	return secret, entry, nil
}
