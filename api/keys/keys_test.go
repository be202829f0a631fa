package keys_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/keys"
)

func TestNewKeysLetTheirCallersIn(t *testing.T) {
	t.Parallel()
	var entries, secrets []string
	for _, name := range []string{"shop", "shop", ""} { // two of one name: one replaces the other
		secret, entry, err := keys.New(name)
		require.NoError(t, err)
		assert.NotContains(t, entry, secret)
		entries, secrets = append(entries, entry), append(secrets, secret)
	}
	assert.NotEqual(t, secrets[0], secrets[1])
	set, err := keys.Parse(entries)
	require.NoError(t, err)
	for i, want := range []string{"shop", "shop", "key-" + entries[2][:8]} {
		caller, ok := set.Caller(secrets[i])
		assert.True(t, ok)
		assert.Equal(t, want, caller)
	}
	for _, wrong := range []string{"", "x", secrets[0] + "x", secrets[0][1:], strings.ToUpper(secrets[0]), entries[2]} {
		_, ok := set.Caller(wrong)
		assert.False(t, ok, wrong)
	}
	_, ok := keys.Set{}.Caller("")
	assert.False(t, ok, "no key opens an empty set")
}

func TestAHashIsThatOfSha256sum(t *testing.T) {
	t.Parallel()
	set, err := keys.Parse([]string{" a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b "})
	require.NoError(t, err)
	caller, ok := set.Caller("secret")
	assert.True(t, ok)
	assert.Equal(t, "a", caller)
}

func TestMistakesAreFoundAndNotRepeated(t *testing.T) {
	t.Parallel()
	good := strings.Repeat("a", 64)
	for entry, says := range map[string]string{
		"hunter2":                            "key 2 is not a SHA-256 hash",
		good + "aa":                          "key 2 is not a SHA-256 hash",
		good[1:]:                             "key 2 is not a SHA-256 hash",
		"name:" + good[:62]:                  "key 2 is not a SHA-256 hash",
		"name:hunter2":                       "key 2 is not a SHA-256 hash",
		":" + good:                           "name 2 is not",
		"hunter2 and more:" + good:           "name 2 is not",
		"":                                   "key 2 is not a SHA-256 hash",
		strings.Repeat("g", len(good)):       "key 2 is not a SHA-256 hash",
		strings.Repeat("n", 65) + ":" + good: "name 2 is not",
	} {
		_, err := keys.Parse([]string{good, entry})
		require.ErrorContains(t, err, says, entry)
		assert.NotContains(t, err.Error(), "hunter2")
	}
	_, _, err := keys.New("two words")
	assert.Error(t, err)
}
