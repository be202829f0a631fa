package users

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestEmailKey(t *testing.T) {
	t.Parallel()
	for _, same := range [][]string{
		{"ann@example.com", "ANN@Example.COM"},
		{"\u00e4rzte@b\u00fccher.example", "\u00c4RZTE@B\u00dcCHER.example", "A\u0308rzte@bu\u0308cher.example"}, // one code point, or two
		{"\u03c3\u03b1\u03c2@example.com", "\u03a3\u0391\u03a3@example.com"},                                     // sigmas
		{"\u0436@example.com", "\u0416@example.com"},
		{"k@example.com", "\u212a@example.com"}, // the sign of Kelvin
	} {
		for _, email := range same {
			assert.Equal(t, emailKey(same[0]), emailKey(email), email)
		}
	}
	keys := map[string]string{}
	for _, email := range []string{"a@example.com", "\u00e4@example.com", "ae@example.com", "i@example.com", "\u0131@example.com", "stra\u00dfe@x.de", "strasse@x.de"} {
		assert.Empty(t, keys[emailKey(email)], email)
		keys[emailKey(email)] = email
	}
}
